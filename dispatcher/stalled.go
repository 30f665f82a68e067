package dispatcher

import (
	"context"
	"fmt"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

const (
	// stalledAfter is how long a Job may take to start before its pods are asked, and how often they are.
	stalledAfter = 30 * time.Second
	// creatingAfter is the same for a container that is being created, and nothing more to say: pulling a large image takes as long.
	creatingAfter = 2 * time.Minute
	// stalledEvery is how often a lane looks whether its Jobs start.
	stalledEvery = 10 * time.Second
)

// watchStalled tells of Jobs that do not start, until ctx ends: by an Event, by a metric and by the template's state. Only the pods of the Job
// that has waited longest are looked at: what holds up the Jobs of one template is mostly the same for all of them, and pods are many.
func (l *lane) watchStalled(ctx context.Context) {
	var looked time.Time
	var reason string
	for sleep(ctx, spread(stalledEvery)) {
		s, waiting := l.oldestPending()
		if waiting == 0 {
			l.setStalled("", 0)
			continue
		}
		if time.Since(looked) >= stalledAfter {
			looked = time.Now()
			reason = l.askPods(ctx, s, waiting)
		}
		l.setStalled(reason, waiting)
	}
}

// oldestPending is the Job that has not started for longest, and how many have not for too long; 0, on a good day.
func (l *lane) oldestPending() (oldest start, waiting int) {
	before := time.Now().Add(-stalledAfter)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unready == 0 {
		return start{}, 0
	}
	for _, t := range l.tasks {
		if t.state != running || t.pendingSince.IsZero() || t.pendingSince.After(before) {
			continue
		}
		waiting++
		if waiting == 1 || t.pendingSince.Before(oldest.since) {
			oldest = start{task: t, namespace: t.namespace, attempt: t.attempt, since: t.pendingSince}
		}
	}
	return oldest, waiting
}

// askPods asks the pods of a Job what they wait for, and tells. It returns the reason in a word; empty where nothing is wrong.
func (l *lane) askPods(ctx context.Context, s start, waiting int) (reason string) {
	name := jobs.Identity{Source: l.identity, Messages: s.task.messages, Attempt: s.attempt}.Name()
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	reason, why, err := jobs.WhyNotStarted(callCtx, l.pods, s.namespace, name)
	cancel()
	switch {
	case err != nil && ctx.Err() != nil:
		return ""
	case err != nil:
		l.metrics.Error(metrics.StageTrack, jobs.Class(err))
		reason, why = "PodsUnreadable", "its pods cannot be read: "+err.Error()
	case reason == "" || reason == "SchedulingGated":
		// Its pods run and are not ready yet, or wait to be let in, as suspended Jobs do. It is another Job's turn.
		l.mu.Lock()
		if t := s.task; t.attempt == s.attempt && t.pendingSince.Equal(s.since) {
			t.pendingSince = time.Now()
		}
		l.mu.Unlock()
		return ""
	case reason == "ContainerCreating" && time.Since(s.since) < creatingAfter:
		return ""
	}
	l.report.problem(l.settings.Load().object, stalledProblem(name, why, waiting))
	return reason
}

// setStalled takes note of why Jobs do not start; the reason is empty where they do.
func (l *lane) setStalled(reason string, waiting int) {
	l.mu.Lock()
	was, retired := l.stalled, l.retired
	l.stalled = reason
	l.mu.Unlock()
	if retired || was == "" && reason == "" {
		return // the series may be another lane's
	}
	l.metrics.SetStalled(reason, waiting)
	if (was == "") != (reason == "") {
		l.setState()
	}
	if reason == "" {
		l.report.resolved(l.settings.Load().object, aboutStalled)
	}
}

func (l *lane) isStalled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stalled != ""
}

func stalledProblem(job, why string, waiting int) problem {
	return problem{ // of one kind, whatever the reason: they take turns, as ErrImagePull and ImagePullBackOff do
		about: aboutStalled, reason: "JobsNotStarting",
		text: fmt.Sprintf("%d Jobs have had no ready pod for %v or more. The one that has waited longest, %s: %s", waiting, stalledAfter, job, why),
	}
}
