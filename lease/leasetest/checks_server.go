package leasetest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

func checkPoisonMove(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 10*h.Lease)
	sent := []string{"good", "bad <&> \"$(X)\" ü\n", "worse"}
	q.Send(t, sent...)
	var good, bad []*lease.Lease
	for _, l := range receive(t, s, 3, patience) {
		if string(l.Body) == "good" {
			good = append(good, l)
		} else {
			bad = append(bad, l)
		}
	}
	succeed(t, "Poison", s.Poison(t.Context(), poisons(bad)))
	got := q.Poisoned(t)
	slices.Sort(got)
	if want := sent[1:]; !slices.Equal(got, want) {
		t.Errorf("the poison queue holds %q, want %q", got, want)
	}
	backlog(t, s, 1)
	succeed(t, "Complete", s.Complete(t.Context(), good))
	gone(t, s)
}

func checkPoisonConfirmedFirst(t T, h Harness) {
	q := h.NewQueue(t)
	broken := q.BrokenPoison(t, h.Lease)
	q.Send(t, "precious")
	leases := receive(t, broken, 1, patience)
	errs := broken.Poison(t.Context(), poisons(leases))
	if len(errs) != 1 || errs[0] == nil {
		t.Fatalf("Poison without a poison queue = %v, want an error", errs)
	}
	if errors.Is(errs[0], lease.ErrLost) {
		t.Errorf("Poison without a poison queue: %v; the lease is not lost", errs[0])
	}
	s := q.Source(t, h.Lease)
	backlog(t, s, 1)
	// The message is still leased, and comes back like any other.
	again := receive(t, s, 1, h.Lease+patience)[0]
	if string(again.Body) != "precious" {
		t.Errorf("the message came back as %s", brief(string(again.Body)))
	}
	succeed(t, "Complete", s.Complete(t.Context(), []*lease.Lease{again}))
	gone(t, s)
}

func checkBacklog(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	if b := backlog(t, s, 0); b.Leased > 0 {
		t.Errorf("an empty queue has Backlog().Leased = %d", b.Leased)
	}
	q.Send(t, "a", "b", "c", "d", "e")
	backlog(t, s, 5)
	leases := receive(t, s, 3, patience)
	b := backlog(t, s, 5)
	if b.Leased != 3 && b.Leased != -1 {
		t.Errorf("Backlog().Leased = %d with 3 of 5 messages leased, want 3 or -1 for unknown", b.Leased)
	}
	// Not in order, and with the latest among them: that is when some servers lose count.
	succeed(t, "Complete", s.Complete(t.Context(), leases[2:]))
	backlog(t, s, 4)
	succeed(t, "Requeue", s.Requeue(t.Context(), []lease.Return{{Lease: leases[0], Delay: 10 * h.Lease}}))
	backlog(t, s, 4)
	succeed(t, "Poison", s.Poison(t.Context(), poisons(leases[1:2])))
	backlog(t, s, 3)
	succeed(t, "Complete", s.Complete(t.Context(), receive(t, s, 2, patience)))
	backlog(t, s, 1)
}

func checkServerRestart(t T, h Harness) {
	q := h.NewRestartable(t)
	s := q.Source(t, 10*h.Lease)
	q.Send(t, "a", "b", "c", "d", "e")
	held := receive(t, s, 2, patience)
	q.Restart(t)
	// The same source recovers by itself; the first calls may still meet broken connections.
	eventually(t, func() error { return s.Check(t.Context()) })
	succeed(t, "Extend of leases from before the restart", s.Extend(t.Context(), held))
	rest := receive(t, s, 3, patience)
	for _, l := range rest {
		for _, before := range held {
			if l.ID == before.ID {
				t.Errorf("message %s was leased a second time after the restart", l.ID)
			}
		}
	}

	// While the server is away, calls fail and end; nothing hangs, and nothing is taken for lost.
	backlog(t, s, 5)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for range 20 {
			if _, err := s.Backlog(ctx); errors.Is(err, lease.ErrNotFound) {
				t.Errorf("Backlog during a restart: %v", err)
			}
			if !h.ReceiptsChange {
				if errs := s.Extend(ctx, held[:1]); len(errs) > 0 && errors.Is(errs[0], lease.ErrLost) {
					t.Errorf("Extend during a restart: %v", errs[0])
				}
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}()
	q.Restart(t)
	<-stopped
	eventually(t, func() error { return s.Check(t.Context()) })
	succeed(t, "Complete after a restart", s.Complete(t.Context(), append(held, rest...)))
	gone(t, s)
}
