package eventhub

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
)

// unauthorized checks that neither sending nor asking for properties works.
func unauthorized(t *testing.T, connection string, o *azeventhubs.ProducerClientOptions) {
	t.Helper()
	refusedProducer(t, producerWith(t, connection, o))
}

func refusedProducer(t *testing.T, p *azeventhubs.ProducerClient) {
	t.Helper()
	if err := send(t, p, nil, &azeventhubs.EventData{}); !isUnauthorized(err) {
		t.Errorf("sending: got the error %v, want unauthorized", err)
	}
	// Here the client returns what it got, and not an error of its own.
	if _, err := p.GetEventHubProperties(testContext(t), nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("properties: got the error %v, want 401", err)
	}
}

func isUnauthorized(err error) bool {
	e := (*azeventhubs.Error)(nil)
	return errors.As(err, &e) && e.Code == azeventhubs.ErrorCodeUnauthorizedAccess
}

func TestWrongKey(t *testing.T) {
	b := newBroker(t, Options{})
	unauthorized(t, strings.Replace(b.ConnectionString(), "SharedAccessKey=", "SharedAccessKey=x", 1), nil)
	unauthorized(t, strings.Replace(b.ConnectionString(), DefaultPolicy, "nobody", 1), nil)
}

func TestRights(t *testing.T) {
	b := newBroker(t, Options{NullAttachRefusals: true, Policies: []Policy{
		{Name: "all", Key: "a"}, {Name: "listen", Key: "b", Rights: RightListen}, {Name: "send", Key: "c", Rights: RightSend},
	}})
	must(t, b.Send("hub", "0", numbered(1)...))
	if got := b.ConnectionStringFor("nobody"); got != "" {
		t.Errorf("the connection string of nobody is %q", got)
	}
	for name, c := range map[string]struct{ mayListen, maySend bool }{"all": {true, true}, "listen": {true, false}, "send": {false, true}} {
		connection := b.ConnectionStringFor(name)
		err := send(t, producerWith(t, connection, nil), nil, &azeventhubs.EventData{})
		if (err == nil) != c.maySend || (err != nil && condition(err) != condUnauthorized) {
			t.Errorf("%s: sending: %v", name, err)
		}
		r := receiver(t, consumerWith(t, connection, "$Default", nil), "0", nil)
		_, err = r.ReceiveEvents(testContext(t), 1, nil)
		if (err == nil) != c.mayListen || (err != nil && condition(err) != condUnauthorized) {
			t.Errorf("%s: receiving: %v", name, err)
		}
	}
}

// sas makes a shared access signature by the rules of verifySAS.
func sas(t *testing.T, b *Broker, resource string, expires time.Time) string {
	t.Helper()
	sr, se := strings.ToLower(url.QueryEscape(resource)), fmt.Sprint(expires.Unix())
	p := b.opts.Policies[0]
	return "SharedAccessSignature sr=" + sr + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac(p.Key, sr, se))) + "&se=" + se + "&skn=" + p.Name
}

func TestSharedAccessSignatures(t *testing.T) {
	b := newBroker(t, Options{})
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Second)
	host := "amqp://" + b.Addr() + "/"
	for name, c := range map[string]struct {
		token string
		ok    bool
	}{
		"hub":              {sas(t, b, host+"hub", soon), true},
		"namespace":        {sas(t, b, b.Addr(), soon), true},
		"other scheme":     {sas(t, b, "sb://"+b.Addr()+"/hub/", soon), true},
		"expired":          {sas(t, b, host+"hub", past), false},
		"other hub":        {sas(t, b, host+"another", soon), false},
		"prefix of a name": {sas(t, b, host+"hu", soon), false},
		"below":            {sas(t, b, host+"hub/Partitions/0", soon), false},
		"other host":       {sas(t, b, "amqp://example.com/hub", soon), false},
		"changed expiry":   {strings.Replace(sas(t, b, host+"hub", soon), "&se=", "&se=9", 1), false},
		"no signature":     {"SharedAccessSignature sr=x", false},
		"nonsense":         {"SharedAccessSignature %%%&&==", false},
	} {
		t.Run(name, func(t *testing.T) {
			connection := "Endpoint=sb://" + b.Addr() + "/;SharedAccessSignature=" + c.token + ";UseDevelopmentEmulator=true"
			if !c.ok {
				unauthorized(t, connection, nil)
				return
			}
			p := producerWith(t, connection, nil)
			must(t, send(t, p, nil, &azeventhubs.EventData{}))
			_, err := p.GetEventHubProperties(testContext(t), nil)
			must(t, err)
		})
	}
}

// selfSigned makes a certificate for a name.
func selfSigned(t testing.TB, name string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, pool
}

func TestTLS(t *testing.T) {
	server, pool := selfSigned(t, "localhost")
	b := newBroker(t, Options{TLS: server})
	client := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: "localhost"}
	p := producerWith(t, b.ConnectionString(), &azeventhubs.ProducerClientOptions{TLSConfig: client})
	body := bytes.Repeat([]byte("large"), 60_000)
	must(t, send(t, p, &azeventhubs.EventDataBatchOptions{PartitionID: ptr("0")}, &azeventhubs.EventData{Body: body}))
	c := consumerWith(t, b.ConnectionString(), "$Default", &azeventhubs.ConsumerClientOptions{TLSConfig: client})
	if e := receive(t, receiver(t, c, "0", nil), 1)[0]; !bytes.Equal(e.Body, body) {
		t.Errorf("%d bytes came", len(e.Body))
	}
	// A client without TLS gets nowhere, and nothing of it stays.
	plain := producerWith(t, b.ConnectionString()+";UseDevelopmentEmulator=true", &azeventhubs.ProducerClientOptions{RetryOptions: impatient})
	if err := send(t, plain, nil, &azeventhubs.EventData{}); err == nil {
		t.Error("a client without TLS is served")
	}
}

// credential is an azcore.TokenCredential with a token that was made before.
type credential string

func (c credential) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(c), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func jwt(t *testing.T, key *rsa.PrivateKey, header, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		must(t, err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(header) + "." + part(claims)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	must(t, err)
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestBearerTokens(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	const name = "namespace.example"
	server, pool := selfSigned(t, name)
	b := newBroker(t, Options{TLS: server, JWT: &JWT{
		Keys: map[string]crypto.PublicKey{"k": key.Public()}, Issuer: "https://issuer.example", Audience: "https://eventhubs.azure.net",
	}})
	must(t, b.Send("hub", "0", numbered(1)...))
	now := time.Now()
	header := func(alg, kid string) map[string]any { return map[string]any{"alg": alg, "kid": kid, "typ": "JWT"} }
	with := func(change map[string]any) map[string]any {
		claims := map[string]any{
			"iss": "https://issuer.example", "aud": "https://eventhubs.azure.net", "exp": now.Add(time.Hour).Unix(), "nbf": now.Add(-time.Hour).Unix(),
		}
		for k, v := range change {
			claims[k] = v
		}
		return claims
	}
	good := jwt(t, key, header("RS256", "k"), with(nil))
	for name, c := range map[string]struct {
		token string
		ok    bool
	}{
		"good":             {good, true},
		"many audiences":   {jwt(t, key, header("RS256", "k"), with(map[string]any{"aud": []string{"x", "https://eventhubs.azure.net"}})), true},
		"expired":          {jwt(t, key, header("RS256", "k"), with(map[string]any{"exp": now.Add(-time.Second).Unix()})), false},
		"no expiry":        {jwt(t, key, header("RS256", "k"), with(map[string]any{"exp": nil})), false},
		"not yet":          {jwt(t, key, header("RS256", "k"), with(map[string]any{"nbf": now.Add(time.Hour).Unix()})), false},
		"wrong issuer":     {jwt(t, key, header("RS256", "k"), with(map[string]any{"iss": "x"})), false},
		"wrong audience":   {jwt(t, key, header("RS256", "k"), with(map[string]any{"aud": "x"})), false},
		"wrong key":        {jwt(t, other, header("RS256", "k"), with(nil)), false},
		"unknown key":      {jwt(t, key, header("RS256", "x"), with(nil)), false},
		"other algorithm":  {jwt(t, key, header("HS256", "k"), with(nil)), false},
		"no algorithm":     {jwt(t, key, header("none", "k"), with(nil)), false},
		"no signature":     {good[:strings.LastIndexByte(good, '.')+1], false},
		"not a JWT at all": {"x", false},
	} {
		t.Run(name, func(t *testing.T) {
			client := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			p, err := azeventhubs.NewProducerClient("namespace.example", "hub", credential(c.token),
				&azeventhubs.ProducerClientOptions{TLSConfig: client, CustomEndpoint: b.Addr(), RetryOptions: quick})
			must(t, err)
			defer func() { _ = p.Close(context.WithoutCancel(t.Context())) }()
			if !c.ok {
				refusedProducer(t, p)
				return
			}
			must(t, send(t, p, nil, &azeventhubs.EventData{}))
			consumer, err := azeventhubs.NewConsumerClient("namespace.example", "hub", "$Default", credential(c.token),
				&azeventhubs.ConsumerClientOptions{TLSConfig: client, CustomEndpoint: b.Addr()})
			must(t, err)
			defer func() { _ = consumer.Close(context.WithoutCancel(t.Context())) }()
			// Properties are asked of the producer: a ConsumerClient that was asked leaves a goroutine behind when it is closed.
			_, err = p.GetPartitionProperties(testContext(t), "0", nil)
			must(t, err)
			receive(t, receiver(t, consumer, "0", nil), 1)
		})
	}
}
