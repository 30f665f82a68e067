package partitioned

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/call"
)

// claim makes the checkpoint ours to write, by writing it anew as it is. Whoever had it before is told so when it tries.
func (p *partition) claim(ctx context.Context) error {
	p.mu.Lock()
	claimed := p.claimed
	p.mu.Unlock()
	if claimed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := p.lockStore(ctx); err != nil {
		return err
	}
	defer p.unlockStore()
	for ctx.Err() == nil {
		p.mu.Lock()
		c, version, loaded := p.base, p.version, p.loaded
		p.mu.Unlock()
		if !loaded {
			return errRestart
		}
		c.Owner = p.cfg.Owner
		sent := time.Now()
		version, err := p.cfg.Checkpoints.Store(ctx, p.id, c, version)
		if err == nil {
			return p.claimedBy(ctx, c, version, sent)
		}
		if !errors.Is(err, ErrChanged) {
			return err
		}
		// A former owner has moved it since we read it.
		stored, err := p.cfg.Checkpoints.Load(ctx, p.id)
		if err != nil {
			return err
		}
		if stored.Version == "" || stored.Sequence < c.Sequence {
			return errRestart // somebody has set it back
		}
		p.mu.Lock()
		p.base, p.version = stored.Checkpoint, stored.Version
		p.received = max(p.received, stored.Sequence)
		p.mu.Unlock()
	}
	return ctx.Err()
}

// claimedBy takes note that the checkpoint is ours, unless the partition was lost meanwhile.
func (p *partition) claimedBy(ctx context.Context, c Checkpoint, version string, sent time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil || !p.loaded {
		return errRestart
	}
	p.base, p.version, p.claimed, p.ownedAt = c, version, true, sent
	signal(p.due)
	return nil
}

// keep writes checkpoints when they are due, and makes sure now and then that the partition is ours, until ctx ends.
func (p *partition) keep(ctx context.Context) {
	var retry backoff
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		next := p.nextKeep(time.Now())
		p.mu.Unlock()
		timer.Reset(max(next, 0))
		select {
		case <-ctx.Done():
			return
		case <-p.due:
			continue
		case <-timer.C:
		}
		if err := p.renew(ctx, false); err != nil {
			if ctx.Err() != nil || !pause(ctx, retry.next(err)) {
				return
			}
			continue
		}
		retry = backoff{}
	}
}

// mostOften is how many checkpoints of a partition are written in a CheckpointInterval at most, however many events there are.
const mostOften = 5

// mostUnsure is for how long at most nobody looks whether a partition is still ours, however long leases last.
const mostUnsure = time.Minute

// nextKeep is how long there is nothing to do. The caller holds the mutex.
func (p *partition) nextKeep(now time.Time) time.Duration {
	if !p.claimed {
		return time.Hour
	}
	next := p.ownedAt.Add(min(p.cfg.LeaseDuration/4, mostUnsure)).Sub(now)
	if !p.settledAt.IsZero() {
		next = min(next, p.settledAt.Add(p.cfg.CheckpointInterval).Sub(now))
		if p.window.head >= p.cfg.CheckpointEvents {
			next = min(next, p.writtenAt.Add(p.cfg.CheckpointInterval/mostOften).Sub(now))
		}
	}
	return next
}

// renew moves the checkpoint as far as it can be moved, or, where it cannot, makes sure that it is still ours. With once it does nothing if another
// call has done so by the time that it is its turn.
func (p *partition) renew(ctx context.Context, once bool) error {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := p.lockStore(ctx); err != nil {
		return err
	}
	defer p.unlockStore()
	p.mu.Lock()
	if !p.claimed || once && !p.ownedAt.Before(asked) {
		p.mu.Unlock()
		return nil
	}
	to, base, version := p.window.last(), p.base, p.version
	if to != nil {
		p.writtenAt = time.Now()
	}
	p.mu.Unlock()

	sent := time.Now()
	var err error
	if to != nil {
		base = Checkpoint{Sequence: to.sequence, Offset: to.offset, Owner: p.cfg.Owner}
		version, err = p.cfg.Checkpoints.Store(ctx, p.id, base, version)
		if errors.Is(err, ErrChanged) {
			version, err = p.reclaim(ctx, base)
		}
	} else {
		var stored Stored
		stored, err = p.cfg.Checkpoints.Load(ctx, p.id)
		switch known := version; {
		case err != nil:
		case stored.Version != known && !p.ours(stored):
			err = ErrChanged
		case stored.Version != known && stored.Sequence < base.Sequence:
			// The store has lost what we wrote. Nothing may ever be settled here again, so it is written now.
			base.Owner = p.cfg.Owner
			version, err = p.cfg.Checkpoints.Store(ctx, p.id, base, stored.Version)
		default:
			version = stored.Version
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.claimed {
		return nil // it was lost meanwhile
	}
	switch {
	case err == nil:
		p.storeErr = nil
		p.version, p.ownedAt = version, sent
		if to != nil {
			p.passed(base)
		}
	case errors.Is(err, ErrChanged):
		p.restart(false)
	default:
		p.storeErr = fmt.Errorf("the checkpoint of partition %s of %s: %w", p.id, p.cfg.Name, err)
		return err
	}
	return nil
}

// lockStore waits for its turn to read and write the checkpoint.
func (p *partition) lockStore(ctx context.Context) error {
	select {
	case p.store <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *partition) unlockStore() { <-p.store }

// ours reports whether we wrote a checkpoint, although the answer may never have reached us.
func (p *partition) ours(stored Stored) bool {
	return stored.Version != "" && stored.Owner == p.cfg.Owner
}

// reclaim writes a checkpoint over one that has another version than we know: our own, whose answer got lost.
func (p *partition) reclaim(ctx context.Context, c Checkpoint) (version string, err error) {
	stored, err := p.cfg.Checkpoints.Load(ctx, p.id)
	if err != nil {
		return "", err
	}
	if !p.ours(stored) {
		return "", ErrChanged
	}
	if stored.Sequence == c.Sequence {
		return stored.Version, nil
	}
	return p.cfg.Checkpoints.Store(ctx, p.id, c, stored.Version)
}

// passed takes note that the checkpoint has moved. The caller holds the mutex.
func (p *partition) passed(to Checkpoint) {
	p.base = to
	passed := p.window.pass(to.Sequence)
	for _, e := range passed {
		p.confirmed = append(p.confirmed, lease.Confirmation{ID: e.id})
	}
	p.settledAt = time.Time{}
	if p.window.head > 0 {
		p.settledAt = time.Now()
	}
	if len(passed) > 0 {
		signal(p.confirming)
		signal(p.hungry) // less is held back
	}
}

// noteSettled takes note that an event was settled. The caller holds the mutex.
func (p *partition) noteSettled() {
	if p.window.head == 0 {
		return
	}
	first := p.settledAt.IsZero()
	if first {
		p.settledAt = time.Now()
	}
	if first || p.window.head >= p.cfg.CheckpointEvents {
		signal(p.due)
	}
}

// Confirmed implements lease.Confirmer.
func (s *Source) Confirmed(ctx context.Context) ([]lease.Confirmation, error) {
	for {
		s.mu.Lock()
		confirmed := s.confirmed
		s.confirmed = nil
		s.mu.Unlock()
		if len(confirmed) > 0 {
			return confirmed, nil
		}
		select {
		case <-s.confirming:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Flush implements lease.Confirmer.
func (s *Source) Flush(ctx context.Context) error {
	s.mu.Lock()
	order := s.order
	s.mu.Unlock()
	return errors.Join(call.Each(len(order), concurrency, func(i int) error {
		p := order[i]
		p.mu.Lock()
		nothing := p.window.head == 0
		p.mu.Unlock()
		if nothing {
			return nil
		}
		return p.renew(ctx, false)
	})...)
}

// Final implements lease.Confirmer.
func (s *Source) Final(id string) bool {
	partition, sequence, err := parseID(id)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.partitions[partition]
	return p != nil && p.loaded && sequence <= p.base.Sequence
}
