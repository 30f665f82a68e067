package dispatcher

import (
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// follow has the tracker tell of the source's Jobs from now on, and takes note of those that there are.
func (l *lane) follow() {
	l.tracker.Follow(l.identity, l)
	for _, job := range l.tracker.OfSource(l.identity) {
		l.mu.Lock()
		// It may have ended since it was listed, and been told of. To go back would leave it running for ever.
		if job = l.tracker.Current(job); job != nil {
			if id, err := jobs.IdentityOf(job); err == nil {
				l.jobChanged(id, job)
			}
		}
		l.mu.Unlock()
	}
}

// JobChanged is told by the tracker how a Job of this lane's source stands.
func (l *lane) JobChanged(id jobs.Identity, job *batchv1.Job) {
	l.mu.Lock()
	l.jobChanged(id, job)
	l.mu.Unlock()
	l.endIfEmpty()
}

// jobChanged is JobChanged. The caller holds the mutex.
func (l *lane) jobChanged(id jobs.Identity, job *batchv1.Job) {
	status := jobs.StatusOf(job)
	t := l.tasks[string(id.Messages)]
	if t == nil {
		switch {
		case l.stopping || job.Labels[jobs.LabelSettled] != "":
		case id.Messages.Len() > 1:
			l.packAppeared(id, job, status)
		case !status.Phase.Finished():
			l.adoptOrphan(id, job, status)
		}
		return
	}
	if id.Attempt < t.attempt || t.state == settling || t.state == resting || t.state == packed || t.state == judging {
		return
	}
	// Where the task still waits to be launched, somebody launched the attempt meanwhile, or even a later one: a former leader
	// whose request was under way.
	if t.attempt != id.Attempt {
		t.attempt, t.startable, t.pendingSince = id.Attempt, time.Time{}, time.Time{}
	}
	waited := t.state == queued
	if t.state != running {
		l.move(t, running)
		l.takeSlot(t)
		t.launchedAt = time.Now()
	}
	if status.Phase.Finished() {
		l.finished(t, job, status)
		return
	}
	l.progress(t, job, status)
	if waited {
		l.provideAgain(t) // a former leader may not have got to it
	}
}

// JobGone is told by the tracker that a Job of this lane's source has been removed.
func (l *lane) JobGone(id jobs.Identity, job *batchv1.Job) {
	l.mu.Lock()
	defer l.endIfEmpty()
	defer l.mu.Unlock()
	delete(l.packs.records, job.Name)
	t := l.tasks[string(id.Messages)]
	if t == nil || id.Attempt != t.attempt {
		return
	}
	if t.state == settling || t.state == judging {
		t.recordLost = true // should this settlement fail, the Job cannot tell any more
		for _, m := range t.members {
			m.recordLost = true
		}
		return
	}
	if t.state != running {
		return
	}
	status := jobs.StatusOf(job)
	if !status.Phase.Finished() {
		status = jobs.Status{Phase: jobs.Failed, Reason: reasonDeleted, Message: "somebody deleted the Job while it ran", FinishedAt: time.Now()}
	}
	l.finished(t, job, status)
}

// adoptOrphan takes on a Job that runs without our holding its message: a former leader launched it. The message comes to us
// when its lease ends. The caller holds the mutex.
func (l *lane) adoptOrphan(id jobs.Identity, job *batchv1.Job, status jobs.Status) {
	t := &task{
		messages:   id.Messages,
		attempt:    id.Attempt,
		state:      running,
		launchedAt: job.CreationTimestamp.Time,
	}
	l.tasks[t.key()] = t
	l.takeSlot(t)
	l.progress(t, job, status)
	l.provideAgain(t)
}

// progress notes how far a running Job is. The caller holds the mutex.
func (l *lane) progress(t *task, job *batchv1.Job, status jobs.Status) {
	t.namespace = job.Namespace
	t.needsSecret = jobs.NeedsSecret(job)
	if t.starved && status.Phase != jobs.Pending {
		l.fed(t) // somebody else got to it
	}
	l.setPending(t, status.Phase == jobs.Pending && !t.starved)
	switch {
	case t.starved:
		return
	case !t.pending:
		t.started, t.pendingSince = t.attempt, time.Time{}
	case status.Suspended:
		// It waits to be admitted, by Kueue or by a person; its time begins then.
		t.startable, t.pendingSince = time.Time{}, time.Time{}
	case !t.needsSecret || t.provided:
		l.startable(t)
	}
}

// startable takes note that nothing of ours keeps a Job's pods from starting. The caller holds the mutex.
func (l *lane) startable(t *task) {
	if t.pendingSince.IsZero() && t.started != t.attempt {
		t.pendingSince = time.Now()
	}
	l.awaitStart(t)
}

// finished takes note of the end of a task's Job. The caller holds the mutex.
func (l *lane) finished(t *task, job *batchv1.Job, status jobs.Status) {
	t.finishedAt = time.Now()
	t.failed = status.Phase == jobs.Failed
	l.setPending(t, false)
	if !t.launchedAt.IsZero() {
		l.metrics.Run.Observe(metrics.Since(t.launchedAt))
	}
	if status.Phase == jobs.Failed {
		l.metrics.Failed(status.Reason)
	}
	t.recordLost = t.recordLost || status.Reason == reasonDeleted
	if status.Phase == jobs.Succeeded && jobs.Packed(job) {
		l.judgeLater(job, status, t)
		return
	}
	settings := l.settings.Load()
	s := decide(settings.spec, t.key(), t.attempt, job.Name, status)
	if s.outcome == requeued { // of the last attempt, the Event of the poisoned message tells
		l.report.problem(settings.object, attemptProblem(settings.spec, t, s))
	}
	if t.members == nil {
		l.decided(t, s)
		return
	}
	l.log.Info("attempt failed; its messages are given another", "messages", len(t.members), "attempt", t.attempt, "reason", s.reason, "job", s.job)
	l.move(t, settling)
	for _, m := range t.riding() {
		m.failed, m.recordLost, m.finishedAt = true, t.recordLost, t.finishedAt
		l.decided(m, decidePart(settings.spec, m, job, status, false))
	}
}
