package dispatcher

import (
	"context"
	"errors"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// A lane that found nothing asks for one message, so that it reserves a single slot while it looks: idle lanes of a high priority would
// keep the slots from busy ones otherwise. Once there is one it asks for firstBatch, and a batch that comes full doubles the next.
const (
	idleBatch  = 1
	firstBatch = 16
	// mostReceived is the most messages asked for at a time, where a slot stands for many.
	mostReceived = 10_000
)

// receive leases messages while there is room for them, until ctx ends.
func (l *lane) receive(ctx context.Context) {
	idle := backoff{base: min(100*time.Millisecond, l.tuning.PollInterval), limit: l.tuning.PollInterval}
	failed := backoff{base: 100 * time.Millisecond, limit: 15 * time.Second}
	batch := idleBatch
	for ctx.Err() == nil {
		room := l.room()
		if room == 0 {
			select {
			case <-l.wakeReceive:
			case <-ctx.Done():
			}
			continue
		}
		per := l.perSlot()
		reserved, err := l.slots.acquire(ctx, min((room+per-1)/per, batch), l.settings.Load().spec.Priority)
		if err != nil {
			return
		}
		// It may have taken a while to get the slots.
		limit := min(reserved*per, l.room(), mostReceived)
		if limit == 0 {
			l.slots.release(reserved)
			continue
		}
		leases, err := l.receiveBatch(ctx, limit)
		used := l.admit(leases)
		l.slots.release(reserved - used)

		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			l.metrics.Error(metrics.StageReceive, lease.Class(err))
			l.report.problem(l.settings.Load().object, l.sourceProblem(err))
			batch = idleBatch // a source that hangs must not keep many slots from the others
			if errors.Is(err, lease.ErrUnauthorized) {
				l.recheck() // the Secret may hold another connection string by now
			}
			sleep(ctx, heed(failed.next(), err))
			continue
		}
		if failed.failures > 0 {
			failed.reset()
			l.report.resolved(l.settings.Load().object, aboutSource)
		}
		switch {
		case len(leases) == limit:
			batch = max(firstBatch, 2*batch)
			idle.reset()
		case len(leases) > 0:
			batch = max(firstBatch, 2*(len(leases)+per-1)/per)
			idle.reset()
		default:
			batch = idleBatch
			if !l.traits.Waits {
				sleep(ctx, idle.next())
			}
		}
	}
}

// receiveBatch is one Receive, bounded in time so that a source which hangs is noticed.
func (l *lane) receiveBatch(ctx context.Context, limit int) ([]*lease.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, l.tuning.SourceTimeout)
	defer cancel()
	return l.source.Receive(ctx, limit)
}

// admit takes leased messages on, and returns how many of the reserved slots they use.
func (l *lane) admit(leases []*lease.Lease) (used int) {
	if len(leases) == 0 {
		return 0
	}
	now := time.Now()
	l.metrics.Received.Add(float64(len(leases)))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, held := range leases {
		if !held.EnqueuedAt.IsZero() && held.Deliveries <= 1 {
			l.metrics.QueueWait.Observe(metrics.Since(held.EnqueuedAt))
		}
		if l.admitOne(held, now) {
			used++
		}
	}
	if l.holdsBack() {
		l.giveBackQueued() // that came while the messages were on their way
	}
	l.showInFlight()
	return used
}

// admitOne decides what a message that was just leased needs. The caller holds the mutex. It returns whether the message
// uses a reserved slot.
func (l *lane) admitOne(held *lease.Lease, now time.Time) bool {
	if t := l.tasks[held.ID]; t != nil {
		l.redelivered(t, held)
		return false
	}
	t := &task{messages: jobs.NewMessageSet(held.ID), attempt: 1, lease: held, receivedAt: now, size: len(held.Body)}
	l.tasks[held.ID] = t
	if t.slot = !l.packing(); t.slot {
		l.inFlight++ // the slot was reserved
	}
	reserved := t.slot
	l.keeper.Hold(held)
	if held.Unreadable != nil {
		l.decided(t, settlement{outcome: poisoned, reason: held.Unreadable.Error()})
		return reserved
	}
	last, attempt := l.lastJob(held.ID)
	if last == nil {
		l.enqueue(t)
		return reserved
	}
	// The message has been here before: what became of it then is in the Job.
	t.attempt = attempt
	l.resume(t, last)
	return reserved
}

// redelivered gives a task the message's new lease. The old one, if there was any, has ended without our knowing.
func (l *lane) redelivered(t *task, held *lease.Lease) {
	if t.lease != nil {
		l.keeper.Drop(t.lease)
	}
	t.lease, t.size = held, len(held.Body)
	l.keeper.Hold(held)
	if t.state != resting {
		l.provideAgain(t)
		return // launching, running or settling goes on, with the new lease
	}
	if !l.packing() {
		l.takeSlot(t)
	}
	switch s := t.settlement; {
	case s.outcome == completed || s.outcome == poisoned:
		l.decided(t, s)
	case time.Now().Before(s.notBefore):
		l.decided(t, settlement{outcome: returned, notBefore: s.notBefore})
	default:
		if t.failed {
			t.attempt++
		}
		t.receivedAt = time.Now()
		l.enqueue(t)
	}
}

// resume goes on with a message whose last Job is known: the Job runs, or it has finished and the message is settled by what
// came of it. The caller holds the mutex.
func (l *lane) resume(t *task, job *batchv1.Job) {
	status := jobs.StatusOf(job)
	if !status.Phase.Finished() {
		l.metrics.Adopted.Inc()
		l.ride(t, job, status)
		return
	}
	t.finishedAt = time.Now()
	t.failed = status.Phase == jobs.Failed
	if status.Phase == jobs.Succeeded && jobs.Packed(job) {
		t.late = true
		l.judgeLater(job, status, t)
		return
	}
	l.resumeFinished(t, job, decidePart(l.settings.Load().spec, t, job, status, false))
}

// resumeFinished goes on with a message whose Job finished while nobody looked. The caller holds the mutex.
func (l *lane) resumeFinished(t *task, job *batchv1.Job, s settlement) {
	switch {
	case outcome(job.Labels[jobs.LabelSettled]) == poisoned:
		// The copy was confirmed, and only the removal of the original went astray (invariant 1).
		l.decided(t, settlement{outcome: completed, job: job.Name})
	case s.outcome == requeued && !time.Now().Before(s.notBefore):
		t.attempt++
		l.enqueue(t)
	case s.outcome == requeued:
		s.outcome = returned // the attempt was counted when it failed
		l.decided(t, s)
	default:
		l.decided(t, s)
	}
}

// lastJob is the Job of the message's highest attempt; nil where there is none.
func (l *lane) lastJob(messageID string) (last *batchv1.Job, attempt int) {
	for _, job := range l.tracker.OfMessage(l.identity, messageID) { // whose identities the tracker has proved
		if n, err := strconv.Atoi(job.Annotations[jobs.AnnotationAttempt]); err == nil && n > attempt {
			last, attempt = job, n
		}
	}
	return last, attempt
}

// enqueue lets a task wait to be launched. The caller holds the mutex.
func (l *lane) enqueue(t *task) {
	l.setPending(t, false)
	l.leavePack(t)
	l.move(t, queued)
	t.failed, t.needsSecret, t.provided, t.starved, t.startable, t.pendingSince = false, false, false, false, time.Time{}, time.Time{}
	if t.lease == nil {
		l.decided(t, settlement{outcome: returned}) // it was lost meanwhile, and comes again
		return
	}
	if l.packing() {
		l.enterPool(t)
	} else {
		l.takeSlot(t)
		l.queue = append(l.queue, t)
	}
	wake(l.wakeLaunch)
}

// sourceProblem says what a person can do about a source that fails.
func (l *lane) sourceProblem(err error) problem {
	return sourceProblem(l.settings.Load().spec, err)
}
