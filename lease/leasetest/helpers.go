package leasetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

func unexpected(what string, got, want any) error {
	return fmt.Errorf("%s = %v, want %v", what, got, want)
}

// operation is one of the four operations with a lease, in the form of Extend.
type operation struct {
	name string
	do   func(ctx context.Context, s lease.Source, leases []*lease.Lease) []error
}

func operations() []operation {
	return []operation{
		{"Extend", func(ctx context.Context, s lease.Source, l []*lease.Lease) []error { return s.Extend(ctx, l) }},
		{"Complete", func(ctx context.Context, s lease.Source, l []*lease.Lease) []error { return s.Complete(ctx, l) }},
		{"Requeue", func(ctx context.Context, s lease.Source, l []*lease.Lease) []error { return s.Requeue(ctx, returns(l)) }},
		{"Poison", func(ctx context.Context, s lease.Source, l []*lease.Lease) []error { return s.Poison(ctx, poisons(l)) }},
	}
}

func returns(leases []*lease.Lease) []lease.Return {
	r := make([]lease.Return, len(leases))
	for i, l := range leases {
		r[i] = lease.Return{Lease: l}
	}
	return r
}

func poisons(leases []*lease.Lease) []lease.Poisoned {
	p := make([]lease.Poisoned, len(leases))
	for i, l := range leases {
		p[i] = lease.Poisoned{Lease: l, Reason: "three Jobs failed", Attempts: 3, Job: "a-job"}
	}
	return p
}

// succeed makes sure that an operation went well for the whole batch, which is told by nil.
func succeed(t T, what string, errs []error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if errs != nil {
		t.Fatalf("%s returned %d nil errors, want nil", what, len(errs))
	}
}

// lostAll makes sure that an operation with leases that are no longer ours says so for each.
func lostAll(t T, what string, errs []error, n int) {
	t.Helper()
	if len(errs) != n {
		t.Fatalf("%s returned %d errors for %d lost leases: %v", what, len(errs), n, errs)
	}
	for i, err := range errs {
		if !errors.Is(err, lease.ErrLost) {
			t.Errorf("%s of lost lease %d: %v, want lease.ErrLost", what, i, err)
		}
	}
}

func bodies(leases []*lease.Lease) []string {
	b := make([]string, len(leases))
	for i, l := range leases {
		b[i] = string(l.Body)
	}
	return b
}

// brief shortens a body for a message to a person.
func brief(body string) string {
	if len(body) > 60 {
		return fmt.Sprintf("%.60q… (%d bytes)", body, len(body))
	}
	return fmt.Sprintf("%q", body)
}

// another makes a second source on the queue, or returns the first where only one can have the messages.
func another(t T, q Queue, first lease.Source, leaseDuration time.Duration) lease.Source {
	t.Helper()
	if first.Traits().Exclusive {
		return first
	}
	return q.Source(t, leaseDuration)
}

// toldLost waits until a source knows that leases are lost. One that lost its messages to another source at once may need a moment to hear of it.
func toldLost(t T, s lease.Source, leases []*lease.Lease) {
	t.Helper()
	for _, l := range leases {
		eventually(t, func() error {
			if errs := s.Extend(t.Context(), []*lease.Lease{l}); len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
				return unexpected("Extend of a lease that another source took over", errs, lease.ErrLost)
			}
			return nil
		})
	}
}
