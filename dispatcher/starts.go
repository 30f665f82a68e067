package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// start is a Job that should have a ready pod by some time.
type start struct {
	task      *task
	namespace string
	attempt   int
	since     time.Time // when its pods could start
}

// reasonStartTimeout is the reason of a failed attempt whose pods did not start in time.
const reasonStartTimeout = "StartTimeout"

// awaitStart gives a Job start-timeout to start, from when it could. The caller holds the mutex.
func (l *lane) awaitStart(t *task) {
	if t.started == t.attempt || !t.startable.IsZero() || l.settings.Load().spec.StartTimeout == 0 {
		return
	}
	t.startable = time.Now()
	if len(l.starts) > 2*l.unready+64 {
		// Most have started by now; do not keep them for as long as the timeout.
		l.starts = slices.DeleteFunc(l.starts, func(s start) bool { return !s.awaited() })
	}
	l.starts = append(l.starts, start{task: t, namespace: t.namespace, attempt: t.attempt, since: t.startable})
	if len(l.starts) == 1 {
		wake(l.wakeStart)
	}
}

// awaited reports whether the Job still has not started: it has not ended or been suspended, and it is still the same attempt. The caller
// holds the mutex.
func (s *start) awaited() bool {
	t := s.task
	return t.state == running && t.pending && t.attempt == s.attempt && t.started != s.attempt && t.startable.Equal(s.since)
}

// watchStarts ends the Jobs that do not start in time, until ctx ends. Since all wait equally long, the first in line is the next
// to be due, and nobody else need be looked at.
func (l *lane) watchStarts(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, next := l.nextStart(time.Now())
		if due != nil {
			if !l.endUnstarted(ctx, due) && !sleep(ctx, spread(5*time.Second)) {
				return
			}
			continue
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-l.wakeStart:
		case <-ctx.Done():
			return
		}
	}
}

// nextStart takes the first Job in line if its time is up. Otherwise next is how long that will take.
func (l *lane) nextStart(now time.Time) (due *start, next time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	timeout := l.settings.Load().spec.StartTimeout
	for len(l.starts) > 0 {
		first := l.starts[0]
		if timeout == 0 {
			first.task.startable = time.Time{} // it was turned off
		}
		if !first.awaited() {
			l.starts = l.starts[1:]
			continue
		}
		if left := first.since.Add(timeout).Sub(now); left > 0 {
			return nil, left
		}
		l.starts = l.starts[1:]
		return &first, 0
	}
	l.starts = nil
	return nil, time.Hour
}

// endUnstarted fails a Job that did not start in time, and says why it did not. It returns false when that must be tried again.
func (l *lane) endUnstarted(ctx context.Context, s *start) bool {
	ctx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	defer cancel()
	current := l.settings.Load()
	name := jobs.Identity{Source: l.identity, Messages: s.task.messages, Attempt: s.attempt}.Name()
	_, why, err := jobs.WhyNotStarted(ctx, l.pods, s.namespace, name)
	if err != nil {
		why = "its pods cannot be read: " + err.Error()
	}
	l.mu.Lock()
	awaited := s.awaited()
	l.mu.Unlock()
	if !awaited {
		return true // it started while we looked
	}
	if err := l.launcher.End(ctx, s.namespace, name, reasonStartTimeout, why); err != nil {
		l.metrics.Error(metrics.StageTrack, jobs.Class(err))
		l.log.Warn("ending a Job that did not start failed, and is tried again", "job", name, "err", err)
		l.mu.Lock()
		l.starts = slices.Insert(l.starts, 0, *s)
		l.mu.Unlock()
		return false
	}
	l.report.problem(current.object, problem{
		about:  aboutStart,
		key:    why,
		reason: reasonStartTimeout,
		text:   fmt.Sprintf("Job %s had no ready pod within %v and counts as failed: %s", name, current.spec.StartTimeout, why),
	})
	return true
}
