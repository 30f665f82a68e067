package redisstreams

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// soon is how fast a call must return once its context was cancelled, with something on top for a busy machine.
const soon = grace + 500*time.Millisecond

// TestHungServer cancels every kind of call while it waits for a server that does not answer.
func TestHungServer(t *testing.T) {
	t.Run("in the handshake", func(t *testing.T) {
		t.Parallel()
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // whoever connects waits in the backlog
		s, err := New(Config{ConnectionString: "redis://" + l.Addr().String(), Stream: "hung"})
		if err != nil {
			t.Fatal(err)
		}
		cancelCalls(t, s, []*lease.Lease{{Message: lease.Message{ID: "1-1"}, Receipt: "1"}})
		closeSoon(t, s)
	})

	t.Run("in a command", func(t *testing.T) {
		t.Parallel()
		server := servers.RunRedis(t, servers.RedisOptions{})
		s, client := onRedis(t, server, "hung", time.Hour)
		send(t, client, "hung", "a")
		leases := receiveAll(t, s, 1)
		pause(t, client)
		cancelCalls(t, s, leases)
		closeSoon(t, s)
	})
}

// pause makes the server leave everybody without an answer for longer than any test of it lasts.
func pause(t *testing.T, client *redis.Client) {
	t.Helper()
	if err := client.Do(t.Context(), "CLIENT", "PAUSE", "60000", "ALL").Err(); err != nil {
		t.Fatal(err)
	}
}

func cancelCalls(t *testing.T, s *Source, leases []*lease.Lease) {
	l := leases[0]
	deadline := l.Deadline()
	for _, c := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"Extend", func(ctx context.Context) error { return errors.Join(s.Extend(ctx, leases)...) }},
		{"Complete", func(ctx context.Context) error { return errors.Join(s.Complete(ctx, leases)...) }},
		{"Requeue", func(ctx context.Context) error { return errors.Join(s.Requeue(ctx, []lease.Return{{Lease: l}})...) }},
		{"Poison", func(ctx context.Context) error { return errors.Join(s.Poison(ctx, []lease.Poisoned{{Lease: l}})...) }},
		{"Poison of many fields", func(ctx context.Context) error { return s.poisonLarge(ctx, lease.Poisoned{Lease: l}) }},
		{"Receive", func(ctx context.Context) error { _, err := s.Receive(ctx, 1); return err }},
		{"Check", s.Check},
		{"Backlog", func(ctx context.Context) error { _, err := s.Backlog(ctx); return err }},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		var cancelled time.Time
		timer := time.AfterFunc(100*time.Millisecond, func() { cancelled = time.Now(); cancel() })
		err := c.do(ctx)
		returned := time.Now()
		timer.Stop()
		<-ctx.Done()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", c.name, err)
		}
		took := returned.Sub(cancelled)
		t.Logf("%s returned %s after it was cancelled", c.name, took)
		if took > soon {
			t.Errorf("%s returned %s after it was cancelled, want %s at most", c.name, took, soon)
		}
	}
	// What became of the calls is unknown, so the lease must be as it was.
	if l.Receipt != "1" || !l.Deadline().Equal(deadline) {
		t.Errorf("the lease has receipt %q and deadline %s; want 1 and %s", l.Receipt, l.Deadline(), deadline)
	}
}

func closeSoon(t *testing.T, s *Source) {
	t.Helper()
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	took := time.Since(start)
	t.Logf("Close took %s", took)
	if took > soon {
		t.Errorf("Close took %s, want %s at most", took, soon)
	}
}

// TestReceiveGivesUp bounds a Receive that nobody cancels.
func TestReceiveGivesUp(t *testing.T) {
	t.Parallel()
	server := servers.RunRedis(t, servers.RedisOptions{})
	s, client := onRedis(t, server, "hung", time.Hour)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause(t, client)
	start := time.Now()
	_, err := s.Receive(t.Context(), 1)
	took := time.Since(start)
	t.Logf("Receive gave up after %s: %v", took, err)
	if err == nil || took > maxBlock+answerTime+500*time.Millisecond {
		t.Errorf("Receive = %v after %s; want an error after %s", err, took, maxBlock+answerTime)
	}
}

// TestCancelledCallLater looks at what the server does, once it answers again, with calls whose callers have left.
func TestCancelledCallLater(t *testing.T) {
	t.Parallel()
	server := servers.RunRedis(t, servers.RedisOptions{})
	s, client := onRedis(t, server, "later", time.Hour)
	send(t, client, "later", "a", "b")
	leases := receiveAll(t, s, 2)
	if err := client.Do(t.Context(), "CLIENT", "PAUSE", "2000", "ALL").Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if errs := s.Complete(ctx, leases[:1]); len(errs) != 1 || !errors.Is(errs[0], context.DeadlineExceeded) {
		t.Fatalf("Complete = %v, want context.DeadlineExceeded", errs)
	}
	// The next try waits for the server. It finds the message completed, or completes it.
	if errs := s.Complete(t.Context(), leases[:1]); errs != nil && !errors.Is(errs[0], lease.ErrLost) {
		t.Errorf("Complete again = %v, want lease.ErrLost or nothing", errs)
	}
	if errs := s.Complete(t.Context(), leases[1:]); errs != nil {
		t.Errorf("Complete of another = %v", errs)
	}
	wantBacklog(t, s, lease.Backlog{})
}

func TestAwait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	got, err := await(ctx, func() (string, error) { return "answer", errors.ErrUnsupported })
	if got != "answer" || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("await = %q, %v; want what the call returned", got, err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if got, err := await(ctx, func() (string, error) { <-release; return "late", nil }); got != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("await = %q, %v; want nothing but context.Canceled", got, err)
	}
	called := false
	if _, err := await(ctx, func() (string, error) { called = true; return "", nil }); called || !errors.Is(err, context.Canceled) {
		t.Errorf("await after the end: called = %t, %v; want no call", called, err)
	}
}
