package dispatcher

import (
	"context"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

// Some sources take a settlement back if they crash, or if their messages go to another dispatcher, until they have written down how far they are
// (lease.Confirmer). A Job must outlive that doubt (invariant 4): it is marked as history only once its messages' settlements are confirmed. The
// task itself, with its slot, is done before: a message that takes long must not keep those after it from being worked on.

// flushTime is how long a lane that stops may take to have its last settlements confirmed.
const flushTime = 2 * time.Second

// confirm marks the Jobs of messages whose settlements have become final, until ctx ends, or until the lane has settled all that it will.
func (l *lane) confirm(ctx context.Context, settled <-chan struct{}) {
	defer func() {
		l.mu.Lock()
		l.confirmed = true
		l.mu.Unlock()
		wake(l.wakeMark) // it ends when nothing is left to confirm
	}()
	if l.confirmer == nil {
		return
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-settled:
			stop()
		case <-waiting.Done():
		}
	}()
	for l.confirmSome(waiting) {
	}
	flushing, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	if err := l.confirmer.Flush(flushing); err != nil {
		l.log.Debug("the last settlements could not be made final; their messages come again, and are settled by their Jobs", "err", err)
	}
	l.confirmSome(waiting)
}

// confirmSome takes note of what has become of some settlements. It returns false when there are none and ctx has ended.
func (l *lane) confirmSome(ctx context.Context) bool {
	some, err := l.confirmer.Confirmed(ctx)
	l.mu.Lock()
	for _, c := range some {
		o, ok := l.unconfirmed[c.ID]
		delete(l.unconfirmed, c.ID)
		if ok && !c.Undone {
			l.markSettled(c.ID, o)
		}
	}
	l.mu.Unlock()
	return err == nil
}

// settledFor takes note that a message was completed or moved aside. The caller holds the mutex.
func (l *lane) settledFor(messageID string, o outcome) {
	if l.confirmer == nil || l.confirmer.Final(messageID) {
		l.markSettled(messageID, o)
		return
	}
	l.unconfirmed[messageID] = o
}

// markSettled has the Jobs of a message marked that have no other message left. The caller holds the mutex.
func (l *lane) markSettled(messageID string, o outcome) {
	for _, job := range l.tracker.OfMessage(l.identity, messageID) {
		if job.Labels[jobs.LabelSettled] != "" {
			continue
		}
		if o, all := l.packSettled(job, o); all {
			l.markLater(job, o)
		}
	}
}

// markFinalEvery is how often a lane looks for such Jobs: it looks at all.
const markFinalEvery = time.Minute

// markFinal marks the finished Jobs whose messages the source knows to be settled for good, although nobody could note it: a former leader crashed
// in between.
func (l *lane) markFinal() {
	if l.confirmer == nil || time.Since(l.markedFinalAt) < markFinalEvery {
		return
	}
	l.markedFinalAt = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, job := range l.tracker.OfSource(l.identity) {
		if job.Labels[jobs.LabelSettled] != "" || !jobs.StatusOf(job).Phase.Finished() {
			continue
		}
		if id, err := jobs.IdentityOf(job); err == nil && l.allFinal(id) && !l.anyTask(id) {
			delete(l.packs.records, job.Name)
			l.markLater(job, gone)
		}
	}
}

// allFinal reports whether all messages of a Job are settled for good, and none of them is still to be noted. The caller holds the mutex.
func (l *lane) allFinal(id jobs.Identity) bool {
	for message := range id.Messages.All() {
		if _, waits := l.unconfirmed[message]; waits || !l.confirmer.Final(message) {
			return false
		}
	}
	return true
}

// watchHeldBack tells of a message that has kept those after it from being final for long.
func (l *lane) watchHeldBack(b lease.Backlog) {
	object := l.settings.Load().object
	if b.HeldBack == 0 || b.HeldBackFor < heldBackPatience && !b.HeldBackFull {
		l.report.resolved(object, aboutHeldBack)
		return
	}
	l.report.problem(object, heldBackProblem(b))
}

// heldBackPatience is how long a message may hold others back until a person is told.
const heldBackPatience = 5 * time.Minute
