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

// current reports whether the task is still being launched by this order. The caller holds the mutex.
func (o order) current() bool { return o.task.state == launching && o.task.attempt == o.attempt }

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
			if l.outage {
				l.awaitScout()
			}
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

const (
	// patience is how long a message is kept while its Job cannot be created. It must not keep others waiting for ever: there are
	// errors that look as if they passed, and do not.
	patience = 2 * time.Minute
	// oddOneOut is how often the creation of one Job must fail, while others are created, for its message to be at fault.
	oddOneOut = 5
	// A message whose own Job cannot be created is given back for longer each time.
	shortestPutOff, longestPutOff = 5 * time.Second, 10 * time.Minute
	// scoutEvery is how often one more message is received while Jobs cannot be created: its Job may be created where those of the
	// messages that are here cannot.
	scoutEvery = 10 * time.Second
	// mostRefusals is how many Jobs in a row may be refused with dry runs that pass.
	mostRefusals = 10
)

// launchTask creates a task's Job. What fails in passing is tried again for a while.
func (l *lane) launchTask(ctx context.Context, o order) {
	t, held := o.task, o.held
	retry := backoff{base: 100 * time.Millisecond, limit: 5 * time.Second}
	var since time.Time // the first failure
	var before int      // the Jobs that had been created by then
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
			l.launched(o, launched, adopted)
			return
		case errors.Is(err, jobs.ErrPayload) || jobs.TooLarge(err):
			l.metrics.Error(metrics.StageLaunch, "payload")
			l.report.problem(s.object, payloadProblem(t.messageID, err))
			l.settleTask(o, settlement{outcome: poisoned, reason: err.Error()})
			return
		case errors.Is(err, jobs.ErrForeign):
			l.metrics.Error(metrics.StageLaunch, "foreign")
			l.report.problem(s.object, foreignProblem(err))
			l.settleTask(o, settlement{outcome: returned, notBefore: time.Now().Add(s.spec.LeaseDuration)})
			return
		case errors.Is(err, errLeaseEnded):
			l.abandon(o)
			return
		case errors.Is(err, errTermOver):
			// Before the elector finds out: until then, the message would be received and given back again without end.
			l.term.stepDown()
			l.settleTask(o, settlement{outcome: returned})
			return
		case jobs.Fenced(err) && l.term.fenced(ctx):
			l.settleTask(o, settlement{outcome: returned})
			return
		case jobs.Rejected(err):
			l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
			l.refused(ctx, o, err)
			return
		}
		if ctx.Err() != nil {
			l.settleTask(o, settlement{outcome: returned})
			return
		}
		l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
		l.log.Debug("creating a Job failed, and is tried again", "message_id", t.messageID, "err", err)
		delay := retry.next()
		if retry.failures == 1 {
			since, before = time.Now(), l.jobsCreated()
		}
		switch others := l.jobsCreated() > before; {
		case others && retry.failures >= oddOneOut:
			l.report.problem(s.object, messageProblem(t.messageID, err))
			l.putOff(o)
			return
		case time.Since(since) > patience:
			l.putOff(o)
			return
		case !others:
			l.enterOutage(err)
		}
		if !sleep(ctx, delay) || l.isHoldingBack() {
			l.settleTask(o, settlement{outcome: returned})
			return
		}
		if !l.isCurrent(o) {
			return // the watch was faster; and should somebody have deleted the Job since, it is not to be created again
		}
	}
}

func (l *lane) isCurrent(o order) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return o.current()
}

func (l *lane) jobsCreated() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.created
}

// refused decides on a task whose Job the API server refuses. Where it would take another Job of the template, what it refuses is the message.
func (l *lane) refused(ctx context.Context, o order, refusal error) {
	l.mu.Lock()
	l.outage = false // the API server answers
	wake(l.wakeReceive)
	l.refusals++
	inARow, blocked := l.refusals, l.blocked != nil
	l.mu.Unlock()
	var other error
	if !blocked {
		other = l.dryRun(ctx)
	}
	switch {
	case blocked || ctx.Err() != nil:
		l.settleTask(o, settlement{outcome: returned})
	case other != nil:
		l.block(refusal)
		l.settleTask(o, settlement{outcome: returned})
	case inARow > mostRefusals: // a dry run tells nothing here
		l.block(refusal)
		l.putOff(o)
	default:
		l.report.problem(l.settings.Load().object, messageProblem(o.task.messageID, refusal))
		l.putOff(o)
	}
}

// putOff gives back a message whose Job cannot be created, for longer each time: a source may offer it before all others.
func (l *lane) putOff(o order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.current() {
		delay := spread(doubled(shortestPutOff, longestPutOff, o.task.putOff))
		o.task.putOff++
		l.decided(o.task, settlement{outcome: returned, notBefore: time.Now().Add(delay)})
	}
}

func (l *lane) isHoldingBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holdsBack()
}

// errLeaseEnded means that nothing may be launched with the lease any more.
var errLeaseEnded = errors.New("the lease ended before the Job was created")

// errTermOver means that another process may lead by now.
var errTermOver = errors.New("the leader lock was not renewed in time")

// create makes one try to create the Job, within the time that the lease is trusted (invariant 5), and as long as we lead. A try that is under way when
// ctx ends is given a moment to succeed: what came of it would be unknown otherwise.
func (l *lane) create(ctx context.Context, job *batchv1.Job, held *lease.Lease) (*batchv1.Job, bool, error) {
	deadline := held.Deadline()
	if !time.Now().Before(deadline) {
		return nil, false, errLeaseEnded
	}
	if !l.term.valid() {
		return nil, false, errTermOver
	}
	ctx, stop := lingering(ctx, l.tuning.DrainTimeout/2)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, min(time.Until(deadline), l.tuning.LaunchTimeout))
	defer cancel()
	return l.launcher.Launch(ctx, job)
}

// launched takes note that a task's Job exists.
func (l *lane) launched(o order, job *batchv1.Job, adopted bool) {
	t := o.task
	now := time.Now()
	status := jobs.StatusOf(job)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.created++
	l.refusals = 0
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
	t.putOff = 0
	if !o.current() {
		return // the watch was faster
	}
	l.move(t, running)
	t.launchedAt = now
	switch {
	case status.Phase.Finished() && adopted:
		// It may have failed long ago, and our cache not know it: the next attempt begins at once then. Were the message given back for that, it
		// would come again, and find the cache as it was.
		l.resume(t, job)
		if l.holdsBack() {
			l.giveBackQueued()
		}
	case status.Phase.Finished():
		l.finished(t, job.Name, status)
	default:
		l.progress(t, job, status)
	}
}

// abandon forgets a task whose lease ended before its Job was created. The message comes again.
func (l *lane) abandon(o order) {
	t := o.task
	l.keeper.Drop(o.held)
	l.mu.Lock()
	if o.current() {
		if t.lease != o.held && t.lease != nil {
			l.enqueue(t) // it has come again already
		} else {
			l.remove(t)
		}
	}
	l.mu.Unlock()
	l.endIfEmpty()
}

// enterOutage stops receiving, but for a scout now and then, until a Job can be created again.
func (l *lane) enterOutage(err error) {
	l.mu.Lock()
	tell := !l.outage
	l.outage, l.outageTold = true, true
	if tell {
		l.awaitScout()
	}
	l.mu.Unlock()
	if tell {
		l.report.problem(l.settings.Load().object, creationProblem(err))
	}
}

// awaitScout lets the next message be received in a while. The caller holds the mutex.
func (l *lane) awaitScout() {
	l.scoutAt = time.Now().Add(scoutEvery)
	time.AfterFunc(scoutEvery, func() { wake(l.wakeReceive) })
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
