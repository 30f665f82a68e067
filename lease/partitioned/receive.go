package partitioned

import (
	"container/heap"
	"context"
	"errors"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// patience is how long Receive waits for an event.
const patience = 500 * time.Millisecond

// Receive implements lease.Source: first what is to be handed out again, then what is new, from the partitions in turn. It fails where none of them can be
// read; where only some fail, Backlog tells.
func (s *Source) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	if limit <= 0 {
		return nil, nil
	}
	s.start()
	giveUp := time.Now().Add(patience)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		leases, changed, next, err := s.take(limit)
		left := time.Until(giveUp)
		if len(leases) > 0 || err != nil || left <= 0 {
			return leases, err
		}
		timer := time.NewTimer(min(next, left))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// start begins to read, with the first Receive: to check a source takes nothing from anybody.
func (s *Source) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return
	}
	s.started = true
	s.spawn(s.watch)
}

// take hands out what there is. Where there is nothing, it says what to wait for: a change, or that much time.
func (s *Source) take(limit int) (leases []*lease.Lease, changed <-chan struct{}, next time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.appetite = limit
	s.expire(now)
	next = max(s.expireAt.Sub(now), time.Millisecond)
	for len(s.again) > 0 && len(leases) < limit {
		e := s.again[0]
		if e.status == waiting && e.at.After(now) {
			next = min(next, e.at.Sub(now))
			break
		}
		if e.status == waiting && !e.partition.trusted(now) {
			e.at = now.Add(firstDelay)
			heap.Fix(&s.again, 0)
			continue
		}
		heap.Pop(&s.again)
		if e.status == waiting {
			leases = append(leases, e.handOutAgain())
		}
	}
	for range s.order {
		if len(leases) >= limit {
			break
		}
		p := s.order[s.turn]
		s.turn = (s.turn + 1) % len(s.order)
		leases = p.handOut(leases, limit, now)
		signal(p.hungry)
	}
	if len(leases) == 0 {
		err = s.failure()
	}
	return leases, s.changed, next, err
}

// failure is why nothing at all can be received; nil where at least one partition can be read. The caller holds the mutex.
func (s *Source) failure() error {
	if s.closed {
		return errClosed
	}
	if len(s.order) == 0 {
		return s.surveyErr
	}
	var errs []error
	for _, p := range s.order {
		err := p.failure()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return mostTelling(errs)
}

var errClosed = errors.New("the source has been closed")

// failure is why the partition does not do its work. The caller holds the mutex.
func (p *partition) failure() error {
	if p.readErr != nil {
		return p.readErr
	}
	return p.storeErr
}

// mostTelling is the error to tell of several: one that a person must do something about, if there is one.
func mostTelling(errs []error) error {
	for _, err := range errs {
		for _, kind := range []error{lease.ErrUnauthorized, lease.ErrNotFound, lease.ErrInvalid} {
			if errors.Is(err, kind) {
				return err
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}

// trusted reports whether it is certain enough that the partition is ours for an event to be handed out. The caller holds the mutex.
func (p *partition) trusted(now time.Time) bool {
	return p.claimed && now.Sub(p.ownedAt) < p.cfg.LeaseDuration/2
}

// handOut appends leases of events that were never handed out. The caller holds the mutex.
func (p *partition) handOut(leases []*lease.Lease, limit int, now time.Time) []*lease.Lease {
	if !p.trusted(now) {
		return leases
	}
	for len(leases) < limit {
		e := p.window.next()
		if e == nil {
			break
		}
		leases = append(leases, e.grant())
	}
	return leases
}

// grant makes an entry's lease good, from when it was last certain that the partition is ours. The source's mutex is held.
func (e *entry) grant() *lease.Lease {
	p := e.partition
	e.status = leased
	e.lease.Deliveries++
	e.at = p.ownedAt.Add(p.cfg.LeaseDuration)
	e.lease.Granted(p.ownedAt, p.cfg.LeaseDuration)
	if p.expireAt.IsZero() || e.at.Before(p.expireAt) {
		p.expireAt = e.at
	}
	return e.lease
}

// handOutAgain is grant with a lease of its own, so that the one before stays dead.
func (e *entry) handOutAgain() *lease.Lease {
	e.partition.waiting--
	e.lease = &lease.Lease{Message: e.lease.Message}
	return e.grant()
}

// expire takes back the events whose leases have run out. It looks at them all, seldom. The caller holds the mutex.
func (s *Source) expire(now time.Time) {
	if s.expireAt.IsZero() {
		s.expireAt = now.Add(s.cfg.LeaseDuration)
	}
	if now.Before(s.expireAt) {
		return
	}
	s.expireAt = now.Add(s.cfg.LeaseDuration)
	for _, p := range s.order {
		for _, e := range p.window.entries[:p.window.handed] {
			if e.status != leased {
				continue
			}
			if now.Before(e.at) {
				if e.at.Before(s.expireAt) {
					s.expireAt = e.at
				}
				continue
			}
			s.giveBack(e, now)
		}
	}
	// Not at each of many that run out one after the other.
	s.expireAt = later(s.expireAt, now.Add(s.cfg.LeaseDuration/16))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// giveBack has an event handed out again, at a time. The caller holds the mutex.
func (s *Source) giveBack(e *entry, due time.Time) {
	e.status, e.at = waiting, due
	e.partition.waiting++
	heap.Push(&s.again, e)
}
