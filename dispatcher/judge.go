package dispatcher

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

// judgement is a pack's Job that has succeeded, and the messages of which it is to be found out whether they failed.
type judgement struct {
	job      *batchv1.Job
	status   jobs.Status
	tasks    []*task
	failures int
}

// judgeLater has the pods asked which messages of a pack failed, for a task or the members of a pack. The caller holds the mutex.
func (l *lane) judgeLater(job *batchv1.Job, status jobs.Status, t *task) {
	l.setPending(t, false)
	tasks := t.messagesOf()
	if t.members != nil {
		l.move(t, settling)
	}
	for _, m := range tasks {
		l.move(m, judging)
		m.finishedAt = t.finishedAt
	}
	for _, j := range l.packs.toJudge {
		if j.job.Name == job.Name && j.job.Namespace == job.Namespace {
			j.tasks = append(j.tasks, tasks...) // they come again one after another
			return
		}
	}
	l.packs.toJudge = append(l.packs.toJudge, &judgement{job: job, status: status, tasks: tasks})
	wake(l.wakeJudge)
}

// judge asks the pods of packs that have succeeded which messages failed, until ctx ends.
func (l *lane) judge(ctx context.Context) {
	workOff(ctx, l.tuning.LaunchConcurrency, l.wakeJudge, l.nextJudgement, l.judgeOne)
}

func (l *lane) nextJudgement() (next *judgement, ok, finished bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.packs.toJudge) == 0 {
		return nil, false, false
	}
	next = l.packs.toJudge[0]
	l.packs.toJudge = l.packs.toJudge[1:]
	return next, true, false
}

func (l *lane) judgeOne(ctx context.Context, j *judgement) {
	callCtx, cancel := context.WithTimeout(ctx, l.tuning.LaunchTimeout)
	verdict, err := jobs.VerdictOf(callCtx, l.pods, j.job)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return // their messages are given back
		}
		l.metrics.Error(metrics.StageTrack, jobs.Class(err))
		l.report.problem(l.settings.Load().object, verdictProblem(j.job.Name, err))
		delay := spread(doubled(200*time.Millisecond, 30*time.Second, j.failures))
		j.failures++
		time.AfterFunc(delay, func() {
			l.mu.Lock()
			l.packs.toJudge = append(l.packs.toJudge, j)
			l.mu.Unlock()
			wake(l.wakeJudge)
		})
		return
	}
	l.judged(j, verdict)
	l.endIfEmpty()
}

// reasonReported is the reason of a failed attempt whose task named the message as failed; reasonUnclear that of one whose task did not say it so that
// it can be understood.
const (
	reasonReported = "ReportedFailed"
	reasonUnclear  = "UnclearReport"
)

// judged decides on the messages of a pack that has succeeded.
func (l *lane) judged(j *judgement, verdict jobs.Verdict) {
	settings := l.settings.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	failed, told := 0, settlement{}
	for _, t := range j.tasks {
		if t.state != judging {
			continue // it was given back meanwhile
		}
		status := j.status
		switch {
		case verdict.Unclear != "":
			status.Phase, status.Reason, status.Message = jobs.Failed, reasonUnclear, verdict.Unclear
		case verdict.Failed[t.key()]:
			status.Phase, status.Reason, status.Message = jobs.Failed, reasonReported, "its task named the message as failed"
		}
		s := decidePart(settings.spec, t, j.job, status, verdict.Unclear == "")
		t.failed = status.Phase == jobs.Failed
		if t.late { // it was told of when the Job finished
			t.late = false
			l.resumeFinished(t, j.job, s)
			continue
		}
		if t.failed {
			failed++
			told = s
		}
		l.decided(t, s)
	}
	if l.holdsBack() {
		l.giveBackQueued()
	}
	if failed > 0 {
		l.metrics.Failed(told.failure)
		l.report.problem(settings.object, partProblem(settings.spec, told, failed, len(j.tasks)))
		l.log.Info("messages of a pack failed", "job", j.job.Name, "failed", failed, "of", len(j.tasks), "reason", told.reason)
	}
}

func verdictProblem(job string, err error) problem {
	return problem{
		about: aboutVerdict, key: jobs.Class(err), reason: "ReportUnreadable",
		text: fmt.Sprintf("Job %s has succeeded, and its pods cannot be asked which messages of its pack failed, so that these wait; check the right to list pods: %v", job, err),
	}
}
