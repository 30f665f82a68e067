package leasetest

import (
	"context"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// Op names one operation of a source.
type Op string

// The operations that Faults can make fail.
const (
	OpCheck    Op = "check"
	OpReceive  Op = "receive"
	OpExtend   Op = "extend"
	OpComplete Op = "complete"
	OpRequeue  Op = "requeue"
	OpPoison   Op = "poison"
	OpBacklog  Op = "backlog"
)

// Fault says what happens to the calls of one operation, as by a plan: nothing is left to chance.
type Fault struct {
	// Skip lets that many calls pass unharmed first.
	Skip int
	// Times is how many calls are hit after that. Zero: all of them, until Clear.
	Times int
	// Delay holds the call up before anything happens. It ends early, with the context's error, when the context does.
	Delay time.Duration
	// Err is what the call returns; for a batch, per message. Nil: the call is only delayed.
	Err error
	// AfterEffect lets the operation take place and then loses its answer: Err is returned all the same. Leases that
	// a lost Receive took are nobody's until they expire, and an Extend whose answer got lost leaves the lease with its
	// old receipt and deadline.
	AfterEffect bool
	// Partial makes Receive return its leases together with Err.
	Partial bool
	// Only picks the messages of a batch that fail; the others are done. Nil: all fail.
	Only func(m *lease.Message) bool
}

// Faults is a source that fails on demand. It is safe for concurrent use as its source is.
type Faults struct {
	source lease.Source

	mu    sync.Mutex
	plans map[Op][]Fault
	calls map[Op]int
}

// NewFaults wraps a source. Without a fault injected it passes everything on.
func NewFaults(source lease.Source) *Faults {
	return &Faults{source: source, plans: map[Op][]Fault{}, calls: map[Op]int{}}
}

// Inject plans a fault. Several faults for one operation are used up one after the other.
func (f *Faults) Inject(op Op, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans[op] = append(f.plans[op], fault)
}

// Clear forgets the faults planned for these operations, or for all where none is named.
func (f *Faults) Clear(ops ...Op) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ops) == 0 {
		clear(f.plans)
	}
	for _, op := range ops {
		delete(f.plans, op)
	}
}

// Calls is how often the operation was called, hit or not.
func (f *Faults) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// next counts a call and returns the fault that hits it, if any.
func (f *Faults) next(op Op) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	plan := f.plans[op]
	if len(plan) == 0 {
		return Fault{}, false
	}
	fault := &plan[0]
	if fault.Skip > 0 {
		fault.Skip--
		return Fault{}, false
	}
	hit := *fault
	if fault.Times > 0 {
		if fault.Times--; fault.Times == 0 {
			f.plans[op] = plan[1:]
		}
	}
	return hit, true
}

func (fault Fault) wait(ctx context.Context) error {
	if fault.Delay <= 0 {
		return nil
	}
	timer := time.NewTimer(fault.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Identity implements lease.Source.
func (f *Faults) Identity() string { return f.source.Identity() }

// Traits implements lease.Source.
func (f *Faults) Traits() lease.Traits { return f.source.Traits() }

// Close implements lease.Source.
func (f *Faults) Close() error { return f.source.Close() }

// Check implements lease.Source.
func (f *Faults) Check(ctx context.Context) error {
	fault, hit := f.next(OpCheck)
	if hit {
		if err := fault.wait(ctx); err != nil {
			return err
		}
		if fault.Err != nil {
			return fault.Err
		}
	}
	return f.source.Check(ctx)
}

// Backlog implements lease.Source.
func (f *Faults) Backlog(ctx context.Context) (lease.Backlog, error) {
	fault, hit := f.next(OpBacklog)
	if hit {
		if err := fault.wait(ctx); err != nil {
			return lease.Backlog{}, err
		}
		if fault.Err != nil {
			return lease.Backlog{}, fault.Err
		}
	}
	return f.source.Backlog(ctx)
}

// Receive implements lease.Source.
func (f *Faults) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	fault, hit := f.next(OpReceive)
	if !hit {
		return f.source.Receive(ctx, limit)
	}
	if err := fault.wait(ctx); err != nil {
		return nil, err
	}
	if fault.Err == nil {
		return f.source.Receive(ctx, limit)
	}
	if !fault.AfterEffect && !fault.Partial {
		return nil, fault.Err
	}
	leases, err := f.source.Receive(ctx, limit)
	if err != nil {
		return leases, err
	}
	if !fault.Partial {
		leases = nil
	}
	return leases, fault.Err
}

// Extend implements lease.Source.
func (f *Faults) Extend(ctx context.Context, leases []*lease.Lease) []error {
	return batch(ctx, f, OpExtend, leases,
		func(l *lease.Lease) *lease.Message { return &l.Message },
		func(ctx context.Context, leases []*lease.Lease, lost bool) []error {
			if !lost {
				return f.source.Extend(ctx, leases)
			}
			// The answer gets lost, so the caller's leases must not learn from it: extend copies.
			copies := make([]*lease.Lease, len(leases))
			for i, l := range leases {
				copies[i] = &lease.Lease{Message: l.Message, Receipt: l.Receipt}
			}
			return f.source.Extend(ctx, copies)
		})
}

// Complete implements lease.Source.
func (f *Faults) Complete(ctx context.Context, leases []*lease.Lease) []error {
	return batch(ctx, f, OpComplete, leases,
		func(l *lease.Lease) *lease.Message { return &l.Message },
		func(ctx context.Context, leases []*lease.Lease, _ bool) []error {
			return f.source.Complete(ctx, leases)
		})
}

// Requeue implements lease.Source.
func (f *Faults) Requeue(ctx context.Context, returns []lease.Return) []error {
	return batch(ctx, f, OpRequeue, returns,
		func(r lease.Return) *lease.Message { return &r.Lease.Message },
		func(ctx context.Context, returns []lease.Return, _ bool) []error {
			return f.source.Requeue(ctx, returns)
		})
}

// Poison implements lease.Source.
func (f *Faults) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	return batch(ctx, f, OpPoison, poisoned,
		func(p lease.Poisoned) *lease.Message { return &p.Lease.Message },
		func(ctx context.Context, poisoned []lease.Poisoned, _ bool) []error {
			return f.source.Poison(ctx, poisoned)
		})
}

// batch passes a batch on, less the messages that a fault hits. apply is told whether the answer will be lost.
func batch[T any](ctx context.Context, f *Faults, op Op, args []T, message func(T) *lease.Message,
	apply func(context.Context, []T, bool) []error,
) []error {
	fault, hit := f.next(op)
	if !hit {
		return apply(ctx, args, false)
	}
	if err := fault.wait(ctx); err != nil {
		errs := make([]error, len(args))
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	if fault.Err == nil {
		return apply(ctx, args, false)
	}
	errs := make([]error, len(args))
	var failing, passing []T
	var passingAt []int
	for i, arg := range args {
		if fault.Only != nil && !fault.Only(message(arg)) {
			passing, passingAt = append(passing, arg), append(passingAt, i)
			continue
		}
		failing = append(failing, arg)
		errs[i] = fault.Err
	}
	if fault.AfterEffect && len(failing) > 0 {
		apply(ctx, failing, true)
	}
	if len(passing) > 0 {
		for i, err := range apply(ctx, passing, false) {
			errs[passingAt[i]] = err
		}
	}
	for _, err := range errs {
		if err != nil {
			return errs
		}
	}
	return nil
}
