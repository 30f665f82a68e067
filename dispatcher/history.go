package dispatcher

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// A CronJob keeps its newest finished Jobs for people to look at. So do we, of those whose message is settled: every Job gets the
// de-duplication window when it is marked, and the few that are still the newest when that is about to end are given more. While Jobs finish
// faster than that, none is touched twice.
const (
	// keepFor is how much more the newest Jobs are given, again and again. It ends at all so that those of a template which has gone do too,
	// without anybody having to think of them.
	keepFor = 7 * 24 * time.Hour
	// looksPerWindow is how often in a window a lane looks.
	looksPerWindow = 6
	// mostLetGo is the most Jobs that are let go at a time, beyond as many as are kept.
	mostLetGo = 16
)

// keepHistory keeps the newest finished Jobs, until ctx ends. What it goes by is in the Jobs, so that the next leader goes on with it.
func (l *lane) keepHistory(ctx context.Context) {
	for sleep(ctx, spread(l.window()/looksPerWindow)) {
		l.keepNewest(ctx)
	}
}

func (l *lane) keepNewest(ctx context.Context) {
	template := l.settings.Load().template
	if _, ok := template.TTL(); ok || l.isRetired() {
		return // the template says itself how long its Jobs stay, or has no say any more
	}
	now, window := time.Now(), l.window()
	var succeeded, failed []pastJob
	for _, job := range l.tracker.OfSource(l.identity) {
		if job.Labels[jobs.LabelSettled] == "" || !template.Made(job) {
			continue
		}
		switch status := jobs.StatusOf(job); status.Phase {
		case jobs.Succeeded:
			succeeded = append(succeeded, pastJob{job, status.FinishedAt})
		case jobs.Failed:
			failed = append(failed, pastJob{job, status.FinishedAt})
		}
	}
	limits := template.History()
	for _, h := range []struct {
		records []pastJob
		most    int
	}{{succeeded, limits.Succeeded}, {failed, limits.Failed}} {
		keep, letGo := retain(h.records, h.most, window, now)
		for _, r := range keep {
			l.keepJob(ctx, r.job, max(keepFor, window))
		}
		for _, r := range letGo {
			l.keepJob(ctx, r.job, window)
		}
	}
}

func (l *lane) keepJob(ctx context.Context, job *batchv1.Job, d time.Duration) {
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	defer cancel()
	if err := l.launcher.Keep(callCtx, job, d); err != nil && ctx.Err() == nil {
		l.metrics.Error(metrics.StageMark, jobs.Class(err))
		l.log.Debug("changing how long a Job is kept failed, and is tried again", "job", job.Name, "err", err)
	}
}

// pastJob is a Job whose message is settled.
type pastJob struct {
	job        *batchv1.Job
	finishedAt time.Time
}

// retain says which Jobs are to be kept for longer: those of the newest that would soon be gone. And which are to be let go: those that were kept
// for longer, and are not of the newest any more. It changes the order of the records.
func retain(records []pastJob, newest int, window time.Duration, now time.Time) (keep, letGo []pastJob) {
	slices.SortFunc(records, func(a, b pastJob) int {
		return cmp.Or(b.finishedAt.Compare(a.finishedAt), strings.Compare(a.job.Name, b.job.Name))
	})
	for i, r := range records {
		ttl := r.job.Spec.TTLSecondsAfterFinished
		if ttl == nil {
			continue // somebody took it away, and has the say
		}
		left := r.finishedAt.Add(time.Duration(*ttl) * time.Second).Sub(now)
		kept := left > window+clockSkew // longer than any mark gives
		soon := window / 2              // there are two more looks by then
		if kept {
			soon = keepFor / 2
		}
		switch {
		case i < newest && left < soon:
			keep = append(keep, r)
		case i >= newest && kept:
			letGo = append(letGo, r)
		}
	}
	if most := newest + mostLetGo; len(letGo) > most {
		letGo = letGo[len(letGo)-most:] // the oldest
	}
	return keep, letGo
}
