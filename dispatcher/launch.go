package dispatcher

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/ratelimit"
	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
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
	// held is the lease of a single message. Those of a pack are its members', as they are at the time.
	held *lease.Lease
	// chosen are the messages for a pack that is still to be made (see form); task is nil then.
	chosen []choice
	// content is the payload; nil until it was made.
	content *jobs.Content
	packed  bool
}

// current reports whether the task is still being launched by this order. The caller holds the mutex.
func (o order) current() bool { return o.task.state == launching && o.task.attempt == o.attempt }

// nextQueued waits for something to launch, and for the moment that jobs-per-second allows it. ok is false when ctx ends.
func (l *lane) nextQueued(ctx context.Context) (o order, ok bool) {
	for {
		due, waits := l.nextDue(time.Now())
		if waits && due <= 0 {
			// The message stays in the queue meanwhile, so that it can be given back.
			pace := l.settings.Load().pace
			pace.wait(ctx)
			if l.settings.Load().pace != pace {
				continue
			}
			if ctx.Err() != nil {
				return order{}, false
			}
			l.mu.Lock()
			if o, ok = l.takeQueued(time.Now()); ok && l.outage {
				l.awaitScout()
			}
			l.mu.Unlock()
			if ok {
				return o, true
			}
		}
		if !waits || due <= 0 { // or what there was is held back, and whoever lets it go wakes us
			due = time.Hour
		}
		timer := time.NewTimer(due)
		select {
		case <-l.wakeLaunch:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return order{}, false
		}
	}
}

// nextDue is how long it takes until something can be launched; waits is false where nothing waits.
func (l *lane) nextDue(now time.Time) (due time.Duration, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pooled, due := l.nextPack(now)
	if l.waiting > pooled {
		return 0, true
	}
	return due, pooled > 0
}

// takeQueued takes what is next to launch. The caller holds the mutex.
func (l *lane) takeQueued(now time.Time) (o order, ok bool) {
	for len(l.queue) > 0 && !l.holdsBack() {
		t := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if t.state != queued || t.pool != nil || t.lease == nil {
			continue
		}
		l.move(t, launching)
		l.setPending(t, true)
		return order{task: t, attempt: t.attempt, held: t.lease}, true
	}
	if l.holdsBack() {
		return order{}, false
	}
	chosen, attempt := l.takePack(now)
	return order{attempt: attempt, chosen: chosen, packed: true}, len(chosen) > 0
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
	o, ok := l.prepare(o)
	if !ok {
		return
	}
	l.createJob(ctx, o)
	l.mu.Lock()
	l.provideAgain(o.task) // who created it, perhaps without our knowing, may have got no further
	l.mu.Unlock()
}

// prepare gives an order's payload its form. ok is false where there is nothing to launch then.
func (l *lane) prepare(o order) (prepared order, ok bool) {
	if o.chosen != nil {
		return l.form(o)
	}
	s := l.settings.Load()
	mode := jobs.PayloadMode(s.spec.Payload)
	body, err := bodyOf(s.spec, o.held)
	if err == nil {
		o.content, err = jobs.NewContent(mode, body)
	}
	if err != nil {
		l.refusePayload(o, err)
		return o, false
	}
	o.content.AddProperties(mode, o.held.Properties)
	return o, true
}

// bodyOf is what a message's producer meant.
func bodyOf(spec *annotation.Spec, held *lease.Lease) ([]byte, error) {
	if spec.Base64 {
		return jobs.DecodeBase64(held.Body)
	}
	return held.Body, nil
}

// refusePayload moves a message aside whose payload no Job can carry.
func (l *lane) refusePayload(o order, err error) {
	l.metrics.Error(metrics.StageLaunch, "payload")
	l.report.problem(l.settings.Load().object, payloadProblem(o.task.key(), err))
	l.settleTask(o, settlement{outcome: poisoned, reason: err.Error()})
}

func (l *lane) createJob(ctx context.Context, o order) {
	t := o.task
	retry := backoff{base: 100 * time.Millisecond, limit: 5 * time.Second}
	var since time.Time // the first failure
	var before int      // the Jobs that had been created by then
	var asked time.Time // when the last request was sent whose outcome is not known
	for {
		s := l.settings.Load()
		job, secret, err := s.template.Job(l.taskOf(o))
		var launched *batchv1.Job
		var adopted bool
		sent := time.Now()
		if err == nil {
			launched, adopted, err = l.create(ctx, job, o)
		}
		switch {
		case err == nil:
			l.launched(o, launched, adopted)
			if !adopted { // who created it may have meant another form
				l.provideFirst(ctx, o, launched, secret)
			}
			return
		case errors.Is(err, jobs.ErrPayload) || jobs.TooLarge(err):
			if t.members != nil {
				l.unlessCreated(ctx, o, asked, func() { l.shrink(o) })
				return
			}
			l.refusePayload(o, err)
			return
		case errors.Is(err, jobs.ErrForeign):
			l.metrics.Error(metrics.StageLaunch, "foreign")
			l.report.problem(s.object, foreignProblem(err))
			l.unlessCreated(ctx, o, asked, func() {
				l.settleTask(o, settlement{outcome: returned, notBefore: time.Now().Add(s.spec.LeaseDuration)})
			})
			return
		case errors.Is(err, errLeaseEnded):
			l.unlessCreated(ctx, o, asked, func() { l.abandon(o) })
			return
		case errors.Is(err, errTermOver):
			// Before the elector finds out: until then, the message would be received and given back again without end.
			l.term.stepDown()
			l.giveBack(o, asked)
			return
		case jobs.Fenced(err) && l.term.fenced(ctx):
			l.giveBack(o, asked)
			return
		case jobs.Rejected(err):
			l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
			l.unlessCreated(ctx, o, asked, func() { l.refused(ctx, o, err) })
			return
		}
		asked = sent
		if ctx.Err() != nil {
			l.giveBack(o, asked)
			return
		}
		l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
		l.log.Debug("creating a Job failed, and is tried again", "task", t.String(), "err", err)
		delay := retry.next()
		if retry.failures == 1 {
			since, before = time.Now(), l.jobsCreated()
		}
		switch others := l.jobsCreated() > before; {
		case others && retry.failures >= oddOneOut:
			l.report.problem(s.object, messageProblem(t, err))
			l.unlessCreated(ctx, o, asked, func() { l.putOff(o, true) })
			return
		case time.Since(since) > patience:
			l.unlessCreated(ctx, o, asked, func() { l.putOff(o, others) })
			return
		case !others:
			l.enterOutage(err)
		}
		if !sleep(ctx, delay) {
			l.giveBack(o, asked)
			return
		}
		if l.isHoldingBack() {
			l.unlessCreated(ctx, o, asked, func() { l.settleTask(o, settlement{outcome: returned}) })
			return
		}
		if !l.isCurrent(o) {
			return // the watch was faster; and should somebody have deleted the Job since, it is not to be created again
		}
	}
}

// taskOf is what the Job of an order is made for.
func (l *lane) taskOf(o order) jobs.Task {
	task := jobs.Task{
		Identity: jobs.Identity{Source: l.identity, Messages: o.task.messages, Attempt: o.attempt},
		Content:  o.content,
		Packed:   o.packed,
	}
	if o.held != nil {
		task.EnqueuedAt, task.TraceParent = o.held.EnqueuedAt, traceParent(o.held)
	}
	return task
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
		l.putOff(o, true)
	default:
		l.report.problem(l.settings.Load().object, messageProblem(o.task, refusal))
		l.putOff(o, true)
	}
}

// putOff gives back a message whose Job cannot be created, for longer each time: a source may offer it before all others.
func (l *lane) putOff(o order, alone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !o.current() {
		return
	}
	for _, t := range o.task.messagesOf() {
		delay := spread(doubled(shortestPutOff, longestPutOff, t.putOff))
		t.putOff++
		t.alone = alone // should it be at fault, it must not hold up others
		l.decided(t, settlement{outcome: returned, notBefore: time.Now().Add(delay)})
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

// create makes one try to create the Job, within the time that the leases are trusted (invariant 5), and as long as we lead. A try that is under way
// when ctx ends is given a moment to succeed: what came of it would be unknown otherwise.
func (l *lane) create(ctx context.Context, job *batchv1.Job, o order) (*batchv1.Job, bool, error) {
	deadline := l.trustedUntil(o)
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

// trustedUntil is until when all leases of an order are trusted; the zero time where one has ended.
func (l *lane) trustedUntil(o order) time.Time {
	if o.task.members == nil {
		return o.held.Deadline()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var until time.Time
	for _, m := range o.task.members {
		if m.pack != o.task || m.lease == nil {
			return time.Time{}
		}
		if d := m.lease.Deadline(); until.IsZero() || d.Before(until) {
			until = d
		}
	}
	return until
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
	for _, m := range t.messagesOf() {
		m.putOff, m.alone = 0, false
	}
	if !o.current() {
		return // the watch was faster
	}
	l.move(t, running)
	t.launchedAt = now
	switch {
	case status.Phase.Finished() && adopted && t.members != nil:
		l.resumePack(t, job, status)
	case status.Phase.Finished() && adopted:
		// It may have failed long ago, and our cache not know it: the next attempt begins at once then. Were the message given back for that, it
		// would come again, and find the cache as it was.
		l.resume(t, job)
	case status.Phase.Finished():
		l.finished(t, job, status)
	default:
		l.progress(t, job, status)
	}
	if l.holdsBack() {
		l.giveBackQueued()
	}
}

// abandon forgets a task whose lease ended before its Job was created. The message comes again.
func (l *lane) abandon(o order) {
	t := o.task
	if t.members == nil {
		l.keeper.Drop(o.held)
	}
	l.mu.Lock()
	switch {
	case !o.current():
	case t.members != nil:
		l.dissolve(t)
	case t.lease != o.held && t.lease != nil:
		l.enqueue(t) // it has come again already
	default:
		l.remove(t)
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
