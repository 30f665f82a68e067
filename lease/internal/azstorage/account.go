package azstorage

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"

	"github.com/lighterman-dev/lighterman/lease"
)

// Service is one of the services of a storage account, by the name that it has in host names.
type Service string

// The services that are used.
const (
	Queue Service = "queue"
	Blob  Service = "blob"
)

// key is the service's endpoint in a connection string.
func (s Service) key() string {
	if s == Blob {
		return "BlobEndpoint"
	}
	return "QueueEndpoint"
}

// emulator is where every emulator has the service.
func (s Service) emulator() string {
	if s == Blob {
		return "http://127.0.0.1:10000/" + emulatorAccount
	}
	return "http://127.0.0.1:10001/" + emulatorAccount
}

// other reports whether a host name is that of another service.
func (s Service) other(host string) bool {
	for _, other := range []string{"blob", "queue", "servicebus"} {
		if other != string(s) && strings.Contains(host, "."+other+".") {
			return true
		}
	}
	return false
}

// Account is what a connection string tells.
type Account struct {
	what      string
	endpoints map[Service]*url.URL // without query
	name      string
	key       string
	sas       string
}

// The account that every emulator has, with the key that its documentation publishes. It opens nothing else.
const (
	emulatorAccount = "devstoreaccount1"
	emulatorKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

const wanted = "copy it from the storage account's access keys: DefaultEndpointsProtocol=https;AccountName=…;" +
	"AccountKey=…;EndpointSuffix=core.windows.net"

// Invalid is the error for a connection string that is unusable.
func (a Account) Invalid(problem string) error {
	return fmt.Errorf("%s %s; %s: %w", a.what, problem, wanted, lease.ErrInvalid)
}

// Parse reads a connection string, for those services. What it is called in errors is up to the caller. No error contains any value, since with a
// part in the wrong place every value could be the key.
func Parse(what, s string, services ...Service) (Account, error) {
	a := Account{what: what, endpoints: map[Service]*url.URL{}}
	s = strings.TrimSpace(s)
	if s == "" {
		return Account{}, a.Invalid("is empty")
	}
	values, ok := Values(s)
	if !ok {
		return Account{}, a.Invalid("has a part that is not of the form key=value")
	}
	if strings.HasPrefix(strings.ToLower(values["endpoint"]), "sb:") {
		return Account{}, a.Invalid("is one of Event Hubs or Service Bus")
	}
	a.name, a.key, a.sas = values["accountname"], values["accountkey"], strings.TrimPrefix(values["sharedaccesssignature"], "?")
	emulator := strings.EqualFold(values["usedevelopmentstorage"], "true")
	if emulator {
		a.name, a.key = emulatorAccount, emulatorKey
	}
	for _, service := range services {
		if emulator {
			values[strings.ToLower(service.key())] = service.emulator()
		}
		if err := a.addEndpoint(service, values); err != nil {
			return Account{}, err
		}
	}
	return a, a.checkCredentials()
}

// Values takes a connection string apart. The keys are in lower case.
func Values(s string) (values map[string]string, ok bool) {
	values = map[string]string{}
	for part := range strings.SplitSeq(s, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		key, value, found := strings.Cut(part, "=")
		if !found {
			return nil, false
		}
		values[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
	}
	return values, true
}

func (a *Account) addEndpoint(service Service, values map[string]string) error {
	endpoint := values[strings.ToLower(service.key())]
	if endpoint == "" {
		if a.name == "" {
			return a.Invalid("has neither AccountName nor " + service.key())
		}
		scheme, suffix := values["defaultendpointsprotocol"], values["endpointsuffix"]
		if scheme == "" {
			scheme = "https"
		}
		if suffix == "" {
			suffix = "core.windows.net"
		}
		endpoint = scheme + "://" + a.name + "." + string(service) + "." + suffix
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return a.Invalid("has a " + service.key() + ", or an AccountName, that does not make a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return a.Invalid("has a protocol that is neither https nor http")
	case service.other(u.Hostname()):
		return a.Invalid("names the endpoint of another service")
	}
	if a.sas == "" && u.RawQuery != "" {
		a.sas = u.RawQuery
	}
	a.endpoints[service] = &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: strings.TrimSuffix(u.Path, "/")}
	return nil
}

func (a *Account) checkCredentials() error {
	switch {
	case a.key != "" && a.name == "":
		return a.Invalid("has an AccountKey and no AccountName")
	case a.key != "":
		if _, err := base64.StdEncoding.DecodeString(a.key); err != nil {
			return a.Invalid("has an AccountKey that is not base64; it may have been cut off")
		}
		a.sas = ""
	case a.sas == "":
		return a.Invalid("has neither AccountKey nor SharedAccessSignature")
	default:
		if query, err := url.ParseQuery(a.sas); err != nil || query.Get("sig") == "" {
			return a.Invalid("has a SharedAccessSignature without a signature (sig=…)")
		}
	}
	return nil
}

// Endpoint is the URL of a service, without a slash at its end and without secrets.
func (a Account) Endpoint(service Service) *url.URL { return a.endpoints[service] }

// Host is the endpoint's host, with a port only where that is not the protocol's own.
func (a Account) Host(service Service) string {
	u := a.endpoints[service]
	if port := u.Port(); (u.Scheme == "https" && port == "443") || (u.Scheme == "http" && port == "80") {
		return strings.TrimSuffix(u.Host, ":"+port)
	}
	return u.Host
}

// SharedKey is the account's name and key; without a key, the URL of URL has the credentials.
func (a Account) SharedKey() (name, key string, ok bool) { return a.name, a.key, a.key != "" }

// URL is the URL of something in a service, with the shared access signature if there is one: not for logs.
func (a Account) URL(service Service, path string) string {
	s := a.endpoints[service].String() + "/" + path
	if a.key == "" {
		s += "?" + a.sas
	}
	return s
}

// Queues makes a client of the queue service.
func (a Account) Queues(transport policy.Transporter) (*azqueue.ServiceClient, error) {
	opts := &azqueue.ClientOptions{ClientOptions: Options(transport)}
	name, key, ok := a.SharedKey()
	if !ok {
		service, err := azqueue.NewServiceClientWithNoCredential(a.URL(Queue, ""), opts)
		if err != nil {
			return nil, a.Unusable()
		}
		return service, nil
	}
	credential, err := azqueue.NewSharedKeyCredential(name, key)
	if err != nil {
		return nil, a.Unusable()
	}
	service, err := azqueue.NewServiceClientWithSharedKeyCredential(a.URL(Queue, ""), credential, opts)
	if err != nil {
		return nil, a.Unusable()
	}
	return service, nil
}

// Unusable is the error for credentials that the SDK does not take.
func (a Account) Unusable() error { return a.Invalid("has credentials that no client can be made of") }
