package leasetest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

var errInjected = errors.New("injected")

func TestFaultsFollowThePlan(t *testing.T) {
	m := NewMemory(MemoryConfig{})
	f := NewFaults(m)
	f.Inject(OpBacklog, Fault{Skip: 1, Times: 2, Err: errInjected})
	f.Inject(OpBacklog, Fault{Times: 1, Err: lease.ErrThrottled})
	for i, want := range []error{nil, errInjected, errInjected, lease.ErrThrottled, nil} {
		if _, err := f.Backlog(t.Context()); !errors.Is(err, want) {
			t.Errorf("call %d: %v, want %v", i+1, err, want)
		}
	}
	if got := f.Calls(OpBacklog); got != 5 {
		t.Errorf("Calls = %d, want 5", got)
	}
	f.Inject(OpCheck, Fault{Err: errInjected})
	if err := f.Check(t.Context()); !errors.Is(err, errInjected) {
		t.Errorf("Check: %v", err)
	}
	f.Clear(OpCheck)
	if err := f.Check(t.Context()); err != nil {
		t.Errorf("Check after Clear: %v", err)
	}
}

func TestFaultsLoseAnswers(t *testing.T) {
	m := NewMemory(MemoryConfig{})
	f := NewFaults(m)
	m.Send("a", "b")

	f.Inject(OpReceive, Fault{Times: 1, Err: errInjected, AfterEffect: true})
	if got, err := f.Receive(t.Context(), 1); got != nil || !errors.Is(err, errInjected) {
		t.Fatalf("Receive = %v, %v", got, err)
	}
	if b, _ := m.Backlog(t.Context()); b.Leased != 1 {
		t.Errorf("%d messages are leased, want the one whose answer got lost", b.Leased)
	}
	f.Inject(OpReceive, Fault{Times: 1, Err: errInjected, Partial: true})
	leases, err := f.Receive(t.Context(), 2)
	if len(leases) != 1 || !errors.Is(err, errInjected) {
		t.Fatalf("Receive = %d messages, %v; want one and an error", len(leases), err)
	}

	f.Inject(OpExtend, Fault{Times: 1, Err: errInjected, AfterEffect: true})
	before := leases[0].Receipt
	if errs := f.Extend(t.Context(), leases); len(errs) != 1 || !errors.Is(errs[0], errInjected) || leases[0].Receipt != before {
		t.Errorf("Extend = %v with receipt %s, was %s", errs, leases[0].Receipt, before)
	}
	if errs := f.Extend(t.Context(), leases); len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
		t.Errorf("Extend = %v, want lease.ErrLost: the receipt has changed", errs)
	}
}

func TestFaultsHitPartOfABatch(t *testing.T) {
	m := NewMemory(MemoryConfig{})
	f := NewFaults(m)
	ids := m.Send("a", "b", "c")
	leases, _ := f.Receive(t.Context(), 3)
	f.Inject(OpComplete, Fault{Times: 1, Err: errInjected, Only: func(m *lease.Message) bool { return m.ID == ids[1] }})
	errs := f.Complete(t.Context(), leases)
	if len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], errInjected) || errs[2] != nil || m.Len() != 1 {
		t.Errorf("Complete = %v, with %d messages left; want the second to fail and to be left", errs, m.Len())
	}
	f.Inject(OpComplete, Fault{Err: errInjected, Only: func(*lease.Message) bool { return false }})
	if errs := f.Complete(t.Context(), leases[1:2]); errs != nil {
		t.Errorf("Complete = %v, want nil", errs)
	}
}

func TestFaultsDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFaults(NewMemory(MemoryConfig{}))
		f.Inject(OpBacklog, Fault{Delay: time.Minute})
		start := time.Now()
		if _, err := f.Backlog(t.Context()); err != nil || time.Since(start) != time.Minute {
			t.Errorf("Backlog: %v after %s, want success after a minute", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.Backlog(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Backlog: %v, want the context's error", err)
		}
	})
}

func TestMemoryTellsTimeByTheBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(MemoryConfig{LeaseDuration: time.Hour, Traits: lease.Traits{Waits: true}})
		start := time.Now()
		if got, err := m.Receive(t.Context(), 1); got != nil || err != nil || time.Since(start) != memoryWait {
			t.Errorf("Receive = %v, %v after %s; want nothing after %s", got, err, time.Since(start), memoryWait)
		}
		go func() {
			time.Sleep(100 * time.Millisecond)
			m.Send("x")
		}()
		start = time.Now()
		leases, err := m.Receive(t.Context(), 1)
		if len(leases) != 1 || err != nil || time.Since(start) != 100*time.Millisecond {
			t.Fatalf("Receive = %v, %v after %s; want the message as soon as it is there", leases, err, time.Since(start))
		}
		time.Sleep(time.Hour - 200*time.Millisecond)
		start = time.Now()
		again, err := m.Receive(t.Context(), 1)
		if len(again) != 1 || err != nil || time.Since(start) != 200*time.Millisecond {
			t.Fatalf("Receive = %v, %v after %s; want the message as soon as its lease expires", again, err, time.Since(start))
		}
		if again[0].Deliveries != 2 {
			t.Errorf("Deliveries = %d, want 2", again[0].Deliveries)
		}
	})
}
