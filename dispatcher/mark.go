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

// tellMarkAfter is after how many failures to mark a Job a person should know.
const tellMarkAfter = 3

// mark writes on the Jobs of settled messages that they are history, and hands them to the TTL controller, until ctx ends, or
// until the lane stops and nothing is left to do.
func (l *lane) mark(ctx context.Context) {
	workOff(ctx, l.tuning.LaunchConcurrency, l.wakeMark, l.nextMark, l.markOne) // a Job is marked for each that is created
}

// workOff does what next hands out, so many at a time, until ctx ends, or until next says that it is finished. Where there is nothing, it waits to be woken.
func workOff[T any](ctx context.Context, concurrency int, woken <-chan struct{}, next func() (one T, ok, finished bool), do func(context.Context, T)) {
	var doing sync.WaitGroup
	defer doing.Wait()
	places := make(chan struct{}, concurrency)
	for {
		one, ok, finished := next()
		if finished {
			return
		}
		if !ok {
			select {
			case <-woken:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		doing.Go(func() {
			defer func() { <-places }()
			do(ctx, one)
		})
	}
}

// markLater has a Job marked, once. The caller holds the mutex.
func (l *lane) markLater(job *batchv1.Job, o outcome) {
	if _, ok := l.marks[job.UID]; ok {
		return
	}
	l.marks[job.UID] = struct{}{}
	l.toMark = append(l.toMark, mark{job: job, outcome: o})
	wake(l.wakeMark)
}

func (l *lane) nextMark() (next mark, ok, finished bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.toMark) == 0 {
		l.toMark = nil // do not keep the array of a busy hour
		return mark{}, false, l.stopping && l.busy == 0 && l.marking == 0 && len(l.toSettle) == 0 && l.confirmed
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
		l.marked(m, false)
		return
	}
	l.metrics.Error(metrics.StageMark, jobs.Class(err))
	l.log.Debug("marking a Job as settled failed, and is tried again", "job", m.job.Name, "err", err)
	delay := spread(doubled(200*time.Millisecond, 30*time.Second, m.failures))
	m.failures++
	if m.failures == tellMarkAfter {
		l.report.problem(l.settings.Load().object, markProblem(err))
	}
	time.AfterFunc(delay, func() { l.marked(m, true) })
}

// marked ends one mark's turn.
func (l *lane) marked(m mark, tryAgain bool) {
	l.mu.Lock()
	l.marking--
	if tryAgain {
		l.toMark = append(l.toMark, m)
	} else {
		delete(l.marks, m.job.UID)
	}
	l.mu.Unlock()
	wake(l.wakeMark)
	l.endIfEmpty()
}

// markGone marks the finished Jobs whose messages are settled although nobody could note it: the answer of the source was lost, or a
// dispatcher crashed in between. What shows it is a source that was empty when it was asked, at a time long after the Job finished: before is that time.
func (l *lane) markGone(emptyAt, before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tasks {
		if t.state == resting && t.receivedAt.Before(emptyAt) {
			l.remove(t) // its message does not come again
		}
	}
	if len(l.toMark) > 0 || l.marking > 0 {
		return // those of the last time may be among them
	}
	for _, job := range l.tracker.OfSource(l.identity) {
		id, err := jobs.IdentityOf(job)
		status := jobs.StatusOf(job)
		if err != nil || !status.Phase.Finished() || !status.FinishedAt.Before(before) ||
			job.Labels[jobs.LabelSettled] != "" || l.anyTask(id) {
			continue
		}
		delete(l.packs.records, job.Name)
		l.markLater(job, gone)
	}
}

// clockSkew is by how much the clocks of the API server and ours may differ.
const clockSkew = time.Minute

// keep is how much longer a settled Job stays (invariant 4): as long as a request of a former leader can still be under way,
// or as the template wishes, whichever is longer. The TTL counts from when the Job finished, by the API server's clock, and what has passed since
// is told by ours: where that is behind, the difference is missing.
func (l *lane) keep(job *batchv1.Job) time.Duration {
	s := l.settings.Load()
	window := l.window()
	if ttl, ok := s.template.TTL(); ok {
		window = max(window, ttl-time.Since(jobs.StatusOf(job).FinishedAt))
	}
	return window
}

// window is the de-duplication window, with a margin for clocks that differ.
func (l *lane) window() time.Duration {
	return l.settings.Load().spec.LeaseDuration + l.tuning.LaunchTimeout + l.tuning.LockDuration + clockSkew
}
