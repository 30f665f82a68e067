package partitioned

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/call"
)

// watch keeps up with the log: it finds its partitions, and those that are added, until ctx ends.
func (s *Source) watch(ctx context.Context) {
	var retry backoff
	for {
		asking, cancel := context.WithTimeout(ctx, callTimeout)
		err := s.survey(asking)
		cancel()
		wait := surveyInterval
		if err != nil {
			wait = min(retry.next(err), surveyInterval)
		} else {
			retry = backoff{}
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// survey asks the log what partitions it has.
func (s *Source) survey(ctx context.Context) error {
	found, err := s.cfg.Log.Describe(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return err
	}
	if err != nil {
		if s.surveyErr == nil {
			s.wakeAll()
		}
		s.surveyErr = err
		return err
	}
	s.surveyErr = nil
	if found.CreatedAt.After(s.created) { // answers can overtake each other
		s.created = found.CreatedAt
	}
	for _, p := range s.order {
		if p.loaded && p.createdAt.Before(s.created) {
			p.restart(true)
		}
	}
	s.order = slices.DeleteFunc(s.order, func(p *partition) bool {
		if slices.Contains(found.Partitions, p.id) {
			return false
		}
		p.lose()
		p.stop()
		delete(s.partitions, p.id)
		return true
	})
	later := len(s.order) > 0
	for _, id := range found.Partitions {
		if s.partitions[id] == nil {
			s.addPartition(id, later)
		}
	}
	s.turn = 0
	return nil
}

// addPartition begins to work on a partition. The caller holds the mutex.
func (s *Source) addPartition(id string, late bool) {
	p := newPartition(s, id)
	p.late = late
	working, stop := context.WithCancel(context.Background())
	p.stop = stop
	s.partitions[id] = p
	s.order = append(s.order, p)
	for _, work := range []func(context.Context){p.read, p.keep} {
		s.spawn(func(ctx context.Context) {
			defer context.AfterFunc(ctx, stop)()
			work(working)
		})
	}
}

// Backlog implements lease.Source. Every partition is asked, all at once.
func (s *Source) Backlog(ctx context.Context) (lease.Backlog, error) {
	found, err := s.cfg.Log.Describe(ctx)
	if err != nil {
		return lease.Backlog{}, err
	}
	counts := make([]lease.Backlog, len(found.Partitions))
	errs := call.Each(len(counts), concurrency, func(i int) error {
		var err error
		counts[i], err = s.backlogOf(ctx, found.Partitions[i])
		return err
	})
	if err := errors.Join(errs...); err != nil {
		return lease.Backlog{}, err
	}
	var b lease.Backlog
	for _, one := range counts {
		b.Messages += one.Messages
		b.Leased += one.Leased
		b.Unconfirmed += one.Unconfirmed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.condition(&b)
	return b, nil
}

// backlogOf counts one partition.
func (s *Source) backlogOf(ctx context.Context, id string) (lease.Backlog, error) {
	s.mu.Lock()
	p, before, claimed := s.partitions[id], int64(0), false
	if p != nil {
		before, claimed = p.received, p.claimed
	}
	s.mu.Unlock()
	stored := Stored{}
	if p == nil || !claimed {
		// Before the ends are asked for: the checkpoint may move meanwhile, and must not seem to be beyond the end.
		var err error
		if stored, err = s.cfg.Checkpoints.Load(ctx, id); err != nil {
			return lease.Backlog{}, err
		}
	}
	ends, err := s.cfg.Log.Ends(ctx, id)
	if err != nil {
		return lease.Backlog{}, err
	}
	if b, ok := s.countOf(p, ends, before); ok {
		return b, nil
	}
	if claimed { // it was lost meanwhile
		return lease.Backlog{Messages: max(ends.Last-ends.First+1, 0)}, nil
	}
	return lease.Backlog{Messages: Lag(ends, stored, s.cfg.Start)}, nil
}

// countOf counts a partition whose events we have, if we do. A partition that ends before what was read of it is another one by now.
func (s *Source) countOf(p *partition, ends Ends, before int64) (b lease.Backlog, ok bool) {
	if p == nil {
		return b, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !p.claimed || p.received < before:
		return b, false
	case ends.Last >= before:
		p.beyondSince = time.Time{}
	case p.beyond():
		p.restart(true)
		return b, false
	}
	if missing := ends.First - 1 - p.received; missing > 0 {
		s.notices = append(s.notices, p.expired(missing, p.received+1))
	}
	return p.count(ends), true
}

// count is the backlog of a partition that is ours. The caller holds the mutex.
func (p *partition) count(ends Ends) lease.Backlog {
	var b lease.Backlog
	b.Messages = max(ends.Last-max(p.received, ends.First-1), 0) + int64(len(p.window.entries)-p.window.done)
	b.Unconfirmed = int64(p.window.done)
	for _, e := range p.window.entries[p.window.head:p.window.handed] {
		if e.status == leased || e.status == waiting {
			b.Leased++
		}
	}
	return b
}

// Lag is how many events of a partition wait after its checkpoint, or, where there is none, after the position to begin at.
func Lag(ends Ends, stored Stored, start StartPosition) int64 {
	all := max(ends.Last-ends.First+1, 0)
	begun := stored.Version != "" && stored.Offset != NoOffset
	switch {
	case !begun && !start.At.IsZero() && ends.LastAt.Before(start.At):
		return 0
	case stored.Version != "" && stored.Sequence <= ends.Last:
		return min(ends.Last-stored.Sequence, all)
	case stored.Version != "":
		// What the log says of itself may be a while old, or the log was made anew: there is something, or there was a moment ago.
		return min(all, 1)
	case start.Latest:
		return 0
	}
	return all
}

// condition tells what is out of order. The caller holds the mutex.
func (s *Source) condition(b *lease.Backlog) {
	var errs []error
	now := time.Now()
	for _, p := range s.order {
		b.HeldBack += int64(p.window.heldBack())
		b.HeldBackFull = b.HeldBackFull || p.window.heldBack()+p.waiting >= s.cfg.MaxHeldBack
		e := p.window.oldest()
		if e == nil {
			p.heldBy = ""
			continue
		}
		if p.heldBy != e.id {
			p.heldBy, p.heldSince = e.id, now
		}
		if held := now.Sub(p.heldSince); b.HeldBackBy == "" || held > b.HeldBackFor {
			b.HeldBackBy, b.HeldBackFor = e.id, held
		}
	}
	for _, p := range s.order {
		if err := p.failure(); err != nil {
			errs = append(errs, err)
		}
	}
	b.Problem = mostTelling(errs)
	b.Notices, s.notices = s.notices, nil
}
