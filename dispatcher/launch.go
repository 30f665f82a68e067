package dispatcher

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/ratelimit"
	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// launch creates the Jobs of the tasks that wait, several at a time, until ctx ends; then it waits for the creations that are
// under way.
func (l *lane) launch(ctx context.Context) {
	var creating sync.WaitGroup
	defer creating.Wait()
	concurrency := make(chan struct{}, l.tuning.LaunchConcurrency)
	for {
		select {
		case concurrency <- struct{}{}:
		case <-ctx.Done():
			return
		}
		o, ok := l.nextQueued(ctx)
		if !ok {
			return
		}
		creating.Go(func() {
			defer func() { <-concurrency }()
			l.launchTask(ctx, o)
		})
	}
}

// order is a task to launch, with what its Job is made from: the task itself can change meanwhile, when somebody else turns out to have
// launched it.
type order struct {
	task    *task
	attempt int
	held    *lease.Lease
}

// nextQueued waits for a task to launch, and for the moment that jobs-per-second allows it. ok is false when ctx ends.
func (l *lane) nextQueued(ctx context.Context) (o order, ok bool) {
	for {
		if l.anyQueued() {
			// The message stays in the queue meanwhile, so that it can be given back.
			pace := l.settings.Load().pace
			pace.wait(ctx)
			if l.settings.Load().pace != pace {
				continue
			}
		}
		if ctx.Err() != nil {
			return order{}, false
		}
		l.mu.Lock()
		for len(l.queue) > 0 && !l.holdsBack() {
			t := l.queue[0]
			l.queue[0] = nil
			l.queue = l.queue[1:]
			if t.state != queued || t.lease == nil {
				continue
			}
			l.move(t, launching)
			l.setPending(t, true)
			o := order{t, t.attempt, t.lease}
			l.mu.Unlock()
			return o, true
		}
		l.mu.Unlock()
		select {
		case <-l.wakeLaunch:
		case <-ctx.Done():
			return order{}, false
		}
	}
}

func (l *lane) anyQueued() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting > 0
}

// launchTask creates a task's Job. What fails in passing is tried again for as long as the lease is held.
func (l *lane) launchTask(ctx context.Context, o order) {
	t, held := o.task, o.held
	retry := backoff{base: 100 * time.Millisecond, limit: 5 * time.Second}
	defer func() { l.leaveOutage(retry.failures > 0) }()
	for {
		s := l.settings.Load()
		job, err := s.template.Job(jobs.Task{
			Identity:   jobs.Identity{Source: l.identity, MessageID: t.messageID, Attempt: o.attempt},
			Payload:    held.Body,
			EnqueuedAt: held.EnqueuedAt,
		})
		var launched *batchv1.Job
		var adopted bool
		if err == nil {
			launched, adopted, err = l.create(ctx, job, held)
		}
		switch {
		case err == nil:
			l.launched(t, launched, adopted)
			return
		case errors.Is(err, jobs.ErrPayload) || jobs.TooLarge(err):
			l.metrics.Error(metrics.StageLaunch, "payload")
			l.report.problem(s.object, payloadProblem(t.messageID, err))
			l.settleTask(t, settlement{outcome: poisoned, reason: err.Error()})
			return
		case errors.Is(err, jobs.ErrForeign):
			l.metrics.Error(metrics.StageLaunch, "foreign")
			l.report.problem(s.object, foreignProblem(err))
			l.settleTask(t, settlement{outcome: returned, notBefore: time.Now().Add(s.spec.LeaseDuration)})
			return
		case errors.Is(err, errLeaseEnded):
			l.abandon(t, held)
			return
		case jobs.Rejected(err):
			l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
			l.block(err)
			l.settleTask(t, settlement{outcome: returned})
			return
		}
		if ctx.Err() != nil {
			l.settleTask(t, settlement{outcome: returned})
			return
		}
		l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
		l.log.Debug("creating a Job failed, and is tried again", "message_id", t.messageID, "err", err)
		l.enterOutage(err, retry.failures == 0)
		if !sleep(ctx, retry.next()) || l.isHoldingBack() {
			l.settleTask(t, settlement{outcome: returned})
			return
		}
	}
}

func (l *lane) isHoldingBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holdsBack()
}

// errLeaseEnded means that nothing may be launched with the lease any more.
var errLeaseEnded = errors.New("the lease ended before the Job was created")

// create makes one try to create the Job, within the time that the lease is trusted (invariant 5). A try that is under way when
// ctx ends is given a moment to succeed: what came of it would be unknown otherwise.
func (l *lane) create(ctx context.Context, job *batchv1.Job, held *lease.Lease) (*batchv1.Job, bool, error) {
	deadline := held.Deadline()
	if !time.Now().Before(deadline) {
		return nil, false, errLeaseEnded
	}
	ctx, stop := lingering(ctx, l.tuning.DrainTimeout/2)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, min(time.Until(deadline), l.tuning.LaunchTimeout))
	defer cancel()
	return l.launcher.Launch(ctx, job)
}

// launched takes note that a task's Job exists.
func (l *lane) launched(t *task, job *batchv1.Job, adopted bool) {
	now := time.Now()
	status := jobs.StatusOf(job)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.outage {
		l.outage = false
		wake(l.wakeReceive)
	}
	if l.outageTold {
		l.outageTold = false
		l.report.resolved(l.settings.Load().object, aboutCreation)
	}
	if adopted {
		l.metrics.Adopted.Inc()
	} else {
		l.metrics.Created.Inc()
	}
	l.metrics.Launch.Observe(metrics.Since(t.receivedAt))
	if t.state != launching {
		return // the watch was faster
	}
	l.move(t, running)
	t.launchedAt = now
	if status.Phase.Finished() {
		l.finished(t, job.Name, status)
		return
	}
	l.progress(t, status)
}

// abandon forgets a task whose lease ended before its Job was created. The message comes again.
func (l *lane) abandon(t *task, held *lease.Lease) {
	l.keeper.Drop(held)
	l.mu.Lock()
	if t.state == launching {
		if t.lease != held && t.lease != nil {
			l.enqueue(t) // it has come again already
		} else {
			l.remove(t)
		}
	}
	l.mu.Unlock()
	l.endIfEmpty()
}

// enterOutage stops receiving until a Job can be created again. first is set with a task's first failure.
func (l *lane) enterOutage(err error, first bool) {
	l.mu.Lock()
	if first {
		l.failing++
	}
	tell := !l.outage
	l.outage, l.outageTold = true, true
	l.mu.Unlock()
	if tell {
		l.report.problem(l.settings.Load().object, creationProblem(err))
	}
}

// leaveOutage is called as the launch of a task ends in whatever way. Once none is left that could show that Jobs can be created again,
// receiving must go on to find out.
func (l *lane) leaveOutage(failed bool) {
	if !failed {
		return
	}
	l.mu.Lock()
	l.failing--
	if l.failing == 0 && l.outage {
		l.outage = false
		wake(l.wakeReceive)
	}
	l.mu.Unlock()
}

// pace is jobs-per-second. The zero value does not limit.
type pace struct {
	limiter ratelimit.Limiter
	clock   *interruptible
}

func newPace(perSecond float64) pace {
	if perSecond <= 0 {
		return pace{}
	}
	clock := &interruptible{dropped: make(chan struct{})}
	per := time.Duration(float64(time.Second) / perSecond)
	// One per interval, so that a rate below one a second can be had too; what a slow moment missed may be made up for
	// by a tenth of a second's worth.
	return pace{limiter: ratelimit.New(1, ratelimit.Per(per), ratelimit.WithSlack(int(perSecond/10)), ratelimit.WithClock(clock)), clock: clock}
}

// wait waits for the next permission, or for ctx to end. One goroutine at a time may wait.
func (p pace) wait(ctx context.Context) {
	if p.limiter == nil {
		return
	}
	p.clock.done = ctx.Done()
	p.limiter.Take()
}

// drop ends the wait for a permission that does not count any more, since there is another pace now.
func (p pace) drop() {
	if p.clock != nil {
		close(p.clock.dropped)
	}
}

// interruptible is a clock for the limiter whose sleep ends early when we are told to stop.
type interruptible struct {
	done    <-chan struct{} // written by wait before the limiter sleeps
	dropped chan struct{}   // closed when another pace has taken over
}

func (*interruptible) Now() time.Time { return time.Now() }

func (c *interruptible) Sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.done:
	case <-c.dropped:
	}
}
