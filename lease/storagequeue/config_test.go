package storagequeue

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/lighterman-dev/lighterman/lease"
)

// A made-up key; it opens nothing.
var key = base64.StdEncoding.EncodeToString([]byte("a made-up key, for tests alone"))

func TestNewRefuses(t *testing.T) {
	good := "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.windows.net"
	for name, test := range map[string]struct {
		config Config
		says   string
	}{
		"no queue":             {Config{ConnectionString: good}, `queue ""`},
		"short queue":          {Config{ConnectionString: good, Queue: "ab"}, `queue "ab"`},
		"capitals":             {Config{ConnectionString: good, Queue: "Tasks"}, `queue "Tasks"`},
		"two hyphens":          {Config{ConnectionString: good, Queue: "a--b"}, "single hyphens"},
		"underscore":           {Config{ConnectionString: good, Queue: "a_b"}, `queue "a_b"`},
		"long poison":          {Config{ConnectionString: good, Queue: strings.Repeat("q", 60)}, "poison queue"},
		"poison is the queue":  {Config{ConnectionString: good, Queue: "tasks", PoisonQueue: "tasks"}, "queue itself"},
		"short lease":          {Config{ConnectionString: good, Queue: "tasks", LeaseDuration: time.Millisecond}, "1ms"},
		"long lease":           {Config{ConnectionString: good, Queue: "tasks", LeaseDuration: 200 * time.Hour}, "200h"},
		"negative concurrency": {Config{ConnectionString: good, Queue: "tasks", Concurrency: -1}, "-1"},
		"empty":                {Config{Queue: "tasks"}, "is empty"},
		"only a key":           {Config{ConnectionString: key, Queue: "tasks"}, "AccountName"},
		"bare words":           {Config{ConnectionString: "hello;" + key, Queue: "tasks"}, "key=value"},
		"no account":           {Config{ConnectionString: "AccountKey=" + key, Queue: "tasks"}, "AccountName"},
		"no key":               {Config{ConnectionString: "AccountName=acct", Queue: "tasks"}, "AccountKey"},
		"cut key":              {Config{ConnectionString: "AccountName=acct;AccountKey=" + key[:len(key)-1], Queue: "tasks"}, "base64"},
		"key as account":       {Config{ConnectionString: "AccountName=" + key + "/x y%;AccountKey=" + key, Queue: "tasks"}, "URL"},
		"protocol":             {Config{ConnectionString: "DefaultEndpointsProtocol=ftp;" + good[len("DefaultEndpointsProtocol=https;"):], Queue: "tasks"}, "https"},
		"another service":      {Config{ConnectionString: "QueueEndpoint=https://acct.blob.core.windows.net;AccountName=acct;AccountKey=" + key, Queue: "tasks"}, "another service"},
		"no signature":         {Config{ConnectionString: "QueueEndpoint=https://acct.queue.core.windows.net;SharedAccessSignature=" + key, Queue: "tasks"}, "sig="},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(test.config)
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
	for name, test := range map[string]struct{ connection, want string }{
		"public cloud": {
			"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.windows.net",
			"azure-storage-queue://acct.queue.core.windows.net/tasks",
		},
		"only what is needed": {"AccountName=acct;AccountKey=" + key, "azure-storage-queue://acct.queue.core.windows.net/tasks"},
		"endpoint": {
			"QueueEndpoint=HTTPS://Acct.queue.core.windows.net:443/;AccountName=acct;AccountKey=" + key,
			"azure-storage-queue://acct.queue.core.windows.net/tasks",
		},
		"signature": {
			"QueueEndpoint=https://acct.queue.core.windows.net/;SharedAccessSignature=?sv=1&sig=abc%3D",
			"azure-storage-queue://acct.queue.core.windows.net/tasks",
		},
		"emulator": {"UseDevelopmentStorage=true", "azure-storage-queue://127.0.0.1:10001/devstoreaccount1/tasks"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, Config{ConnectionString: test.connection, Queue: "tasks"})
			if got := s.Identity(); got != test.want {
				t.Errorf("Identity() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestLeaseDurationIsRoundedUp(t *testing.T) {
	s := newSource(t, Config{ConnectionString: "UseDevelopmentStorage=true", Queue: "tasks", LeaseDuration: 1500 * time.Millisecond})
	if s.lease != 2*time.Second {
		t.Errorf("a lease lasts %s, want 2s", s.lease)
	}
	if s.poisonName != "tasks-poison" {
		t.Errorf("the poison queue is %q, want tasks-poison", s.poisonName)
	}
}

func TestClassification(t *testing.T) {
	for name, test := range map[string]struct {
		status    int
		code      string
		of        func(string, error) error
		want      error
		wantClass string
	}{
		"receipt of Azurite":     {400, "PopReceiptMismatch", wrapLease, lease.ErrLost, "lost"},
		"receipt of the service": {404, "MessageNotFound", wrapLease, lease.ErrLost, "lost"},
		"404 without a code":     {404, "", wrapLease, lease.ErrLost, "lost"},
		"queue":                  {404, "QueueNotFound", wrap, lease.ErrNotFound, "not_found"},
		"key":                    {403, "AuthenticationFailed", wrap, lease.ErrUnauthorized, "unauthorized"},
		"role":                   {403, "AuthorizationPermissionMismatch", wrap, lease.ErrUnauthorized, "unauthorized"},
		"no credentials":         {401, "NoAuthenticationInformation", wrap, lease.ErrUnauthorized, "unauthorized"},
		"busy":                   {503, "ServerBusy", wrap, lease.ErrThrottled, "throttled"},
		"overloaded":             {500, "OperationTimedOut", wrap, lease.ErrThrottled, "throttled"},
		"too many":               {429, "TooManyRequests", wrapLease, lease.ErrThrottled, "throttled"},
		"name":                   {400, "InvalidResourceName", wrap, lease.ErrInvalid, "invalid"},
		"anything else":          {409, "QueueBeingDeleted", wrap, nil, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.of("testing", &azcore.ResponseError{
				StatusCode: test.status, ErrorCode: test.code, RawResponse: &http.Response{StatusCode: test.status},
			})
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%v is not %v", err, test.want)
			}
			if got := lease.Class(err); got != test.wantClass {
				t.Errorf("Class = %q, want %q", got, test.wantClass)
			}
		})
	}
}

func FuzzConnectionString(f *testing.F) {
	f.Add("DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.windows.net")
	f.Add("QueueEndpoint=https://acct.queue.core.windows.net/;SharedAccessSignature=sv=1&sig=abc%3D")
	f.Add("UseDevelopmentStorage=true")
	f.Add(";;=;AccountKey==")
	f.Fuzz(func(t *testing.T, s string) {
		source, err := New(Config{ConnectionString: s, Queue: "tasks"})
		if err != nil {
			if !errors.Is(err, lease.ErrInvalid) {
				t.Errorf("%v is not lease.ErrInvalid", err)
			}
			return
		}
		defer func() { _ = source.Close() }()
		if id := source.Identity(); !strings.HasPrefix(id, "azure-storage-queue://") || !strings.HasSuffix(id, "/tasks") {
			t.Errorf("Identity() = %q", id)
		}
	})
}
