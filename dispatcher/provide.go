package dispatcher

import (
	"context"
	"errors"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// The payload's Secret is created after the Job, which owns it. Whoever crashes in between leaves a Job whose pods wait; it is provided for as soon
// as its messages have come again.

// provideFirst creates the Secret of a Job that was just created. What fails is tried again by provide.
func (l *lane) provideFirst(ctx context.Context, o order, job *batchv1.Job, secret *corev1.Secret) {
	if secret == nil || !jobs.NeedsSecret(job) || jobs.StatusOf(job).Phase.Finished() {
		return
	}
	ctx, stop := lingering(ctx, l.tuning.DrainTimeout/2)
	defer stop()
	err := l.tryProvide(ctx, job, secret)
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := o.task; t.attempt == o.attempt && err == nil {
		t.provided = true
		if t.state == running && t.pending {
			l.startable(t)
		}
	}
}

// tryProvide makes one try. What is refused for what it is stops the lane, as a refused Job does.
func (l *lane) tryProvide(ctx context.Context, job *batchv1.Job, secret *corev1.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	defer cancel()
	err := l.launcher.Provide(ctx, job, secret)
	if err == nil || ctx.Err() != nil {
		return err
	}
	l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
	if jobs.Rejected(err) {
		l.block(err)
	} else {
		l.report.problem(l.settings.Load().object, secretProblem(job.Name, err))
	}
	return err
}

// provideAgain has the Secret of a Job that runs looked after: a former leader may not have got to it. The caller holds the mutex.
func (l *lane) provideAgain(t *task) {
	if t.pack != nil {
		t = t.pack
	}
	if !t.lacksSecret() {
		return
	}
	if len(t.here()) == t.messages.Len() {
		l.takeSlot(t) // it may have been starved until now
	}
	l.packs.toProvide = append(l.packs.toProvide, t)
	wake(l.wakeProvide)
}

// here is the messages of a task that we hold. The caller holds the mutex.
func (t *task) here() (here []choice) {
	for _, m := range t.messagesOf() {
		if m.lease != nil {
			here = append(here, choice{m, m.lease})
		}
	}
	return here
}

// lacksSecret reports whether a Job may wait for its Secret. The caller holds the mutex.
func (t *task) lacksSecret() bool {
	return t.state == running && (t.pending || t.starved) && t.needsSecret && !t.provided
}

// provide creates the Secrets that Jobs wait for, until ctx ends.
func (l *lane) provide(ctx context.Context) {
	retry := backoff{base: 200 * time.Millisecond, limit: 15 * time.Second}
	for {
		l.mu.Lock()
		waiting := l.packs.toProvide
		l.packs.toProvide = nil
		l.mu.Unlock()
		again := false
		for _, t := range waiting {
			if ctx.Err() != nil {
				return
			}
			again = !l.provideOne(ctx, t) || again
		}
		if again {
			sleep(ctx, retry.next())
			continue
		}
		retry.reset()
		select {
		case <-l.wakeProvide:
		case <-ctx.Done():
			return
		}
	}
}

// provideOne creates the Secret of one Job, where all its messages are here; else it looks whether that is there. It returns false when it is to be
// looked at again.
func (l *lane) provideOne(ctx context.Context, t *task) bool {
	s := l.settings.Load()
	l.mu.Lock()
	lacks, starved, attempt, namespace := t.lacksSecret(), t.starved, t.attempt, t.namespace
	here := t.here()
	complete := len(here) == t.messages.Len()
	if starved && len(here) > 0 && t.starvedSince.IsZero() {
		t.starvedSince = time.Now()
	}
	since := t.starvedSince
	l.mu.Unlock()
	if !lacks || starved && len(here) == 0 {
		return true // the next message of it has it looked at again
	}
	id := jobs.Identity{Source: l.identity, Messages: t.messages, Attempt: attempt}
	job := l.tracker.Current(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: id.Name()}})
	var err error
	switch {
	case job == nil:
		err = errNotSeen
	case complete:
		if err = l.provideWith(ctx, s, job, attempt, here); errors.Is(err, jobs.ErrPayload) {
			l.endStarved(ctx, job, err.Error()) // the template says something else of payloads by now
		}
	case starved && time.Since(since) > l.window():
		l.endStarved(ctx, job, whyStarved)
		err = errStarved
	case starved:
		err = errStarved
	default:
		err = l.lookForSecret(ctx, t, job)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && t.lacksSecret() {
		t.provided = true
		l.fed(t)
		l.progress(t, job, jobs.StatusOf(job))
	}
	if err != nil && !errors.Is(err, errFirstSeen) {
		l.packs.toProvide = append(l.packs.toProvide, t)
		return false
	}
	return true
}

var (
	// errNotSeen means that the cache does not know a Job yet that is to be provided for.
	errNotSeen = errors.New("the Job is not in the cache yet")
	// errStarved means that a Job waits for messages of which some are not here.
	errStarved = errors.New("not all messages of the Job are here")
	// errNoSecret means that a Job has no Secret, and all that goes into it is here by now.
	errNoSecret = errors.New("the Secret of the Job is to be created")
	// errFirstSeen means that a Job was found to be starved of messages none of which may be here.
	errFirstSeen = errors.New("the Job has no Secret yet")
)

// lookForSecret finds out whether a Job whose messages are not here has its Secret.
func (l *lane) lookForSecret(ctx context.Context, t *task, job *batchv1.Job) error {
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	provided, err := l.launcher.Provided(callCtx, job)
	cancel()
	if err != nil {
		if ctx.Err() == nil {
			l.metrics.Error(metrics.StageTrack, jobs.Class(err))
			l.report.problem(l.settings.Load().object, secretProblem(job.Name, err))
		}
		return err
	}
	if provided {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.lacksSecret() {
		if len(t.here()) == t.messages.Len() {
			return errNoSecret // they have come meanwhile, and it is created next
		}
		t.starved, t.startable, t.pendingSince = true, time.Time{}, time.Time{} // its time to start begins with the Secret
		l.setPending(t, false)
		l.dropSlot(t)
		l.log.Info("a Job waits for a Secret that a former leader did not get to; it is created when its messages have come", "job", job.Name)
		if len(t.here()) > 0 {
			return errStarved // it has come meanwhile
		}
		if l.retired {
			l.leaveStarved(t)
		}
	}
	return errFirstSeen
}

// fed lets a Job that was starved count as any other. The caller holds the mutex.
func (l *lane) fed(t *task) {
	t.starved, t.starvedSince = false, time.Time{}
	l.takeSlot(t)
}

// reasonPayloadLost is the reason of a failed attempt whose Job never got its payload, since not all of its messages came again.
const reasonPayloadLost = "PayloadLost"

// whyStarved is what more there is to say.
const whyStarved = "a former leader ended between creating the Job and its Secret, and not all of its messages have come again"

// endStarved fails a Job that waits in vain: its messages are given another attempt, those that there are.
func (l *lane) endStarved(ctx context.Context, job *batchv1.Job, why string) {
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	defer cancel()
	if err := l.launcher.End(callCtx, job.Namespace, job.Name, reasonPayloadLost, why); err != nil && ctx.Err() == nil {
		l.metrics.Error(metrics.StageTrack, jobs.Class(err))
		l.log.Warn("ending a Job that has no payload failed, and is tried again", "job", job.Name, "err", err)
	}
}

// endOrphans ends the Jobs that wait for messages which are gone, as a source shows that was empty at a time long after they were created.
func (l *lane) endOrphans(ctx context.Context, before time.Time) {
	var orphans []*batchv1.Job
	l.mu.Lock()
	for _, t := range l.tasks {
		if t.starved && t.state == running && t.launchedAt.Before(before) {
			id := jobs.Identity{Source: l.identity, Messages: t.messages, Attempt: t.attempt}
			if job := l.tracker.Current(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: id.Name()}}); job != nil {
				orphans = append(orphans, job)
			}
		}
	}
	l.mu.Unlock()
	for _, job := range orphans {
		l.endStarved(ctx, job, whyStarved)
	}
}

// leaveStarved leaves a starved Job none of whose messages are here to whoever takes from its source next. The caller holds the mutex.
func (l *lane) leaveStarved(t *task) {
	if !t.starved || t.state != running || len(t.here()) > 0 {
		return
	}
	for _, m := range t.messagesOf() {
		l.remove(m)
	}
}

// provideWith makes the Secret of a Job from its messages. Which keys the Job refers to, its former leader decided: all are given.
func (l *lane) provideWith(ctx context.Context, s *settings, job *batchv1.Job, attempt int, members []choice) error {
	if !jobs.Packed(job) {
		body, err := bodyOf(s.spec, members[0].held)
		if err != nil {
			return err
		}
		content, err := jobs.NewContent(jobs.PayloadAsFile, body)
		if err != nil {
			return err
		}
		content.AddProperties(jobs.PayloadAsFile, members[0].held.Properties)
		return l.tryProvide(ctx, job, s.template.Secret(job, content))
	}
	pack := jobs.NewPack(jobs.PayloadAuto, attempt)
	for _, c := range members {
		m, err := packedMessage(s.spec, c.held)
		if err != nil {
			return err
		}
		if !pack.Add(m) {
			return jobs.TooLargeForPack(m.Body)
		}
	}
	return l.tryProvide(ctx, job, s.template.Secret(job, pack.Content()))
}
