package leasetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

func checkExclusiveLeases(t T, h Harness) {
	q := h.NewQueue(t)
	one := q.Source(t, 10*h.Lease)
	sources := []lease.Source{one, another(t, q, one, 10*h.Lease)}
	const sent = 40
	q.Send(t, slices.Repeat([]string{"x"}, sent)...)
	var mu sync.Mutex
	holders := map[string]int{}
	var failure error
	var wg sync.WaitGroup
	deadline := time.Now().Add(patience)
	for i := range 4 {
		wg.Go(func() {
			for time.Now().Before(deadline) {
				got, err := sources[i%2].Receive(t.Context(), 5)
				mu.Lock()
				for _, l := range got {
					holders[l.ID]++
				}
				if err != nil {
					failure = err
				}
				done := err != nil || len(holders) >= sent
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	wg.Wait()
	if failure != nil {
		t.Fatalf("Receive: %v", failure)
	}
	if len(holders) != sent {
		t.Errorf("received %d different messages within %s, want %d", len(holders), patience, sent)
	}
	for _, s := range sources {
		nothing(t, s, h.Lease/4)
	}
	for id, n := range holders {
		if n != 1 {
			t.Errorf("message %s was leased %d times at once", id, n)
		}
	}
}

func checkExtension(t T, h Harness) {
	q := h.NewQueue(t)
	// Extended early and often, so that a machine that stalls for a moment does not fail the check.
	duration := 2 * h.Lease
	holder := q.Source(t, duration)
	other := another(t, q, holder, duration)
	q.Send(t, "held")
	leases := receive(t, holder, 1, patience)
	start := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	var failure error
	go func() { // beside the receiving, which may wait
		defer close(stopped)
		ticker := time.NewTicker(duration / 8)
		defer ticker.Stop()
		for failure == nil {
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
			before := leases[0].Deadline()
			failure = errors.Join(holder.Extend(t.Context(), leases)...)
			if failure == nil && !leases[0].Deadline().After(before) {
				failure = errors.New("the deadline did not move")
			}
		}
	}()
	var received time.Duration
	for time.Since(start) < 3*duration/2 && received == 0 {
		for _, s := range []lease.Source{other, holder} {
			got, err := s.Receive(t.Context(), 1)
			if err != nil {
				t.Errorf("Receive: %v", err)
			}
			if len(got) > 0 {
				received = time.Since(start)
			}
		}
		tick(t)
	}
	close(stop)
	<-stopped
	if failure != nil {
		t.Fatalf("Extend: %v", failure)
	}
	if received > 0 {
		t.Fatalf("received the message %s after its lease began, although it was extended", received)
	}
	succeed(t, "Complete", holder.Complete(t.Context(), leases))
	gone(t, holder)
}

func checkExtensionKeepsBody(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 10*h.Lease)
	const body = "<kept> & \"kept\" \n $(KEPT) ü"
	q.Send(t, body)
	leases := receive(t, s, 1, patience)
	for range 3 {
		succeed(t, "Extend", s.Extend(t.Context(), leases))
	}
	succeed(t, "Requeue", s.Requeue(t.Context(), returns(leases)))
	leases = receive(t, s, 1, patience)
	if got := string(leases[0].Body); got != body {
		t.Errorf("after Extend the body is %s, was %s", brief(got), brief(body))
	}
	if leases[0].Deliveries != 2 {
		t.Errorf("Deliveries = %d, want 2: to extend is no delivery", leases[0].Deliveries)
	}
	succeed(t, "Extend", s.Extend(t.Context(), leases))
	succeed(t, "Poison", s.Poison(t.Context(), poisons(leases)))
	if got := q.Poisoned(t); len(got) != 1 || got[0] != body {
		t.Errorf("after Extend the poisoned body is %q, was %s", got, brief(body))
	}
}

func checkCompletion(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, h.Lease)
	other := another(t, q, s, h.Lease)
	q.Send(t, "a", "b", "c")
	leases := receive(t, s, 3, patience)
	succeed(t, "Complete", s.Complete(t.Context(), leases))
	gone(t, s)
	nothing(t, other, 3*h.Lease/2)
	if got := q.Poisoned(t); len(got) != 0 {
		t.Errorf("the poison queue holds %d messages, want none", len(got))
	}
}

func checkRequeueAtOnce(t T, h Harness) {
	q := h.NewQueue(t)
	// With leases that last longer than the check, nothing comes back by itself.
	s := q.Source(t, time.Hour)
	other := another(t, q, s, time.Hour)
	q.Send(t, "a", "b")
	leases := receive(t, s, 2, patience)
	succeed(t, "Requeue", s.Requeue(t.Context(), returns(leases[:1])))
	again := receive(t, s, 1, 5*time.Second)[0]
	if again.ID != leases[0].ID || again.Deliveries != 2 || string(again.Body) != string(leases[0].Body) {
		t.Errorf("received message %s, delivery %d; want %s, delivery 2, with the same body", again.ID, again.Deliveries, leases[0].ID)
	}
	succeed(t, "Requeue", s.Requeue(t.Context(), returns(leases[1:])))
	again = receive(t, other, 1, 5*time.Second)[0]
	if again.ID != leases[1].ID {
		t.Errorf("another source received message %s, want %s", again.ID, leases[1].ID)
	}
}

func checkRequeueWithDelay(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	other := another(t, q, s, 20*h.Lease)
	delay := 2 * h.Lease
	q.Send(t, "delayed", "soon")
	leases := receive(t, s, 2, patience)
	start := time.Now()
	succeed(t, "Requeue", s.Requeue(t.Context(), []lease.Return{
		{Lease: leases[0], Delay: delay},
		{Lease: leases[1], Delay: 0},
	}))
	soon := receive(t, s, 1, 5*time.Second)[0]
	if soon.ID != leases[1].ID {
		t.Errorf("received message %s first, want %s, which had no delay", soon.ID, leases[1].ID)
	}
	backlog(t, s, 2)
	late := receive(t, other, 1, delay+patience)[0]
	// Servers count in seconds or milliseconds.
	if took := time.Since(start); took < delay-50*time.Millisecond {
		t.Errorf("the message came back after %s, want %s or later", took, delay)
	}
	if late.ID != leases[0].ID || late.Deliveries != 2 {
		t.Errorf("received message %s, delivery %d; want %s, delivery 2", late.ID, late.Deliveries, leases[0].ID)
	}
}

func checkRedelivery(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, h.Lease)
	other := another(t, q, s, h.Lease)
	q.Send(t, "again")
	first := receive(t, s, 1, patience)[0]
	for want := int64(2); want <= 3; want++ {
		deadline := first.Deadline()
		next := receive(t, other, 1, h.Lease+patience)[0]
		if time.Now().Before(deadline) {
			t.Errorf("the message was handed out anew %s before the earlier lease's deadline", time.Until(deadline))
		}
		if next.ID != first.ID || string(next.Body) != "again" {
			t.Errorf("received message %s with body %s, want %s with the same body", next.ID, brief(string(next.Body)), first.ID)
		}
		if next.Deliveries != want {
			t.Errorf("Deliveries = %d, want %d", next.Deliveries, want)
		}
		if !next.EnqueuedAt.Equal(first.EnqueuedAt) {
			t.Errorf("EnqueuedAt = %s, was %s", next.EnqueuedAt, first.EnqueuedAt)
		}
		first, other, s = next, s, other
	}
}

func checkStaleLease(t T, h Harness) {
	q := h.NewQueue(t)
	staleOperations(t, q, q.Source(t, h.Lease), q.Source(t, h.Lease), h.Lease)
}

func checkSameProcess(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, h.Lease)
	staleOperations(t, q, s, s, h.Lease)
}

// staleOperations lets leases of one source expire, has another source (it may be the same) receive the messages anew, and
// tries everything with the old leases.
func staleOperations(t T, q Queue, s, other lease.Source, duration time.Duration) {
	t.Helper()
	ops := operations()
	q.Send(t, slices.Repeat([]string{"x"}, len(ops))...)
	old := receive(t, s, len(ops), patience)
	current := receive(t, other, len(ops), duration+patience)
	succeed(t, "Extend of the new leases", other.Extend(t.Context(), current))
	if s.Traits().Exclusive && s != other {
		toldLost(t, s, old)
	}
	for i, op := range ops {
		lostAll(t, op.name, op.do(t.Context(), s, old[i:i+1]), 1)
	}
	succeed(t, "Extend of the new leases, after operations with the old ones", other.Extend(t.Context(), current))
	if got := q.Poisoned(t); len(got) != 0 {
		t.Errorf("Poison with a lost lease left %d messages in the poison queue", len(got))
	}
	backlog(t, s, int64(len(ops)))
	succeed(t, "Complete with the new leases", other.Complete(t.Context(), current))
	gone(t, s)
}

func checkSpentLease(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	for _, settle := range operations()[1:] {
		q.Send(t, "x")
		leases := receive(t, s, 1, patience)
		poisoned := len(q.Poisoned(t))
		if settle.name == "Poison" {
			poisoned++
		}
		succeed(t, settle.name, settle.do(t.Context(), s, leases))
		for _, op := range operations() {
			lostAll(t, op.name+" after "+settle.name, op.do(t.Context(), s, leases), 1)
		}
		if got := len(q.Poisoned(t)); got != poisoned {
			t.Errorf("after %s the poison queue holds %d messages, want %d", settle.name, got, poisoned)
		}
		if settle.name == "Requeue" {
			succeed(t, "Complete", s.Complete(t.Context(), receive(t, s, 1, patience)))
		}
		gone(t, s)
	}
}

func checkPartialFailure(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	for _, op := range operations() {
		q.Send(t, "a", "b", "c")
		leases := receive(t, s, 3, patience)
		succeed(t, "Complete", s.Complete(t.Context(), leases[1:2]))
		poisoned := len(q.Poisoned(t))
		errs := op.do(t.Context(), s, leases)
		if len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], lease.ErrLost) || errs[2] != nil {
			t.Fatalf("%s with the second of three leases lost = %v, want [nil, lease.ErrLost, nil]", op.name, errs)
		}
		left := []*lease.Lease{leases[0], leases[2]}
		switch op.name {
		case "Extend":
		case "Requeue":
			left = receive(t, s, 2, patience)
		case "Poison":
			if got := len(q.Poisoned(t)) - poisoned; got != 2 {
				t.Errorf("Poison moved %d messages, want 2", got)
			}
			left = nil
		default:
			left = nil
		}
		backlog(t, s, int64(len(left)))
		succeed(t, "Complete", s.Complete(t.Context(), left))
	}
	gone(t, s)
}

func checkConcurrentUse(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	const sent, workers = 120, 6
	q.Send(t, slices.Repeat([]string{"x"}, sent)...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var mu sync.Mutex
	completed := map[string]int{}
	var failures []error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, err)
		cancel()
	}
	done := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(completed) >= sent
	}
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for ctx.Err() == nil && !done() {
				leases, err := s.Receive(ctx, 4)
				if err != nil && ctx.Err() == nil {
					fail(err)
				}
				if i == 0 {
					if _, err := s.Backlog(ctx); err != nil && ctx.Err() == nil {
						fail(err)
					}
				}
				if err := errors.Join(s.Extend(ctx, leases)...); err != nil {
					fail(err)
				}
				if i%3 == 1 && len(leases) > 1 {
					if err := errors.Join(s.Requeue(ctx, returns(leases[:1]))...); err != nil {
						fail(err)
					}
					leases = leases[1:]
				}
				if err := errors.Join(s.Complete(ctx, leases)...); err != nil {
					fail(err)
				}
				mu.Lock()
				for _, l := range leases {
					completed[l.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(failures) > 0 {
		t.Fatalf("%d operations failed; the first: %v", len(failures), failures[0])
	}
	if len(completed) != sent {
		t.Fatalf("completed %d messages, want %d", len(completed), sent)
	}
	for id, n := range completed {
		if n != 1 {
			t.Errorf("message %s was completed %d times", id, n)
		}
	}
	gone(t, s)
}
