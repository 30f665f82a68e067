package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

const (
	// settleBatch is the most messages settled in one call to the source.
	settleBatch = 512
	// settleConcurrency is how many such calls a lane makes at once.
	settleConcurrency = 4
	// handOverTime is how long a lane that stops may take to begin giving back the messages of Jobs that run. It spares the next leader a
	// wait, which must not become a longer one for the lock.
	handOverTime = time.Second
)

// settleTask decides a task from outside the mutex.
func (l *lane) settleTask(o order, s settlement) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.current() {
		l.decided(o.task, s)
	}
}

// decided fixes what becomes of a task's message, and hands it to settle. Without a lease it can only wait for the message to come
// again: the Job tells then what became of it, or, where the Job is gone, the task does. The caller holds the mutex.
func (l *lane) decided(t *task, s settlement) {
	l.setPending(t, false)
	if t.members != nil {
		l.decidedAll(t, s)
		return
	}
	t.settlement = s
	if t.lease == nil {
		l.rest(t)
		return
	}
	l.move(t, settling)
	l.toSettle = append(l.toSettle, t)
	wake(l.wakeSettle)
}

// rest ends our work on a task whose message is not with us any more. The caller holds the mutex.
func (l *lane) rest(t *task) {
	l.move(t, resting)
	l.leavePack(t)
	if (t.recordLost || t.putOff > 0) && !l.retired {
		l.dropSlot(t)
		return
	}
	l.remove(t)
}

// settle carries out what was decided, in batches, until ctx ends, or until the lane stops and nothing is left to do.
func (l *lane) settle(ctx context.Context) {
	var settling sync.WaitGroup
	defer wake(l.wakeMark) // it ends when nothing is left to settle
	defer settling.Wait()
	concurrency := make(chan struct{}, settleConcurrency)
	for {
		batches, finished := l.takeSettlements()
		for _, batch := range batches {
			select {
			case concurrency <- struct{}{}:
			case <-ctx.Done():
				return
			}
			settling.Go(func() {
				defer func() { <-concurrency }()
				l.settleTogether(ctx, batch)
			})
		}
		if len(batches) > 0 {
			continue
		}
		l.endIfEmpty() // what was lost while it waited is gone now
		if finished {
			return
		}
		select {
		case <-l.wakeSettle:
		case <-ctx.Done():
			return
		}
	}
}

// claim is a task with the lease that it is being settled with.
type claim struct {
	task *task
	held *lease.Lease
	settlement
}

// takeSettlements takes what is decided, in batches of one kind. finished says that the lane is stopping and that nothing is
// left.
func (l *lane) takeSettlements() (batches [][]claim, finished bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	type kind struct {
		outcome  outcome
		handOver bool
	}
	kinds := make(map[kind][]claim)
	for _, t := range l.toSettle {
		if t.lease == nil {
			l.rest(t) // it was lost while it waited
			continue
		}
		k := kind{t.settlement.outcome, t.settlement.handOver}
		if k.outcome == returned {
			k.outcome = requeued // the same call
		}
		kinds[k] = append(kinds[k], claim{t, t.lease, t.settlement})
		l.busy++
	}
	l.toSettle = nil
	for _, last := range []bool{false, true} {
		for k, claims := range kinds {
			if k.handOver == last {
				batches = slices.AppendSeq(batches, slices.Chunk(claims, settleBatch))
			}
		}
	}
	return batches, l.stopping && l.busy == 0
}

// settleTogether carries out one batch.
func (l *lane) settleTogether(ctx context.Context, batch []claim) {
	ctx, cancel := context.WithTimeout(ctx, l.tuning.SourceTimeout)
	defer cancel()
	leases := make([]*lease.Lease, len(batch))
	for i, c := range batch {
		leases[i] = c.held
	}
	var errs []error
	if batch[0].handOver && time.Since(l.stoppedAt) > handOverTime {
		errs = slices.Repeat([]error{errNoTime}, len(batch))
	} else if err := l.keeper.Release(ctx, leases...); err != nil {
		errs = slices.Repeat([]error{fmt.Errorf("%w: %w", errBusy, err)}, len(batch))
	} else {
		errs = l.settleValid(ctx, batch)
	}
	for i, c := range batch {
		var err error
		if errs != nil {
			err = errs[i]
		}
		l.settled(c, err)
	}
	l.endIfEmpty()
}

// errNoTime means that a message was not handed over: its lease expires instead.
var errNoTime = errors.New("no time left to hand the message over")

// errBusy means that a renewal is still using the leases: nothing else may be done with them.
var errBusy = errors.New("a renewal of the lease does not end")

// settleValid makes the call to the source for those leases that are still trusted, and for no longer than all of them are
// (invariant 5).
func (l *lane) settleValid(ctx context.Context, batch []claim) []error {
	errs := make([]error, len(batch))
	var valid []claim
	var at []int
	var until time.Time
	for i, c := range batch {
		deadline := c.held.Deadline()
		if !time.Now().Before(deadline) {
			errs[i] = lease.ErrLost
			continue
		}
		if until.IsZero() || deadline.Before(until) {
			until = deadline
		}
		valid = append(valid, c)
		at = append(at, i)
	}
	if len(valid) == 0 {
		return errs
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for i, err := range l.callSource(ctx, valid) {
		errs[at[i]] = err
	}
	return errs
}

func (l *lane) callSource(ctx context.Context, batch []claim) []error {
	switch batch[0].outcome {
	case completed:
		leases := make([]*lease.Lease, len(batch))
		for i, c := range batch {
			leases[i] = c.held
		}
		return l.source.Complete(ctx, leases)
	case poisoned:
		moved := make([]lease.Poisoned, len(batch))
		for i, c := range batch {
			moved[i] = lease.Poisoned{Lease: c.held, Reason: c.reason, Attempts: c.attempts, Job: c.job}
		}
		return l.source.Poison(ctx, moved)
	default:
		returns := make([]lease.Return, len(batch))
		for i, c := range batch {
			returns[i] = lease.Return{Lease: c.held, Delay: max(time.Until(c.notBefore), 0)}
			if longest := l.traits.MaxDelay; longest > 0 {
				// It comes back early then, and is given back again for the rest.
				returns[i].Delay = min(returns[i].Delay, longest)
			}
		}
		return l.source.Requeue(ctx, returns)
	}
}

// settled takes note of how settling a task went.
func (l *lane) settled(c claim, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := c.task
	redelivered := t.lease != c.held && t.lease != nil
	switch {
	case err == nil:
		l.busy--
		l.countSettled(c.outcome)
		if !t.finishedAt.IsZero() {
			l.metrics.Settle.Observe(metrics.Since(t.finishedAt))
		}
		again := t.lease
		t.lease = nil
		l.afterSettling(c)
		if redelivered {
			l.goOnWith(again, c.outcome)
		}
	case errors.Is(err, lease.ErrLost):
		l.busy--
		l.metrics.Error(metrics.StageSettle, "lost")
		if redelivered {
			// It came again while we tried with the old lease.
			l.decided(t, c.settlement)
			break
		}
		l.metrics.LeasesLost.Inc()
		l.report.problem(l.settings.Load().object, leaseProblem(t.key(), err))
		t.lease = nil
		l.rest(t)
	case c.handOver:
		l.busy--
		l.rest(t)
	default:
		l.metrics.Error(metrics.StageSettle, lease.Class(err))
		l.retrySettling(c, err)
	}
	if l.stopping {
		wake(l.wakeSettle)
		wake(l.wakeMark) // it ends when nothing is left to settle
	}
	if l.packing() {
		wake(l.wakeReceive) // fewer are held
	}
}

// afterSettling draws the conclusions of a message that is settled. The caller holds the mutex.
func (l *lane) afterSettling(c claim) {
	t := c.task
	l.log.Debug("settled", "message_id", t.key(), "outcome", c.outcome, "job", c.job, "attempt", t.attempt)
	switch c.outcome {
	case completed, poisoned:
		if c.outcome == poisoned {
			s := l.settings.Load()
			l.log.Info("message poisoned", "message_id", t.key(), "attempt", t.attempt, "job", c.job, "reason", c.reason,
				"destination", s.spec.Poison())
			l.report.poisoned(s.object, s.spec.Poison(), t.key(), c.settlement)
		}
		t.recordLost = false
		l.remove(t)
		l.settledFor(t.key(), c.outcome)
	case requeued:
		level := slog.LevelInfo
		if t.pack != nil {
			level = slog.LevelDebug // it was told of the pack
		}
		l.log.Log(context.Background(), level, "attempt failed; the message is given another", "message_id", t.key(), "attempt", t.attempt,
			"reason", c.reason, "job", c.job, "not_before", c.notBefore)
		l.rest(t)
	case returned:
		l.rest(t)
	}
}

// goOnWith takes a message that came again before the answer to its settlement did. Where it was completed or moved aside, the new lease
// is of a message that is gone; where it was given back, this is its next turn. The caller holds the mutex.
func (l *lane) goOnWith(again *lease.Lease, o outcome) {
	if o == completed || o == poisoned {
		l.keeper.Drop(again)
		return
	}
	if l.admitOne(again, time.Now()) {
		l.slots.take(1) // admitOne counts with a reserved one
		l.showInFlight()
	}
	if l.holdsBack() {
		l.giveBackQueued()
	}
}

func (l *lane) countSettled(o outcome) {
	switch o {
	case completed:
		l.metrics.Completed.Inc()
	case requeued:
		l.metrics.Requeued.Inc()
	case poisoned:
		l.metrics.Poisoned.Inc()
	case returned:
		l.metrics.Returned.Inc()
	}
}

// retrySettling tries again after a while, with the lease renewed meanwhile. The caller holds the mutex.
func (l *lane) retrySettling(c claim, err error) {
	t := c.task
	if t.lease == c.held {
		l.keeper.Hold(c.held)
	}
	if c.failures == 0 {
		l.report.problem(l.settings.Load().object, l.sourceProblem(err))
	}
	delay := heed(spread(doubled(200*time.Millisecond, 15*time.Second, c.failures)), err)
	t.settlement.failures++
	time.AfterFunc(delay, func() {
		l.mu.Lock()
		l.busy--
		if t.lease == nil {
			l.rest(t)
		} else {
			l.toSettle = append(l.toSettle, t)
		}
		l.mu.Unlock()
		wake(l.wakeSettle)
		wake(l.wakeMark)
		l.endIfEmpty()
	})
}
