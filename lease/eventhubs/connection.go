package eventhubs

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
)

// namespace is what a connection string of Event Hubs tells.
type namespace struct {
	// host is in lower case, with a port only where that is not the protocol's own.
	host string
	// connection is the connection string as the SDK wants it: without EntityPath, and without white space.
	connection string
	// secret is the key or the signature.
	secret   string
	emulator bool
}

const wantConnectionString = "copy it from the shared access policies of the namespace or of the event hub: " +
	"Endpoint=sb://….servicebus.windows.net/;SharedAccessKeyName=…;SharedAccessKey=…"

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// parseConnectionString reads a connection string. No error of it contains any value, since with a part in the wrong place
// every value could be the key.
func parseConnectionString(s, hub string) (namespace, error) {
	invalid := func(problem string) (namespace, error) {
		return namespace{}, fmt.Errorf("connection string %s; %s: %w", problem, wantConnectionString, lease.ErrInvalid)
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return invalid("is empty")
	}
	values, ok := azstorage.Values(s)
	if !ok {
		return invalid("has a part that is not of the form key=value")
	}
	for _, key := range []string{"accountname", "accountkey", "blobendpoint", "queueendpoint", "usedevelopmentstorage"} {
		if values[key] != "" {
			return invalid("is one of a storage account, which belongs in the checkpoint connection string")
		}
	}
	if values["endpoint"] == "" {
		return invalid("has no Endpoint")
	}
	emulator, err := strconv.ParseBool(values["usedevelopmentemulator"])
	if err != nil && values["usedevelopmentemulator"] != "" {
		return invalid("has a UseDevelopmentEmulator that is neither true nor false")
	}
	host, err := parseEndpoint(values["endpoint"], emulator)
	if err != nil {
		return invalid(err.Error())
	}
	if path := values["entitypath"]; path != "" && !strings.EqualFold(path, hub) {
		return namespace{}, fmt.Errorf("connection string is one of another event hub than %q (see its EntityPath); correct the name of the event hub, "+
			"or %s: %w", hub, wantConnectionString, lease.ErrInvalid)
	}
	n := namespace{host: host, emulator: emulator}
	keyName, key, signature := values["sharedaccesskeyname"], values["sharedaccesskey"], values["sharedaccesssignature"]
	switch {
	case signature != "":
		const prefix = "SharedAccessSignature "
		query, err := url.ParseQuery(strings.TrimPrefix(signature, prefix))
		if !strings.HasPrefix(signature, prefix) || err != nil || query.Get("sig") == "" || query.Get("sr") == "" {
			return invalid("has a SharedAccessSignature that is not of the form SharedAccessSignature sr=…&sig=…&se=…&skn=…")
		}
		n.secret = signature
		n.connection = "Endpoint=sb://" + host + "/;SharedAccessSignature=" + signature
	case key == "":
		return invalid("has neither SharedAccessKey nor SharedAccessSignature")
	case keyName == "":
		return invalid("has a SharedAccessKey and no SharedAccessKeyName")
	default:
		if _, err := base64.StdEncoding.DecodeString(key); err != nil && !emulator {
			return invalid("has a SharedAccessKey that is not base64; it may have been cut off")
		}
		n.secret = key
		n.connection = "Endpoint=sb://" + host + "/;SharedAccessKeyName=" + keyName + ";SharedAccessKey=" + key
	}
	if emulator {
		n.connection += ";UseDevelopmentEmulator=true"
	}
	return n, nil
}

// parseEndpoint returns the host. Its errors go on after "connection string".
func parseEndpoint(endpoint string, emulator bool) (host string, err error) {
	u, err := url.Parse(endpoint)
	if err != nil || !strings.EqualFold(u.Scheme, "sb") || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", problem("has an Endpoint that is not of the form sb://host/")
	}
	host = strings.ToLower(u.Hostname())
	switch {
	case strings.Contains(host, ".blob.") || strings.Contains(host, ".queue."):
		return "", problem("names the endpoint of a storage account")
	case !hostName.MatchString(host) && net.ParseIP(host) == nil:
		return "", problem("has an Endpoint whose host is none")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	port := u.Port()
	if port == "" {
		return host, nil
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return "", problem("has an Endpoint whose port is none")
	}
	if n == 5671 && !emulator || n == 5672 && emulator {
		return host, nil
	}
	return host + ":" + strconv.Itoa(n), nil
}

// problem is an error for a person, in the middle of a sentence.
type problem string

func (p problem) Error() string { return string(p) }

// tls is the configuration for TLS, which an emulator does not have. The SDK would take host and port for the server's name.
func (n namespace) tls() *tls.Config {
	if n.emulator {
		return nil
	}
	u := url.URL{Host: n.host}
	return &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
}

// identity names the event hub and the consumer group; all else, such as credentials, may change without it being another
// source. The service does not tell upper and lower case apart in either name.
func (n namespace) identity(hub, group string) string {
	u := url.URL{
		Scheme:   "azure-event-hubs",
		Host:     n.host,
		Path:     "/" + strings.ToLower(hub),
		RawQuery: url.Values{"group": {strings.ToLower(group)}}.Encode(),
	}
	return u.String()
}

// scrub takes the secret out of a text that others wrote.
func (n namespace) scrub(text string) string {
	if n.secret == "" {
		return text
	}
	return strings.ReplaceAll(text, n.secret, "…")
}
