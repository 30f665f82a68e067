package dispatcher

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
)

// TestFailedAttemptsAreToldApart: by Event and by metric, each reason by itself.
func TestFailedAttemptsAreToldApart(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "3", "retry-backoff", "1m..1m")
		p := h.start()
		for _, reason := range []string{
			"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy", "FailedIndexes", "MaxFailedIndexesExceeded", reasonDeleted,
		} {
			id := q.Send("x")[0]
			job := attempt(q, id, 1)
			h.eventually(time.Minute, "the Job exists", func() bool { return len(h.unfinished()) > 0 && h.exists(job) })
			message := "the pod failed"
			if reason == reasonDeleted {
				h.deleteJob(job)
				message = "somebody deleted the Job while it ran"
			} else {
				h.condition(job, batchv1.JobFailed, reason, message)
			}
			h.eventually(time.Second, "it is told of "+reason, func() bool {
				return h.told("resize", "AttemptFailed", job, "attempt 1 of 3 on message "+id, reason+": "+message, "the next attempt comes in") == 1
			})
			if got := p.metric("task_failures_total", "reason", reason); got != 1 {
				t.Errorf("%v failures by %s, want 1", got, reason)
			}
			second := attempt(q, id, 2)
			h.eventually(2*time.Minute, "there is a second attempt", func() bool { return h.exists(second) })
			h.succeed(second)
		}
		if got := h.told("resize", "Poisoned"); got != 0 {
			t.Errorf("%d Events of poisoned messages", got)
		}
	})
}

func (h *harness) exists(job string) bool {
	for _, j := range h.jobs() {
		if j.Name == job {
			return true
		}
	}
	return false
}

// TestFailedAttemptsAreNoStream: failures of two kinds by turns are told once each, with how many there were a while later; and the last attempt
// is told of as a poisoned message alone.
func TestFailedAttemptsAreNoStream(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "2", "retry-backoff", "1m..1m")
		h.start()
		q.sendMany(20)
		for i, name := range names(h.awaitJobs(20)) {
			h.condition(name, batchv1.JobFailed, []string{"PodFailurePolicy", "BackoffLimitExceeded"}[i%2], "x")
		}
		advance(time.Second)
		if got := h.told("resize", "AttemptFailed"); got != 2 {
			t.Errorf("%d Events for failures of two kinds, want 2\n%s", got, h.dump())
		}
		h.eventually(2*time.Minute, "there are second attempts", func() bool { return len(h.unfinished()) == 20 })
		for i, name := range names(h.unfinished()) {
			h.condition(name, batchv1.JobFailed, []string{"PodFailurePolicy", "BackoffLimitExceeded"}[i%2], "x")
		}
		h.eventually(time.Second, "all are poisoned", func() bool { return len(q.Poisoned()) == 20 })
		advance(time.Second)
		if attempts, poisonings := h.told("resize", "AttemptFailed"), h.told("resize", "Poisoned", "attempt 2 of 2"); attempts != 2 || poisonings != 2 {
			t.Errorf("%d Events of attempts and %d of poisoned messages, want 2 of each\n%s", attempts, poisonings, h.dump())
		}
		advance(10 * time.Minute)
		q.Send("y")
		h.eventually(time.Minute, "there is a Job", func() bool { return len(h.unfinished()) == 1 })
		h.condition(h.unfinished()[0].Name, batchv1.JobFailed, "PodFailurePolicy", "x")
		h.eventually(time.Second, "it is told again", func() bool {
			return h.told("resize", "AttemptFailed", "PodFailurePolicy", "and 9 more of this kind") == 1
		})
	})
}
