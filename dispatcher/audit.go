package dispatcher

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

const (
	// auditEvery is how often a lane looks for Jobs that it waits for in vain, and for how long it lets a watch be late.
	auditEvery = time.Minute
	// auditBatch is the most that it asks the API server about at a time.
	auditBatch = 100
)

// audit finds the tasks whose Jobs no watch will ever tell of, until ctx ends. A Job that came and went while every watch was away is in no
// list and in no event: its task would wait for it for ever, with its slot and its lease.
func (l *lane) audit(ctx context.Context) {
	for sleep(ctx, spread(auditEvery)) {
		// Where the whole batch had gone, there are likely more.
		for gone := auditBatch; gone == auditBatch; {
			gone = l.auditOnce(ctx)
		}
	}
}

// auditOnce asks the API server about some of the Jobs that the cache does not know, and returns how many had gone.
func (l *lane) auditOnce(ctx context.Context) (gone int) {
	for i, m := range l.missing() {
		if i == auditBatch {
			return gone
		}
		callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
		exists, err := l.launcher.Exists(callCtx, m.namespace, m.id)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				l.metrics.Error(metrics.StageTrack, jobs.Class(err))
				l.log.Debug("a Job that the cache does not know cannot be read, and is asked for again", "err", err)
			}
			return gone
		}
		if exists || l.tracker.Knows(m.namespace, m.id) {
			continue // the watch is late, and will tell
		}
		gone++
		l.log.Warn("a Job is gone, and no watch told of it", "job", m.id.Name(), "messages", m.id.Messages.Len())
		l.JobGone(m.id, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: m.id.Name()}})
	}
	return gone
}

// missingJob is a Job that a task waits for and that the cache does not know.
type missingJob struct {
	id        jobs.Identity
	namespace string
}

// missing is the Jobs that have been waited for for a while and that the cache does not know; none, on a good day.
func (l *lane) missing() []missingJob {
	before := time.Now().Add(-auditEvery)
	l.mu.Lock()
	found := make([]missingJob, 0, len(l.tasks))
	for _, t := range l.tasks {
		if t.state == running && t.launchedAt.Before(before) {
			found = append(found, missingJob{jobs.Identity{Source: l.identity, Messages: t.messages, Attempt: t.attempt}, t.namespace})
		}
	}
	l.mu.Unlock()
	unknown := found[:0]
	for _, m := range found {
		if !l.tracker.Knows(m.namespace, m.id) {
			unknown = append(unknown, m)
		}
	}
	return unknown
}
