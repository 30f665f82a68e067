package dispatcher

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// A request to create a Job whose answer did not come may have had its effect, or have it yet. Where each message has a Job of its own, it does not
// matter: whoever tries again means the same Job. A message that is packed must not go into another pack before it is known.

// lingers is for how much longer than we waited for it a request may be under way: the API server gives up after a minute by default.
const lingers = 30 * time.Second

// unlessCreated does what is to be done with an order whose Job was not created. Where a request for a pack's Job was sent at a time and its outcome is not
// known, that is found out first.
func (l *lane) unlessCreated(ctx context.Context, o order, asked time.Time, act func()) {
	if !o.packed || asked.IsZero() {
		act()
		return
	}
	job, known := l.findOut(ctx, o, asked)
	switch {
	case !known:
		l.forsake(o)
	case job == nil:
		act()
	default:
		l.launched(o, job, true)
	}
}

// findOut waits until no request can be under way any more, and asks for the Job then; nil where there is none. known is false when ctx ended before.
func (l *lane) findOut(ctx context.Context, o order, asked time.Time) (job *batchv1.Job, known bool) {
	id := l.taskOf(o).Identity
	namespace := l.settings.Load().template.Ref().Namespace
	retry := backoff{base: 200 * time.Millisecond, limit: 10 * time.Second}
	if !sleep(ctx, time.Until(asked.Add(l.tuning.LaunchTimeout+lingers))) {
		return nil, false
	}
	for {
		if !l.isCurrent(o) {
			return nil, true // the watch told; what is to be done looks at the state again
		}
		callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
		job, err := l.launcher.Find(callCtx, namespace, id)
		cancel()
		if err == nil {
			if job != nil {
				if is, err := jobs.IdentityOf(job); err != nil || is != id {
					return nil, true // somebody else's
				}
			}
			return job, true
		}
		l.metrics.Error(metrics.StageLaunch, jobs.Class(err))
		l.log.Debug("it cannot be found out whether a Job was created, and is tried again", "task", o.task.String(), "err", err)
		if !sleep(ctx, retry.next()) {
			return nil, false
		}
	}
}

// giveBack returns an order's messages, since we lead no more or are about to stop. Where the Job of a pack may be created yet, they are left to
// come again by themselves, when that will have been seen.
func (l *lane) giveBack(o order, asked time.Time) {
	if o.packed && !asked.IsZero() {
		l.forsake(o)
		return
	}
	l.settleTask(o, settlement{outcome: returned})
}

// forsake lets the leases of a pack expire.
func (l *lane) forsake(o order) {
	l.mu.Lock()
	if o.current() {
		messages := o.task.messagesOf()
		l.move(o.task, settling)
		for _, m := range messages {
			if m.lease != nil {
				l.keeper.Drop(m.lease)
				m.lease = nil
			}
			l.remove(m)
		}
	}
	l.mu.Unlock()
	l.endIfEmpty()
}
