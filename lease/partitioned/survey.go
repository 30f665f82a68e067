package partitioned

import (
	"context"

	"github.com/lighterman-dev/lighterman/lease"
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
	if !s.created.IsZero() && found.CreatedAt.After(s.created) {
		for _, p := range s.order {
			p.restart(true)
		}
	}
	s.created = found.CreatedAt
	for _, id := range found.Partitions {
		if s.partitions[id] != nil {
			continue
		}
		p := newPartition(s, id)
		s.partitions[id] = p
		s.order = append(s.order, p)
		s.spawn(p.read)
		s.spawn(p.keep)
	}
	return nil
}

// Backlog implements lease.Source. Every partition is asked, all at once.
func (s *Source) Backlog(ctx context.Context) (lease.Backlog, error) {
	found, err := s.cfg.Log.Describe(ctx)
	if err != nil {
		return lease.Backlog{}, err
	}
	counts := make([]lease.Backlog, len(found.Partitions))
	numbers := make([]int, len(found.Partitions))
	for i := range numbers {
		numbers[i] = i
	}
	err = each(numbers, func(i int) error {
		var err error
		counts[i], err = s.backlogOf(ctx, found.Partitions[i])
		return err
	})
	if err != nil {
		return lease.Backlog{}, err
	}
	var b lease.Backlog
	for _, one := range counts {
		b.Messages += one.Messages
		b.Leased += one.Leased
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.condition(&b)
	return b, nil
}

// backlogOf counts one partition.
func (s *Source) backlogOf(ctx context.Context, id string) (lease.Backlog, error) {
	s.mu.Lock()
	p, before := s.partitions[id], int64(0)
	if p != nil {
		before = p.received
	}
	s.mu.Unlock()
	ends, err := s.cfg.Log.Ends(ctx, id)
	if err != nil {
		return lease.Backlog{}, err
	}
	if b, ok := s.countOf(p, ends, before); ok {
		return b, nil
	}
	stored, err := s.cfg.Checkpoints.Load(ctx, id)
	if err != nil {
		return lease.Backlog{}, err
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
	if p.claimed && ends.Last < before {
		p.restart(true)
	}
	if !p.claimed {
		return b, false
	}
	return p.count(ends), true
}

// count is the backlog of a partition that is ours. The caller holds the mutex.
func (p *partition) count(ends Ends) lease.Backlog {
	var b lease.Backlog
	b.Messages = max(ends.Last-p.received, 0) + int64(len(p.window.entries)-p.window.done)
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
	switch {
	case stored.Version != "" && stored.Sequence <= ends.Last:
		return min(ends.Last-stored.Sequence, all)
	case stored.Version != "":
		return all // of a log that was made anew
	case start.Latest:
		return 0
	case !start.At.IsZero() && ends.LastAt.Before(start.At):
		return 0
	}
	return all
}

// condition tells what is out of order. The caller holds the mutex.
func (s *Source) condition(b *lease.Backlog) {
	var errs []error
	most := 0
	for _, p := range s.order {
		b.Unconfirmed += int64(p.window.done)
		b.HeldBack += int64(p.window.heldBack())
		if e := p.window.oldest(); e != nil && p.window.heldBack() > most {
			most = p.window.heldBack()
			b.HeldBackBy, b.HeldBackFull = e.id, most >= s.cfg.MaxHeldBack
		}
		if err := p.failure(); err != nil {
			errs = append(errs, err)
		}
	}
	b.Problem = mostTelling(errs)
	b.Notices, s.notices = s.notices, nil
}
