package dispatcher

import (
	"context"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// readBacklog tells the metrics how much the source holds, until ctx ends.
func (l *lane) readBacklog(ctx context.Context) {
	for {
		asked := time.Now()
		callCtx, cancel := context.WithTimeout(ctx, l.tuning.SourceTimeout)
		backlog, err := l.source.Backlog(callCtx)
		cancel()
		switch {
		case err == nil && !l.isRetired():
			l.metrics.SetBacklog(backlog.Messages, backlog.Leased)
			l.watchCondition(backlog)
			l.markFinal()
			if backlog.Messages == 0 && backlog.Unconfirmed == 0 {
				before := asked.Add(-l.settings.Load().spec.LeaseDuration - clockSkew)
				l.markGone(asked, before)
				l.endOrphans(ctx, before)
			}
		case err == nil: // another lane may have the series by now
		case ctx.Err() == nil:
			l.metrics.Error(metrics.StageBacklog, lease.Class(err))
			l.log.Debug("reading the backlog failed", "err", err)
		}
		if !sleep(ctx, heed(spread(l.tuning.BacklogInterval), err)) {
			return
		}
	}
}

// watchCondition tells of what is out of order in a source that can be read.
func (l *lane) watchCondition(b lease.Backlog) {
	s := l.settings.Load()
	for _, notice := range b.Notices {
		l.metrics.Error(metrics.StageReceive, lease.Class(notice))
		l.report.problem(s.object, noticeProblem(notice))
	}
	if b.Problem == nil {
		l.report.resolved(s.object, aboutPart)
	} else {
		l.report.problem(s.object, partitionProblem(s.spec, b.Problem))
	}
	if l.confirmer != nil {
		l.metrics.SetUnconfirmed(b.Unconfirmed, b.HeldBack)
		l.watchHeldBack(b)
	}
}
