package storagequeue

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// TestHungService cancels every kind of call while it waits for a service that does not answer.
func TestHungService(t *testing.T) {
	asked := make(chan struct{}, 100)
	end := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-end
	}))
	defer service.Close()
	defer close(end)
	s := newSource(t, Config{
		ConnectionString: "QueueEndpoint=" + service.URL + ";AccountName=" + servers.AzuriteAccount + ";AccountKey=" + servers.AzuriteKey,
		Queue:            "hung",
	})
	l := &lease.Lease{Message: lease.Message{ID: "id", Body: []byte("x")}, Receipt: "receipt"}
	// More than may be under way at once.
	leases := make([]*lease.Lease, 3*defaultConcurrency)
	for i := range leases {
		leases[i] = &lease.Lease{Message: l.Message, Receipt: l.Receipt}
	}

	for _, c := range []struct {
		name   string
		within time.Duration // what the call itself may take; what a busy machine may take comes on top
		do     func(context.Context) error
	}{
		{"Extend", 0, func(ctx context.Context) error { return errors.Join(s.Extend(ctx, []*lease.Lease{l})...) }},
		{"Complete", 0, func(ctx context.Context) error { return errors.Join(s.Complete(ctx, []*lease.Lease{l})...) }},
		{"Complete of many", 0, func(ctx context.Context) error { return errors.Join(s.Complete(ctx, leases)...) }},
		{"Requeue", 0, func(ctx context.Context) error { return errors.Join(s.Requeue(ctx, []lease.Return{{Lease: l}})...) }},
		{"Poison", 0, func(ctx context.Context) error { return errors.Join(s.Poison(ctx, []lease.Poisoned{{Lease: l}})...) }},
		{"Receive", grace, func(ctx context.Context) error { _, err := s.Receive(ctx, 1); return err }},
		{"Check", 0, s.Check},
		{"Backlog", 0, func(ctx context.Context) error { _, err := s.Backlog(ctx); return err }},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- c.do(ctx) }()
		<-asked
		start := time.Now()
		cancel()
		err := <-result
		took := time.Since(start)
		t.Logf("%s returned %s after it was cancelled", c.name, took)
		if most := c.within + 500*time.Millisecond; took > most {
			t.Errorf("%s returned %s after it was cancelled, want %s at most", c.name, took, most)
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", c.name, err)
		}
		for len(asked) > 0 { // by the other requests of a batch
			<-asked
		}
	}
	if l.Receipt != "receipt" {
		t.Errorf("the lease has receipt %q, want it as it was", l.Receipt)
	}
}
