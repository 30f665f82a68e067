package storagequeue

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"

	"github.com/lighterman-dev/lighterman/lease"
)

const (
	defaultLeaseDuration = 2 * time.Minute
	defaultConcurrency   = 16
)

// Config says which queue to lease from, and how.
type Config struct {
	// ConnectionString is the one that the portal shows: with AccountName and AccountKey, or with QueueEndpoint
	// and SharedAccessSignature. UseDevelopmentStorage=true means an emulator on this machine.
	ConnectionString string
	// Queue is the name of the queue. It must exist.
	Queue string
	// PoisonQueue is where poisoned messages go; <queue>-poison by default, as Azure Functions has it. It is created
	// when it is needed.
	PoisonQueue string
	// LeaseDuration is how long a message is held without renewal: one second to seven days, two minutes by default. The
	// service counts whole seconds, so it is rounded up to them.
	LeaseDuration time.Duration
	// Concurrency is how many requests may be under way at a time in one call; 16 by default.
	Concurrency int
}

// account fills in the defaults, refuses what cannot work, and reads the connection string.
func (c *Config) account() (account, error) {
	if c.PoisonQueue == "" {
		c.PoisonQueue = c.Queue + "-poison"
	}
	if c.LeaseDuration == 0 {
		c.LeaseDuration = defaultLeaseDuration
	}
	if c.Concurrency == 0 {
		c.Concurrency = defaultConcurrency
	}
	if err := checkName("queue", c.Queue); err != nil {
		return account{}, err
	}
	if err := checkName("poison queue", c.PoisonQueue); err != nil {
		return account{}, err
	}
	switch {
	case c.PoisonQueue == c.Queue:
		return account{}, fmt.Errorf("the poison queue %q is the queue itself; name another one: %w", c.PoisonQueue, lease.ErrInvalid)
	case c.LeaseDuration < time.Second || c.LeaseDuration > maxVisibility:
		return account{}, fmt.Errorf("lease duration %s is out of range; use 1s to 168h: %w", c.LeaseDuration, lease.ErrInvalid)
	case c.Concurrency < 0:
		return account{}, fmt.Errorf("concurrency %d is negative; use 1 or more: %w", c.Concurrency, lease.ErrInvalid)
	}
	c.LeaseDuration = wholeSeconds(c.LeaseDuration)
	return parseConnectionString(c.ConnectionString)
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

var queueName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func checkName(key, name string) error {
	if len(name) < 3 || len(name) > 63 || !queueName.MatchString(name) {
		return fmt.Errorf("%s %q is no name that Azure allows; use 3 to 63 lowercase letters, digits and single hyphens, "+
			"beginning and ending with a letter or digit: %w", key, name, lease.ErrInvalid)
	}
	return nil
}

// account is what a connection string tells.
type account struct {
	endpoint *url.URL // of the queue service, without query
	name     string
	key      string
	sas      string
}

// The account that every emulator has, with the key that its documentation publishes. It opens nothing else.
const (
	emulatorAccount  = "devstoreaccount1"
	emulatorKey      = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	emulatorEndpoint = "http://127.0.0.1:10001/" + emulatorAccount
)

const wantConnectionString = "copy it from the storage account's access keys: DefaultEndpointsProtocol=https;AccountName=…;" +
	"AccountKey=…;EndpointSuffix=core.windows.net"

// parseConnectionString reads a connection string. No error of it contains any value, since with a part in the wrong
// place every value could be the key.
func parseConnectionString(s string) (account, error) {
	invalid := func(what string) error {
		return fmt.Errorf("connection string %s; %s: %w", what, wantConnectionString, lease.ErrInvalid)
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return account{}, invalid("is empty")
	}
	values := map[string]string{}
	for part := range strings.SplitSeq(s, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		key, value, found := strings.Cut(part, "=")
		if !found {
			return account{}, invalid("has a part that is not of the form key=value")
		}
		values[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
	}
	a := account{
		name: values["accountname"],
		key:  values["accountkey"],
		sas:  strings.TrimPrefix(values["sharedaccesssignature"], "?"),
	}
	endpoint := values["queueendpoint"]
	if strings.EqualFold(values["usedevelopmentstorage"], "true") {
		a.name, a.key, endpoint = emulatorAccount, emulatorKey, emulatorEndpoint
	}
	if endpoint == "" {
		if a.name == "" {
			return account{}, invalid("has neither AccountName nor QueueEndpoint")
		}
		scheme, suffix := values["defaultendpointsprotocol"], values["endpointsuffix"]
		if scheme == "" {
			scheme = "https"
		}
		if suffix == "" {
			suffix = "core.windows.net"
		}
		endpoint = scheme + "://" + a.name + ".queue." + suffix
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return account{}, invalid("has a QueueEndpoint, or an AccountName, that does not make a URL")
	case u.Scheme != "https" && u.Scheme != "http":
		return account{}, invalid("has a protocol that is neither https nor http")
	case strings.Contains(u.Hostname(), ".blob.") || strings.Contains(u.Hostname(), ".servicebus."):
		return account{}, invalid("names the endpoint of another service")
	}
	if a.sas == "" && u.RawQuery != "" {
		a.sas = u.RawQuery
	}
	a.endpoint = &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: strings.TrimSuffix(u.Path, "/")}
	switch {
	case a.key != "" && a.name == "":
		return account{}, invalid("has an AccountKey and no AccountName")
	case a.key != "":
		if _, err := base64.StdEncoding.DecodeString(a.key); err != nil {
			return account{}, invalid("has an AccountKey that is not base64; it may have been cut off")
		}
		a.sas = ""
	case a.sas == "":
		return account{}, invalid("has neither AccountKey nor SharedAccessSignature")
	default:
		if query, err := url.ParseQuery(a.sas); err != nil || query.Get("sig") == "" {
			return account{}, invalid("has a SharedAccessSignature without a signature (sig=…)")
		}
	}
	return a, nil
}

// identity names a queue of the account; all else, such as credentials or the protocol, may change without it being
// another source.
func (a account) identity(queue string) string {
	host := a.endpoint.Host
	if port := a.endpoint.Port(); (a.endpoint.Scheme == "https" && port == "443") || (a.endpoint.Scheme == "http" && port == "80") {
		host = strings.TrimSuffix(host, ":"+port)
	}
	u := url.URL{Scheme: "azure-storage-queue", Host: host, Path: a.endpoint.Path + "/" + queue}
	return u.String()
}

func (a account) client(transport policy.Transporter) (*azqueue.ServiceClient, error) {
	opts := &azqueue.ClientOptions{}
	opts.Transport = transport
	opts.Retry = policy.RetryOptions{
		// One more try, and a short one, for what is over in a moment. Where the service asks for less (500, 503,
		// 429) it is up to the caller to slow down, so those are not tried again here.
		MaxRetries:    1,
		RetryDelay:    100 * time.Millisecond,
		MaxRetryDelay: time.Second,
		TryTimeout:    15 * time.Second,
		StatusCodes:   []int{408, 502, 504},
	}
	opts.Telemetry.ApplicationID = "lighterman"
	endpoint := a.endpoint.String() + "/"
	if a.key == "" {
		service, err := azqueue.NewServiceClientWithNoCredential(endpoint+"?"+a.sas, opts)
		if err != nil {
			return nil, fmt.Errorf("connection string: making a client of the shared access signature failed; %s: %w",
				wantConnectionString, lease.ErrInvalid)
		}
		return service, nil
	}
	credential, err := azqueue.NewSharedKeyCredential(a.name, a.key)
	if err != nil {
		return nil, fmt.Errorf("connection string has an AccountKey that is unusable; %s: %w", wantConnectionString, lease.ErrInvalid)
	}
	service, err := azqueue.NewServiceClientWithSharedKeyCredential(endpoint, credential, opts)
	if err != nil {
		return nil, fmt.Errorf("connection string: making a client of the account key failed; %s: %w",
			wantConnectionString, lease.ErrInvalid)
	}
	return service, nil
}
