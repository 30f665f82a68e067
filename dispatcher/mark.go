package dispatcher

import (
	"context"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// mark is a Job whose message is settled, which its object does not say yet.
type mark struct {
	job      *batchv1.Job
	outcome  outcome
	failures int
}

// markConcurrency is how many Jobs a lane marks at once.
const markConcurrency = 8

// mark writes on the Jobs of settled messages that they are history, and hands them to the TTL controller, until ctx ends, or
// until the lane stops and nothing is left to do.
func (l *lane) mark(ctx context.Context) {
	var marking sync.WaitGroup
	defer marking.Wait()
	concurrency := make(chan struct{}, markConcurrency)
	for {
		next, ok, finished := l.nextMark()
		if finished {
			return
		}
		if !ok {
			select {
			case <-l.wakeMark:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case concurrency <- struct{}{}:
		case <-ctx.Done():
			return
		}
		marking.Go(func() {
			defer func() { <-concurrency }()
			l.markOne(ctx, next)
		})
	}
}

func (l *lane) nextMark() (next mark, ok, finished bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.toMark) == 0 {
		l.toMark = nil // do not keep the array of a busy hour
		return mark{}, false, l.stopping && l.busy == 0 && l.marking == 0 && len(l.toSettle) == 0
	}
	next = l.toMark[0]
	l.toMark = l.toMark[1:]
	l.marking++
	return next, true, false
}

func (l *lane) markOne(ctx context.Context, m mark) {
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	err := l.launcher.MarkSettled(callCtx, m.job, string(m.outcome), l.keep(m.job))
	cancel()
	if err == nil || ctx.Err() != nil {
		l.marked(nil)
		return
	}
	l.metrics.Error(metrics.StageMark, jobs.Class(err))
	l.log.Debug("marking a Job as settled failed, and is tried again", "job", m.job.Name, "err", err)
	delay := spread(doubled(200*time.Millisecond, 30*time.Second, m.failures))
	m.failures++
	time.AfterFunc(delay, func() { l.marked(&m) })
}

// marked ends one mark's turn; again is to be tried again.
func (l *lane) marked(again *mark) {
	l.mu.Lock()
	l.marking--
	if again != nil {
		l.toMark = append(l.toMark, *again)
	}
	l.mu.Unlock()
	wake(l.wakeMark)
	l.endIfEmpty()
}

// keep is how much longer a settled Job stays (invariant 4): as long as a request of a former leader can still be under way,
// or as the template wishes, whichever is longer.
func (l *lane) keep(job *batchv1.Job) time.Duration {
	s := l.settings.Load()
	window := s.spec.LeaseDuration + l.tuning.LaunchTimeout + l.tuning.LockDuration
	if ttl, ok := s.template.TTL(); ok {
		window = max(window, ttl-time.Since(jobs.StatusOf(job).FinishedAt))
	}
	return window
}
