package eventhubs

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// Made-up secrets; they open nothing.
var (
	key       = base64.StdEncoding.EncodeToString([]byte("a made-up key, for tests alone"))
	hubs      = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=all;SharedAccessKey=" + key
	signed    = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature sr=ns&sig=" + key + "&se=1&skn=all"
	account   = "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.windows.net"
	emulators = "Endpoint=sb://localhost;SharedAccessKeyName=x;SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true"
)

func TestNewRefuses(t *testing.T) {
	good := Config{ConnectionString: hubs, EventHub: "orders", PoisonQueue: "orders-poison", CheckpointConnectionString: account}
	for name, test := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"no hub":            {func(c *Config) { c.EventHub = "" }, `event hub ""`},
		"hub with a slash":  {func(c *Config) { c.EventHub = "a/b" }, `event hub "a/b"`},
		"long hub":          {func(c *Config) { c.EventHub = strings.Repeat("h", 257) }, "256"},
		"group":             {func(c *Config) { c.ConsumerGroup = "$default2" }, `consumer group "$default2"`},
		"long group":        {func(c *Config) { c.ConsumerGroup = strings.Repeat("g", 51) }, "50"},
		"container":         {func(c *Config) { c.CheckpointContainer = "$root" }, `checkpoint container "$root"`},
		"two hyphens":       {func(c *Config) { c.CheckpointContainer = "a--b" }, "single hyphens"},
		"poison queue":      {func(c *Config) { c.PoisonQueue = "Poison" }, `poison queue "Poison"`},
		"poison hub":        {func(c *Config) { c.PoisonQueue, c.PoisonEventHub = "", "a b" }, `poison event hub "a b"`},
		"poison is the hub": {func(c *Config) { c.PoisonQueue, c.PoisonEventHub = "", "Orders" }, "event hub itself"},
		"two poisons":       {func(c *Config) { c.PoisonEventHub, c.PoisonQueue = "a", "abc" }, "choose one"},
		"short lease":       {func(c *Config) { c.LeaseDuration = time.Millisecond }, "1ms"},
		"negative level":    {func(c *Config) { c.Level = -1 }, "-1"},
		"owner":             {func(c *Config) { c.Owner = "ö" }, "ASCII"},
		"two starts":        {func(c *Config) { c.Start = partitioned.StartPosition{Latest: true, At: time.Now()} }, "choose one"},

		"empty":           {func(c *Config) { c.ConnectionString = " " }, "connection string is empty"},
		"only a key":      {func(c *Config) { c.ConnectionString = key }, "key=value"},
		"bare words":      {func(c *Config) { c.ConnectionString = "hello;" + hubs }, "key=value"},
		"storage account": {func(c *Config) { c.ConnectionString = account }, "belongs in the checkpoint connection string"},
		"an URL":          {func(c *Config) { c.ConnectionString = "redis://:" + key + "@host" }, "key=value"},
		"scheme":          {func(c *Config) { c.ConnectionString = strings.Replace(hubs, "sb:", "https:", 1) }, "sb://host/"},
		"no host":         {func(c *Config) { c.ConnectionString = strings.Replace(hubs, "ns.servicebus.windows.net", "", 1) }, "host is none"},
		"user":            {func(c *Config) { c.ConnectionString = strings.Replace(hubs, "ns.", key+"@ns.", 1) }, "sb://host/"},
		"port":            {func(c *Config) { c.ConnectionString = strings.Replace(hubs, ".net/", ".net:99999/", 1) }, "port"},
		"path":            {func(c *Config) { c.ConnectionString = strings.Replace(hubs, ".net/", ".net/orders", 1) }, "sb://host/"},
		"blob endpoint":   {func(c *Config) { c.ConnectionString = strings.Replace(hubs, "servicebus", "blob", 1) }, "endpoint of a storage account"},
		"no key":          {func(c *Config) { c.ConnectionString = strings.TrimSuffix(hubs, key) }, "neither SharedAccessKey nor"},
		"no key name":     {func(c *Config) { c.ConnectionString = strings.Replace(hubs, "=all", "=", 1) }, "no SharedAccessKeyName"},
		"cut key":         {func(c *Config) { c.ConnectionString = hubs[:len(hubs)-1] }, "base64"},
		"bad signature":   {func(c *Config) { c.ConnectionString = strings.Replace(signed, "&sig=", "&s=", 1) }, "sig="},
		"signature of storage": {func(c *Config) {
			c.ConnectionString = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessSignature=?sv=1&sig=" + key
		}, "sr="},
		"emulator":        {func(c *Config) { c.ConnectionString = hubs + ";UseDevelopmentEmulator=maybe" }, "neither true nor false"},
		"another hub":     {func(c *Config) { c.ConnectionString = hubs + ";EntityPath=" + key }, `another event hub than "orders"`},
		"no checkpoints":  {func(c *Config) { c.CheckpointConnectionString = "" }, "checkpoint connection string is empty"},
		"hub for storage": {func(c *Config) { c.CheckpointConnectionString = hubs }, "checkpoint connection string is one of Event Hubs"},
		"queues for blobs": {func(c *Config) {
			c.CheckpointConnectionString = account + ";BlobEndpoint=https://acct.queue.core.windows.net"
		}, "another service"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			test.change(&c)
			_, err := New(c)
			if !errors.Is(err, lease.ErrInvalid) {
				t.Fatalf("New: %v, want lease.ErrInvalid", err)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("New: %v; want it to speak of %q", err, test.says)
			}
			if strings.Contains(err.Error(), key[:12]) {
				t.Errorf("New tells the key: %v", err)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	for name, test := range map[string]struct {
		connection, group, want string
	}{
		"key":       {hubs, "", "azure-event-hubs://ns.servicebus.windows.net/orders?group=%24default"},
		"signature": {signed, "", "azure-event-hubs://ns.servicebus.windows.net/orders?group=%24default"},
		"entity":    {hubs + ";EntityPath=ORDERS;", "$DEFAULT", "azure-event-hubs://ns.servicebus.windows.net/orders?group=%24default"},
		"untidy":    {" " + strings.Replace(strings.Replace(hubs, "sb://ns", " SB://NS", 1), ".net/", ".net:5671", 1) + " ; ", "Mine", "azure-event-hubs://ns.servicebus.windows.net/orders?group=mine"},
		"port":      {strings.Replace(hubs, ".net/", ".net:443/", 1), "", "azure-event-hubs://ns.servicebus.windows.net:443/orders?group=%24default"},
		"emulator":  {emulators, "", "azure-event-hubs://localhost/orders?group=%24default"},
		"IPv6":      {strings.Replace(emulators, "localhost", "[::1]:5673", 1), "", "azure-event-hubs://[::1]:5673/orders?group=%24default"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, Config{ConnectionString: test.connection, EventHub: "Orders", PoisonQueue: "orders-poison", ConsumerGroup: test.group, CheckpointConnectionString: account})
			if got := s.Identity(); got != test.want {
				t.Errorf("Identity() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestServerName(t *testing.T) {
	n, err := parseConnectionString(strings.Replace(hubs, ".net/", ".net:443/", 1), "orders")
	must(t, err)
	if got := n.tls().ServerName; got != "ns.servicebus.windows.net" {
		t.Errorf("the certificate is to be of %q", got)
	}
	if n, err = parseConnectionString(emulators, "orders"); err != nil || n.tls() != nil {
		t.Errorf("an emulator is to have TLS, or %v", err)
	}
}

func TestDefaults(t *testing.T) {
	s, err := Config{ConnectionString: hubs, EventHub: "orders", PoisonQueue: "orders-poison", CheckpointConnectionString: account}.settings()
	must(t, err)
	if s.ConsumerGroup != "$Default" || s.CheckpointContainer != "lighterman-checkpoints" || s.LeaseDuration != 2*time.Minute {
		t.Errorf("the defaults are %+v", s.Config)
	}
	other, err := Config{ConnectionString: hubs, EventHub: "orders", PoisonQueue: "orders-poison", CheckpointConnectionString: account}.settings()
	must(t, err)
	if s.Owner == other.Owner {
		t.Errorf("two sources have the same owner %q", s.Owner)
	}
}

func FuzzConnectionString(f *testing.F) {
	for _, s := range []string{hubs, signed, emulators, account, ";;=;Endpoint=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		source, err := New(Config{ConnectionString: s, EventHub: "orders", PoisonQueue: "orders-poison", CheckpointConnectionString: account})
		if err != nil {
			if !errors.Is(err, lease.ErrInvalid) {
				t.Errorf("%v is not lease.ErrInvalid", err)
			}
			return
		}
		defer func() { _ = source.Close() }()
		if id := source.Identity(); !strings.HasPrefix(id, "azure-event-hubs://") || !strings.HasSuffix(id, "/orders?group=%24default") {
			t.Errorf("Identity() = %q", id)
		}
	})
}
