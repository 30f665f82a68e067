package partitioned

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/call"
)

// concurrency is how many requests one call makes at a time.
const concurrency = 16

// parseID takes apart what MessageID put together.
func parseID(id string) (partition string, sequence int64, err error) {
	at := strings.LastIndexByte(id, '/')
	if at < 0 {
		return "", 0, fmt.Errorf("%q is not the id of an event", id)
	}
	partition, digits, _ := strings.Cut(id[:at], "/")
	sequence, err = strconv.ParseInt(digits, 10, 64)
	return partition, sequence, err
}

// holder finds the event that a lease is of; nil where the lease is not good any more. The caller holds the mutex.
func (s *Source) holder(l *lease.Lease, now time.Time) *entry {
	partition, sequence, err := parseID(l.ID)
	if err != nil {
		return nil
	}
	p := s.partitions[partition]
	if p == nil {
		return nil
	}
	e := p.window.find(sequence)
	if e == nil || e.lease != l || e.status != leased || !now.Before(e.at) {
		return nil
	}
	return e
}

// with does something with the event of each lease, under the mutex; those whose lease is not good are lost.
func (s *Source) with(ctx context.Context, n int, of func(i int) *lease.Lease, do func(i int, e *entry)) []error {
	errs := make([]error, n)
	failed := false
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i := range n {
		l := of(i)
		if err := ctx.Err(); err != nil {
			errs[i], failed = err, true
		} else if e := s.holder(l, now); e != nil {
			do(i, e)
		} else {
			errs[i], failed = s.lost(l), true
		}
	}
	if !failed {
		return nil
	}
	return errs
}

// Complete implements lease.Source. It is final once Confirmed says so.
func (s *Source) Complete(ctx context.Context, leases []*lease.Lease) []error {
	return s.with(ctx, len(leases), func(i int) *lease.Lease { return leases[i] }, func(_ int, e *entry) { e.settle() })
}

// settle is window.settle, with what follows from it. The source's mutex is held.
func (e *entry) settle() {
	e.partition.window.settle(e)
	e.partition.noteSettled()
}

// Requeue implements lease.Source. No request is made: the event is handed out again from memory.
func (s *Source) Requeue(ctx context.Context, returns []lease.Return) []error {
	now := time.Now()
	errs := s.with(ctx, len(returns), func(i int) *lease.Lease { return returns[i].Lease }, func(i int, e *entry) {
		s.giveBack(e, now.Add(max(returns[i].Delay, 0)))
	})
	s.mu.Lock()
	s.wakeAll()
	s.mu.Unlock()
	return errs
}

// Extend implements lease.Source. One request serves all leases of a partition.
func (s *Source) Extend(ctx context.Context, leases []*lease.Lease) []error {
	errs := make([]error, len(leases))
	renewed := s.renewPartitions(ctx, leases)
	failed := false
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i, l := range leases {
		e := s.holder(l, now)
		switch {
		case e == nil:
			errs[i], failed = s.lost(l), true
		case renewed[e.partition] != nil:
			errs[i], failed = renewed[e.partition], true
		default:
			e.at = e.partition.ownedAt.Add(s.cfg.LeaseDuration)
			l.Granted(e.partition.ownedAt, s.cfg.LeaseDuration)
		}
	}
	if !failed {
		return nil
	}
	return errs
}

// renewPartitions makes sure that the partitions which leases are of are ours, and returns why that could not be told of some.
func (s *Source) renewPartitions(ctx context.Context, leases []*lease.Lease) map[*partition]error {
	now := time.Now()
	stale := make(map[*partition]error)
	s.mu.Lock()
	for _, l := range leases {
		// The keeper extends many batches at once, and one look a moment ago is good for all of them.
		if e := s.holder(l, now); e != nil && now.Sub(e.partition.ownedAt) > s.cfg.LeaseDuration/16 {
			stale[e.partition] = nil
		}
	}
	s.mu.Unlock()
	partitions := make([]*partition, 0, len(stale))
	for p := range stale {
		partitions = append(partitions, p)
	}
	for i, err := range call.Each(len(partitions), concurrency, func(i int) error { return partitions[i].renew(ctx, true) }) {
		stale[partitions[i]] = err
	}
	return stale
}

// Poison implements lease.Source. It is final once Confirmed says so.
func (s *Source) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	leases := make([]*lease.Lease, len(poisoned))
	for i, p := range poisoned {
		leases[i] = p.Lease
	}
	// Nothing is copied that is not ours any more.
	errs := s.Extend(ctx, leases)
	return call.Each(len(poisoned), concurrency, func(i int) error {
		if errs != nil && errs[i] != nil {
			return errs[i]
		}
		return s.poison(ctx, poisoned[i])
	})
}

func (s *Source) poison(ctx context.Context, one lease.Poisoned) error {
	s.mu.Lock()
	e := s.holder(one.Lease, time.Now())
	if e == nil {
		s.mu.Unlock()
		return s.lost(one.Lease)
	}
	copied := e.copied
	c := Copy{Poisoned: one, Partition: e.partition.id, Sequence: e.sequence, Offset: e.offset}
	s.mu.Unlock()
	if !copied {
		if err := s.cfg.Poison.Copy(ctx, c); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.copied = true // the next try, if there must be one, does not copy it again
	if s.holder(one.Lease, time.Now()) != e {
		return s.lost(one.Lease)
	}
	e.settle()
	return nil
}
