package dispatcher

import (
	"context"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// block stops the lane because the API server refuses its Jobs for what they are (invariant 7): a quota, a right, an admission rule.
// What has not been launched goes back, uncounted.
func (l *lane) block(err error) {
	l.mu.Lock()
	first := l.blocked == nil
	l.blocked = err
	l.giveBackQueued()
	l.mu.Unlock()
	if first {
		l.report.problem(l.settings.Load().object, rejectedProblem(err))
		l.setState()
		wake(l.wakeProbe)
	}
}

// probe asks the API server, while the lane is blocked, whether it would take a Job by now, until ctx ends.
func (l *lane) probe(ctx context.Context) {
	retry := backoff{base: time.Second, limit: 30 * time.Second}
	var unblocked time.Time
	for {
		select {
		case <-l.wakeProbe:
		case <-ctx.Done():
			return
		}
		if time.Since(unblocked) > steadyAfter {
			// No sooner is the delay forgotten: a dry run can pass where the real request fails, and with a quota that is used up each
			// Job that goes makes room for one.
			retry.reset()
		}
		for l.isBlocked() {
			if !sleep(ctx, retry.next()) {
				return
			}
			l.tryUnblock(ctx)
			unblocked = time.Now()
		}
	}
}

// dryRun asks the API server whether it takes Jobs of the template.
func (l *lane) dryRun(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	defer cancel()
	s := l.settings.Load()
	return l.launcher.DryRun(ctx, s.template, l.identity, jobs.PayloadMode(s.spec.Payload))
}

func (l *lane) tryUnblock(ctx context.Context) {
	s := l.settings.Load()
	if err := l.dryRun(ctx); err != nil {
		l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
		if jobs.Rejected(err) { // anything else says nothing about the Jobs
			l.report.problem(s.object, rejectedProblem(err))
		}
		return
	}
	l.mu.Lock()
	l.blocked, l.refusals = nil, 0
	l.mu.Unlock()
	l.report.resolved(s.object, aboutRejected)
	l.setState()
	l.wakeAll()
}

func (l *lane) isBlocked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocked != nil
}

// setState tells the metrics what the lane is up to, and its limit.
func (l *lane) setState() {
	l.metrics.MaxInFlight.Set(float64(l.settings.Load().spec.MaxInFlight))
	switch {
	case l.isBlocked():
		l.metrics.SetState(metrics.StateBlocked)
	case l.settings.Load().spec.Paused:
		l.metrics.SetState(metrics.StatePaused)
	case l.isStalled():
		l.metrics.SetState(metrics.StateStalled)
	default:
		l.metrics.SetState(metrics.StateRunning)
	}
}
