package storagequeue

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/sas"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// behindProxy is a queue, and a source whose requests go through a proxy.
func behindProxy(t *testing.T, azurite *servers.Azurite, name string, concurrency int) (func(...string), func() []string, *Source, *proxy) {
	t.Helper()
	q := newQueue(t, azurite, name)
	p := newProxy(t, azurite)
	s := newSource(t, Config{ConnectionString: p.connection, Queue: name, LeaseDuration: time.Hour, Concurrency: concurrency})
	return func(b ...string) { q.Send(t, b...) }, func() []string { return q.Poisoned(t) }, s, p
}

func one(t *testing.T, s *Source) []*lease.Lease {
	t.Helper()
	leases, err := s.Receive(t.Context(), 1)
	if err != nil || len(leases) != 1 {
		t.Fatalf("Receive = %d messages, %v; want 1", len(leases), err)
	}
	return leases
}

func TestFaults(t *testing.T) {
	azurite := servers.RunAzurite(t, servers.AzuriteOptions{InMemory: true})

	t.Run("throttling tells how long to wait", func(t *testing.T) {
		_, _, s, p := behindProxy(t, azurite, "throttled", 1)
		p.refuse(func(*http.Request) bool { return true })
		_, err := s.Receive(t.Context(), 1)
		if !errors.Is(err, lease.ErrThrottled) {
			t.Fatalf("Receive: %v, want lease.ErrThrottled", err)
		}
		if got := lease.RetryAfter(err); got != 7*time.Second {
			t.Errorf("RetryAfter(%v) = %s, want 7s", err, got)
		}
	})

	t.Run("an extension whose answer got lost loses the lease", func(t *testing.T) {
		send, _, s, p := behindProxy(t, azurite, "lost-update", 1)
		send("x")
		leases := one(t, s)
		p.loseAnswer(func(r *http.Request) bool { return r.Method == http.MethodPut })
		errs := s.Extend(t.Context(), leases)
		if len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
			t.Errorf("Extend = %v, want lease.ErrLost: the receipt is unknown", errs)
		}
	})

	t.Run("a completion whose answer got lost is done", func(t *testing.T) {
		send, _, s, p := behindProxy(t, azurite, "lost-delete", 1)
		send("x")
		leases := one(t, s)
		p.loseAnswer(func(r *http.Request) bool { return r.Method == http.MethodDelete })
		if errs := s.Complete(t.Context(), leases); len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
			t.Errorf("Complete = %v, want lease.ErrLost", errs)
		}
		if b, err := s.Backlog(t.Context()); err != nil || b.Messages != 0 {
			t.Errorf("Backlog = %+v, %v; want none", b, err)
		}
	})

	t.Run("a poison copy is made once although the delete fails", func(t *testing.T) {
		send, poisoned, s, p := behindProxy(t, azurite, "copied-once", 1)
		send("x")
		leases := one(t, s)
		p.refuse(func(r *http.Request) bool { return r.Method == http.MethodDelete })
		move := []lease.Poisoned{{Lease: leases[0], Reason: "for a test"}}
		for range 3 {
			if errs := s.Poison(t.Context(), move); len(errs) != 1 || !errors.Is(errs[0], lease.ErrThrottled) {
				t.Fatalf("Poison = %v, want lease.ErrThrottled", errs)
			}
			if errs := s.Extend(t.Context(), leases); errs != nil {
				t.Fatalf("Extend = %v", errs)
			}
		}
		p.refuse(func(*http.Request) bool { return false })
		if errs := s.Poison(t.Context(), move); errs != nil {
			t.Fatalf("Poison = %v", errs)
		}
		if got := poisoned(); !slices.Equal(got, []string{"x"}) {
			t.Errorf("the poison queue holds %q, want one copy", got)
		}
		if b, err := s.Backlog(t.Context()); err != nil || b.Messages != 0 {
			t.Errorf("Backlog = %+v, %v; want none", b, err)
		}
	})

	t.Run("an idle queue is asked once", func(t *testing.T) {
		send, _, s, p := behindProxy(t, azurite, "idle", 4)
		var requests atomic.Int64
		p.refuse(func(r *http.Request) bool {
			if r.Method == http.MethodGet {
				requests.Add(1)
			}
			return false
		})
		for _, step := range []struct {
			send           int
			received, asks int64
		}{
			{send: 0, received: 0, asks: 1},
			{send: 10, received: 10, asks: 1},
			{send: 128, received: 128, asks: 4}, // the first was full, so the others went out
			{send: 0, received: 0, asks: 4},     // the queue had been giving full answers
			{send: 0, received: 0, asks: 1},
		} {
			send(slices.Repeat([]string{"x"}, step.send)...)
			requests.Store(0)
			leases, err := s.Receive(t.Context(), 1000)
			if err != nil || int64(len(leases)) != step.received || requests.Load() != step.asks {
				t.Fatalf("Receive = %d messages by %d requests, %v; want %d by %d",
					len(leases), requests.Load(), err, step.received, step.asks)
			}
			s.Complete(t.Context(), leases)
		}
	})

	t.Run("part of a receive fails", func(t *testing.T) {
		send, _, s, p := behindProxy(t, azurite, "part", 4)
		send(slices.Repeat([]string{"x"}, 96)...)
		var n atomic.Int64
		p.refuse(func(r *http.Request) bool { return r.Method == http.MethodGet && n.Add(1) == 2 })
		leases, err := s.Receive(t.Context(), 96)
		if len(leases) != 64 || !errors.Is(err, lease.ErrThrottled) {
			t.Fatalf("Receive = %d messages, %v; want the 64 of the requests that went well, and lease.ErrThrottled", len(leases), err)
		}
		if errs := s.Extend(t.Context(), leases); errs != nil {
			t.Errorf("Extend: %v", errors.Join(errs...))
		}
	})

	t.Run("messages of a slow answer are not dropped on cancellation", func(t *testing.T) {
		send, _, s, p := behindProxy(t, azurite, "slow", 1)
		send("x")
		ctx, cancel := context.WithCancel(t.Context())
		p.set(func(w http.ResponseWriter, r *http.Request, forward http.Handler) {
			if r.Method == http.MethodGet {
				cancel()
			}
			forward.ServeHTTP(w, r)
		})
		leases, err := s.Receive(ctx, 1)
		if len(leases) != 1 || err != nil {
			t.Errorf("Receive = %d messages, %v; want the one that was leased by then", len(leases), err)
		}
	})

	t.Run("a queue that is deleted takes its leases along", func(t *testing.T) {
		send, _, s, _ := behindProxy(t, azurite, "deleted", 1)
		send("x")
		leases := one(t, s)
		if _, err := newClient(t, azurite, "deleted").Delete(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if errs := s.Extend(t.Context(), leases); len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
			t.Errorf("Extend = %v, want lease.ErrLost", errs)
		}
	})

	t.Run("a shared access signature will do, and stays secret", func(t *testing.T) {
		newQueue(t, azurite, "signed").Send(t, "x")
		credential, err := azqueue.NewSharedKeyCredential(servers.AzuriteAccount, servers.AzuriteKey)
		if err != nil {
			t.Fatal(err)
		}
		query, err := sas.QueueSignatureValues{
			Version: sas.Version, Protocol: sas.ProtocolHTTPSandHTTP, QueueName: "signed",
			ExpiryTime:  time.Now().Add(time.Hour).UTC(),
			Permissions: (&sas.QueuePermissions{Read: true, Update: true, Process: true}).String(),
		}.SignWithSharedKey(credential)
		if err != nil {
			t.Fatal(err)
		}
		connection := func(endpoint, signature string) string {
			return "QueueEndpoint=" + endpoint + ";SharedAccessSignature=" + signature
		}
		s := newSource(t, Config{ConnectionString: connection(azurite.QueueEndpoint(), query.Encode()), Queue: "signed"})
		if errs := s.Complete(t.Context(), one(t, s)); errs != nil {
			t.Errorf("Complete: %v", errs)
		}
		for name, connection := range map[string]string{
			"refused":   connection(azurite.QueueEndpoint(), strings.Replace(query.Encode(), "sp=rup", "sp=ru", 1)),
			"not there": connection("http://127.0.0.1:1/"+servers.AzuriteAccount, query.Encode()),
		} {
			bad := newSource(t, Config{ConnectionString: connection, Queue: "signed"})
			_, err := bad.Receive(t.Context(), 1)
			if err == nil || strings.Contains(err.Error(), "sig=") || strings.Contains(err.Error(), query.Signature()) {
				t.Errorf("%s: %v; want an error without the signature", name, err)
			}
		}
	})
}
