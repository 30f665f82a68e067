package storagequeue

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"go.uber.org/goleak"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	t.Run("azurite", func(t *testing.T) {
		shared := servers.RunAzurite(t, servers.AzuriteOptions{InMemory: true})
		var n atomic.Int64
		name := func() string { return fmt.Sprintf("queue-%d", n.Add(1)) }
		leasetest.Run(t, leasetest.Harness{
			Lease:   time.Second,
			MaxBody: 64 * 1024,
			// Every update makes a new pop receipt.
			ReceiptsChange: true,
			NewQueue:       func(t leasetest.T) leasetest.Queue { return newQueue(t, shared, name()) },
			NewRestartable: func(t leasetest.T) leasetest.Queue {
				own := servers.RunAzurite(t, servers.AzuriteOptions{})
				q := newQueue(t, own, name())
				q.Restart = func(t leasetest.T) {
					if err := own.Restart(t.Context()); err != nil {
						t.Fatalf("%v", err)
					}
				}
				return q
			},
			Missing: func(t leasetest.T) lease.Source {
				return newSource(t, Config{ConnectionString: shared.ConnectionString(), Queue: name()})
			},
			WrongCredentials: func(t leasetest.T) (lease.Source, string) {
				wrong := base64.StdEncoding.EncodeToString([]byte("not the key"))
				return newSource(t, Config{
					ConnectionString: strings.Replace(shared.ConnectionString(), servers.AzuriteKey, wrong, 1),
					Queue:            name(),
				}), wrong
			},
			NotApplicable: map[string]string{
				"Unreadable": "whatever a queue holds is text, and all text can be handed out",
			},
		})
	})
}

func newSource(t leasetest.T, c Config) *Source {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// newClient is a client as producers and people have it.
func newClient(t leasetest.T, azurite *servers.Azurite, queue string) *azqueue.QueueClient {
	t.Helper()
	transport := azstorage.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	opts := &azqueue.ClientOptions{}
	opts.Transport = &http.Client{Transport: transport}
	client, err := azqueue.NewQueueClientFromConnectionString(azurite.ConnectionString(), queue, opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return client
}

func newQueue(t leasetest.T, azurite *servers.Azurite, name string) leasetest.Queue {
	t.Helper()
	queue, poison := newClient(t, azurite, name), newClient(t, azurite, name+"-poison")
	if _, err := queue.Create(t.Context(), nil); err != nil {
		t.Fatalf("creating queue %s: %v", name, err)
	}
	return leasetest.Queue{
		Source: func(t leasetest.T, d time.Duration) lease.Source {
			return newSource(t, Config{ConnectionString: azurite.ConnectionString(), Queue: name, LeaseDuration: d})
		},
		Send: func(t leasetest.T, bodies ...string) {
			for _, body := range bodies {
				if _, err := queue.EnqueueMessage(t.Context(), body, nil); err != nil {
					t.Fatalf("sending: %v", err)
				}
			}
		},
		Poisoned: func(t leasetest.T) []string {
			peeked, err := poison.PeekMessages(t.Context(), &azqueue.PeekMessagesOptions{NumberOfMessages: to.Ptr(int32(32))})
			if err != nil {
				if lease.Class(wrap("", err)) == "not_found" {
					return nil
				}
				t.Fatalf("looking into the poison queue: %v", err)
			}
			var bodies []string
			for _, m := range peeked.Messages {
				bodies = append(bodies, *m.MessageText)
			}
			return bodies
		},
		BrokenPoison: func(t leasetest.T, d time.Duration) lease.Source {
			p := newProxy(t, azurite)
			p.refuse(func(r *http.Request) bool { return strings.Contains(r.URL.Path, name+"-poison") })
			return newSource(t, Config{ConnectionString: p.connection, Queue: name, LeaseDuration: d})
		},
	}
}

// proxy stands between a source and Azurite, and makes requests fail.
type proxy struct {
	connection string
	hook       atomic.Pointer[func(w http.ResponseWriter, r *http.Request, forward http.Handler)]
}

func newProxy(t leasetest.T, azurite *servers.Azurite) *proxy {
	t.Helper()
	target, err := url.Parse(azurite.QueueEndpoint())
	if err != nil {
		t.Fatalf("%v", err)
	}
	transport := azstorage.NewTransport()
	forward := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
		Transport: transport,
	}
	p := &proxy{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hook := p.hook.Load(); hook != nil {
			(*hook)(w, r, forward)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	p.connection = strings.Replace(azurite.ConnectionString(), azurite.QueueEndpoint(), server.URL+target.Path, 1)
	return p
}

func (p *proxy) set(hook func(w http.ResponseWriter, r *http.Request, forward http.Handler)) {
	p.hook.Store(&hook)
}

// refuse answers the requests that match as an overloaded service does.
func (p *proxy) refuse(match func(*http.Request) bool) {
	p.set(func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		if !match(r) {
			forward.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Retry-After", "7")
		w.Header().Set("x-ms-error-code", "ServerBusy")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
}

// loseAnswer lets the first request that matches take effect, and then breaks the connection.
func (p *proxy) loseAnswer(match func(*http.Request) bool) {
	var lost atomic.Bool
	p.set(func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
		if !match(r) || lost.Swap(true) {
			forward.ServeHTTP(w, r)
			return
		}
		forward.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
}
