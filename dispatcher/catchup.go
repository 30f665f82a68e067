package dispatcher

import (
	"context"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// catchUp makes sure, before a lane makes packs, that it knows every Job of the terms before: a message that is in a pack there must not go into another
// one here, and no name prevents that. The API server has taken a Job of this term by then, by dry run, so that where there is the fence it refuses
// those of former terms: what is listed after that is all that there will be.
func (l *lane) catchUp(ctx context.Context) {
	retry := backoff{base: 100 * time.Millisecond, limit: 5 * time.Second}
	for {
		l.mu.Lock()
		done, notBefore := l.packs.caughtUp, l.packs.notBefore
		l.mu.Unlock()
		if done || !l.packing() {
			select {
			case <-l.wakeCatchUp:
			case <-ctx.Done():
				return
			}
			continue
		}
		if !sleep(ctx, time.Until(notBefore)) {
			return
		}
		err := l.catchUpOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			l.mu.Lock()
			l.packs.caughtUp = l.packs.notBefore.Equal(notBefore) // it may have been changed meanwhile, there and back
			l.mu.Unlock()
			l.wakeAll()
			continue
		}
		l.metrics.Error(metrics.StageTrack, jobs.Class(err))
		l.report.problem(l.settings.Load().object, creationProblem(err))
		sleep(ctx, retry.next())
	}
}

// catchUpOnce lists the source's Jobs, and waits until the cache knows each of them, or it is gone.
func (l *lane) catchUpOnce(ctx context.Context) error {
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	listed, err := l.launcher.List(callCtx, l.namespace, l.identity)
	cancel()
	if err != nil {
		return err
	}
	for _, job := range listed {
		wait := backoff{base: 20 * time.Millisecond, limit: time.Second}
		for !l.tracker.Knows(job.Namespace, job.Identity) {
			if !sleep(ctx, wait.next()) {
				return ctx.Err()
			}
			if wait.failures < 5 {
				continue
			}
			callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
			exists, err := l.launcher.Exists(callCtx, job.Namespace, job.Identity)
			cancel()
			if err != nil {
				return err
			}
			if !exists {
				break
			}
		}
	}
	return nil
}
