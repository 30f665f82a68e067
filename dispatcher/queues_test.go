package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// queue is a source of the harness. Its stream annotation names it.
type queue struct {
	*leasetest.Memory
	// refuses is what Check says; nil where all is well.
	refuses error
	planned []func(*leasetest.Faults)
	opened  []*leasetest.Faults
}

// queue makes a queue, or returns it.
func (h *harness) queue(name string, traits ...lease.Traits) *queue {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[name]
	if q == nil {
		c := leasetest.MemoryConfig{Name: name}
		for _, c.Traits = range traits {
		}
		q = &queue{Memory: leasetest.NewMemory(c)}
		h.queues[name] = q
	}
	return q
}

// inject makes all handles on the queue fail, those to come included.
func (q *queue) inject(op leasetest.Op, f leasetest.Fault) {
	q.planned = append(q.planned, func(s *leasetest.Faults) { s.Inject(op, f) })
	for _, s := range q.opened {
		s.Inject(op, f)
	}
}

// heal ends all faults.
func (q *queue) heal() {
	q.planned = nil
	for _, s := range q.opened {
		s.Clear()
	}
}

func (q *queue) calls(op leasetest.Op) (n int) {
	for _, s := range q.opened {
		n += s.Calls(op)
	}
	return n
}

// open is Config.OpenSource.
func (h *harness) open(p *process, spec *annotation.Spec, connectionString string) (lease.Source, error) {
	if connectionString == "unparsable" {
		return nil, fmt.Errorf("%w: the connection string is no URL", lease.ErrInvalid)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	name := spec.Stream
	if spec.ConsumerGroup != "lighterman" {
		name += "@" + spec.ConsumerGroup
	}
	q := h.queues[name]
	if q == nil {
		return &source{p: p, Source: leasetest.NewMemory(leasetest.MemoryConfig{Name: name}), check: lease.ErrNotFound}, nil
	}
	faults := leasetest.NewFaults(q.Handle(spec.LeaseDuration))
	for _, plan := range q.planned {
		plan(faults)
	}
	q.opened = append(q.opened, faults)
	s := &source{p: p, Source: faults, check: q.refuses}
	if !strings.HasPrefix(connectionString, "good") {
		s.check = lease.ErrUnauthorized
	}
	return s, nil
}

// source is one process's way to a queue, which a crash cuts.
type source struct {
	lease.Source
	p     *process
	check error
}

func (s *source) cut() error {
	if s.p.connection.cut.Load() {
		return errCut
	}
	return nil
}

func (s *source) Check(ctx context.Context) error {
	return cmp.Or(s.cut(), s.check, s.Source.Check(ctx))
}

func (s *source) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	if err := s.cut(); err != nil {
		return nil, err
	}
	return s.Source.Receive(ctx, limit)
}

func (s *source) Extend(ctx context.Context, leases []*lease.Lease) []error {
	if err := s.cut(); err != nil {
		return slices.Repeat([]error{err}, len(leases))
	}
	return s.Source.Extend(ctx, leases)
}

func (s *source) Complete(ctx context.Context, leases []*lease.Lease) []error {
	if err := s.cut(); err != nil {
		return slices.Repeat([]error{err}, len(leases))
	}
	return s.Source.Complete(ctx, leases)
}

func (s *source) Requeue(ctx context.Context, returns []lease.Return) []error {
	if err := s.cut(); err != nil {
		return slices.Repeat([]error{err}, len(returns))
	}
	return s.Source.Requeue(ctx, returns)
}

func (s *source) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	if err := s.cut(); err != nil {
		return slices.Repeat([]error{err}, len(poisoned))
	}
	return s.Source.Poison(ctx, poisoned)
}
