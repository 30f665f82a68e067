package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// simSource is one process's way to a queue of the simulation. Requests work on copies of the leases: an answer that does not arrive must
// teach the process nothing.
type simSource struct {
	*leasetest.Memory
	*simHolder
}

// simHolder is what a process has of a queue's messages by one source.
type simHolder struct {
	w     *simulation
	p     *simProcess
	q     *simQueue
	lease time.Duration
	bad   bool // the connection string

	// The world's mutex guards these.
	held  map[string]*holding     // what the process was handed out by this source, by message
	under map[*lease.Lease]string // the operation that is under way for a lease
}

// holding is a message that a process has.
type holding struct {
	lease *lease.Lease
	// until is until when it may be trusted, as the design has it and whatever the lease says: seven eighths of what was granted, from when that was
	// asked for.
	until time.Time
	// launched says that the process has asked for a Job since.
	launched bool
	// returning says that it has begun to give the message back, or to settle it.
	returning bool
	// spent says that the message was settled, or that this was too late. A launch whose answer did not arrive may be tried again all the same,
	// until the lease's deadline: the Job stays for longer than that.
	spent bool
	// lostAt is when it was told that the lease is lost. What happens in that very moment may have been begun before.
	lostAt time.Time
	// lapsed says that the trust had ended before a renewal came through after all: the process may have let the message go by then.
	lapsed bool
}

// waits reports whether nothing has been done with the message yet.
func (h *holding) waits() bool { return !h.launched && !h.returning }

// trusted reports whether the lease may be used now.
func (h *holding) trusted() bool {
	now := time.Now()
	return !now.After(h.lease.Deadline()) && !now.After(h.until) || now.Equal(h.lostAt)
}

// granted takes note of a grant for so long, which was asked for at a time.
func (h *holding) granted(sent time.Time, d time.Duration) {
	h.lapsed = h.lapsed || !h.until.IsZero() && time.Now().After(h.until)
	h.until = sent.Add(d * 7 / 8)
}

// open is Config.OpenSource.
func (w *simulation) open(p *simProcess, spec *annotation.Spec, c Connection) (lease.Source, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range w.queues {
		if q.name == spec.Stream {
			h := &simHolder{
				w: w, p: p, q: q, lease: spec.LeaseDuration,
				bad: !strings.HasPrefix(c.Source, "good"), held: map[string]*holding{}, under: map[*lease.Lease]string{},
			}
			p.sources = append(p.sources, h)
			if q.log != nil {
				return openLog(h, c.Level), nil
			}
			return &simSource{Memory: q.memory.Handle(spec.LeaseDuration), simHolder: h}, nil
		}
	}
	return nil, fmt.Errorf("%w: no queue %s", lease.ErrNotFound, spec.Stream)
}

func alwaysInTime(time.Duration) bool { return true }

// ask takes a request to the queue. The effect happens in the queue, and under the world's mutex.
func ask[T any](ctx context.Context, s *simHolder, op, object string, effect func() T) (answer T, err error) {
	s.w.mu.Lock()
	f := s.p.fate(s.q.number, op, s.q.name+"/"+object)
	s.w.mu.Unlock()
	if f.refused != 0 {
		_, err = travel(ctx, s.p, op, s.q.name+"/"+object, f, alwaysInTime, func() bool { return true })
		return answer, cmp.Or(err, errSource(f))
	}
	return travel(ctx, s.p, op, s.q.name+"/"+object, f, alwaysInTime, func() T {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		return effect()
	})
}

var errSourceFailed = errors.New("the simulated source failed")

func errSource(f fate) error {
	if f.refused == 429 {
		return lease.ErrThrottled
	}
	return errSourceFailed
}

// Check implements lease.Source.
func (s *simSource) Check(ctx context.Context) error {
	if s.bad {
		return lease.ErrUnauthorized
	}
	_, err := ask(ctx, s.simHolder, "check", "", func() bool { return true })
	return err
}

// Backlog implements lease.Source.
func (s *simSource) Backlog(ctx context.Context) (lease.Backlog, error) {
	return ask(ctx, s.simHolder, "backlog", "", func() lease.Backlog {
		b, _ := s.Memory.Backlog(context.WithoutCancel(ctx))
		return b
	})
}

// Receive implements lease.Source.
func (s *simSource) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	w := s.w
	sent := time.Now()
	w.mu.Lock()
	w.checkRoom(s.simHolder, limit)
	f := s.p.fate(s.q.number, "receive", s.q.name)
	w.mu.Unlock()
	if f.refused != 0 {
		_, err := travel(ctx, s.p, "receive", s.q.name, f, alwaysInTime, func() bool { return true })
		return nil, cmp.Or(err, errSource(f))
	}
	waiting := ctx
	if f != (fate{}) {
		waiting = context.WithoutCancel(ctx) // it has effect whoever waits for it
	}
	leases, err := travel(ctx, s.p, "receive", s.q.name, f, alwaysInTime, func() []*lease.Lease {
		found, _ := s.Memory.Receive(waiting, limit)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, l := range found {
			w.note(s.p.actor, "receive", s.q.name+"/"+l.ID, fmt.Sprintf("delivery %d", l.Deliveries))
		}
		return found
	})
	if err != nil {
		return nil, err
	}
	if len(leases) == 0 {
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range leases {
		l.Granted(sent, s.lease)
		h := &holding{lease: l}
		h.granted(sent, s.lease)
		s.held[l.ID] = h
	}
	return leases, nil
}

// trial is a lease that something is tried with.
type trial struct {
	original, copied *lease.Lease
	err              error
}

// try carries out an operation on a batch of leases. Some of a batch may fail.
func (s *simSource) try(ctx context.Context, op string, leases []*lease.Lease, apply func(i int, l *lease.Lease) error) ([]*trial, []error) {
	w := s.w
	w.mu.Lock()
	all := make([]*trial, len(leases))
	for i, l := range leases {
		all[i] = &trial{original: l, copied: &lease.Lease{Message: l.Message, Receipt: l.Receipt}}
	}
	name := s.begin(op, leases)
	w.mu.Unlock()
	_, err := ask(ctx, s.simHolder, op, name, func() bool {
		for i, one := range all {
			if one.err = apply(i, one.copied); op != "extend" || one.err != nil {
				w.note(s.p.actor, op, s.q.name+"/"+one.copied.ID, said(one.err))
			}
		}
		return true
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		s.end(op, leases, nil, false)
		return nil, slices.Repeat([]error{err}, len(leases))
	}
	var errs []error
	for i, one := range all {
		if one.err != nil {
			if errs == nil {
				errs = make([]error, len(all))
			}
			errs[i] = one.err
		}
	}
	s.end(op, leases, errs, true)
	return all, errs
}

// begin looks at an operation on a batch of leases before it is sent, and returns what to name it by. The caller holds the mutex.
func (s *simHolder) begin(op string, leases []*lease.Lease) string {
	first := leases[0].ID
	for _, l := range leases {
		first = min(first, l.ID)
		if other := s.under[l]; other != "" {
			s.w.violate(5, s.q.messages[l.ID], "%s sends %s while %s of the same lease is under way", s.p.actor, op, other)
		}
		s.under[l] = op
		if op != "extend" {
			s.w.checkTrusted(s, op, l)
			if h := s.held[l.ID]; h != nil && h.lease == l {
				h.returning = true
			}
		}
	}
	return first
}

// end takes note of how an operation went, if it was answered. The caller holds the mutex.
func (s *simHolder) end(op string, leases []*lease.Lease, errs []error, answered bool) {
	for i, l := range leases {
		delete(s.under, l)
		h := s.held[l.ID]
		if !answered || h == nil || h.lease != l {
			continue
		}
		if op == "extend" && errs != nil && errs[i] != nil {
			h.lostAt = time.Now()
		} else if op != "extend" {
			h.spent = true
		}
	}
}

func said(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// first is the error of a batch of one.
func first(errs []error) error {
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// Extend implements lease.Source.
func (s *simSource) Extend(ctx context.Context, leases []*lease.Lease) []error {
	sent, background := time.Now(), context.WithoutCancel(ctx)
	all, errs := s.try(ctx, "extend", leases, func(_ int, l *lease.Lease) error {
		return first(s.Memory.Extend(background, []*lease.Lease{l}))
	})
	for _, one := range all {
		if one.err == nil {
			one.original.Receipt = one.copied.Receipt
			one.original.Granted(sent, s.lease)
			s.w.mu.Lock()
			if h := s.held[one.original.ID]; h != nil && h.lease == one.original {
				h.granted(sent, s.lease)
			}
			s.w.mu.Unlock()
		}
	}
	return errs
}

// Complete implements lease.Source.
func (s *simSource) Complete(ctx context.Context, leases []*lease.Lease) []error {
	background := context.WithoutCancel(ctx)
	_, errs := s.try(ctx, "complete", leases, func(_ int, l *lease.Lease) error {
		err := first(s.Memory.Complete(background, []*lease.Lease{l}))
		if err == nil {
			s.w.completed(s.q.messages[l.ID])
		}
		return err
	})
	return errs
}

// Requeue implements lease.Source.
func (s *simSource) Requeue(ctx context.Context, returns []lease.Return) []error {
	background := context.WithoutCancel(ctx)
	leases := make([]*lease.Lease, len(returns))
	for i, r := range returns {
		leases[i] = r.Lease
	}
	_, errs := s.try(ctx, "requeue", leases, func(i int, l *lease.Lease) error {
		return first(s.Memory.Requeue(background, []lease.Return{{Lease: l, Delay: returns[i].Delay}}))
	})
	return errs
}

// Poison implements lease.Source.
func (s *simSource) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	background := context.WithoutCancel(ctx)
	leases := make([]*lease.Lease, len(poisoned))
	for i, p := range poisoned {
		leases[i] = p.Lease
	}
	_, errs := s.try(ctx, "poison", leases, func(i int, l *lease.Lease) error {
		moved := poisoned[i]
		moved.Lease = l
		err := first(s.Memory.Poison(background, []lease.Poisoned{moved}))
		if err == nil {
			s.w.poisoned(s.q.messages[l.ID], moved.Reason)
		}
		return err
	})
	return errs
}
