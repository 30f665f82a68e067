package dispatcher

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

func TestMessageToJobToEmptyQueue(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		p := h.start()
		id := q.Send(`{"cost": "$5", "of": "$(SECRET)"}`)[0]
		job := h.awaitJobs(1)[0]

		if want := attempt(q, id, 1); job.Name != want {
			t.Errorf("the Job is %s, want %s", job.Name, want)
		}
		pod := job.Spec.Template.Spec
		payload := []corev1.EnvVar{
			{Name: jobs.EnvPayload, Value: `{"cost": "$$5", "of": "$$(SECRET)"}`},
			{Name: jobs.EnvMessageID, Value: id},
			{Name: jobs.EnvEnqueuedAt, Value: job.Annotations[jobs.AnnotationEnqueuedAt]},
			{Name: jobs.EnvAttempt, Value: "1"},
			{Name: jobs.EnvSource, Value: q.Identity()},
			{Name: jobs.EnvTaskCount, Value: "1"},
		}
		for _, c := range append(pod.InitContainers, pod.Containers...) {
			if diff := cmp.Diff(payload, c.Env); diff != "" {
				t.Errorf("environment of container %s (-want +got):\n%s", c.Name, diff)
			}
		}
		if diff := cmp.Diff(map[string]string{"team": "images", jobs.LabelTemplate: "resize"}, job.Labels); diff != "" {
			t.Errorf("labels (-want +got):\n%s", diff)
		}
		delete(job.Annotations, jobs.AnnotationEnqueuedAt)
		if diff := cmp.Diff(map[string]string{
			"note": "kept", jobs.AnnotationSource: q.Identity(), jobs.AnnotationMessageID: id, jobs.AnnotationAttempt: "1",
			jobs.AnnotationTemplate: "CronJob/resize", jobs.AnnotationFence: "batch/lock/0",
		}, job.Annotations); diff != "" {
			t.Errorf("annotations (-want +got):\n%s", diff)
		}

		// It runs for longer than any lease, and is about to succeed for a while.
		h.ready(job.Name)
		h.never(5*time.Minute, "another Job", func() bool { return len(h.jobs()) != 1 })
		h.condition(job.Name, batchv1.JobSuccessCriteriaMet, "", "")
		advance(5 * time.Minute)
		if q.Len() != 1 {
			t.Fatal("the message was completed before its Job was")
		}
		if job := h.job(job.Name); job.Spec.TTLSecondsAfterFinished != nil || job.Labels[jobs.LabelSettled] != "" {
			t.Fatal("the Job was marked before the message was settled")
		}

		h.succeed(job.Name)
		h.eventually(time.Second, "the queue is empty", func() bool { return q.Len() == 0 })
		h.eventually(time.Second, "the Job is marked", func() bool {
			return h.job(job.Name).Labels[jobs.LabelSettled] == string(completed)
		})
		// Lease duration, request timeout, lock duration and a margin for clocks, at least (invariant 4).
		if ttl := h.job(job.Name).Spec.TTLSecondsAfterFinished; ttl == nil || *ttl < 120+30+15+60 {
			t.Errorf("TTL %v, want at least 225 s", ttl)
		}
		for name, want := range map[string]float64{
			"messages_received_total": 1, "jobs_launched_total": 1, "tasks_settled_total": 1, "in_flight_tasks": 0, "errors_total": 0,
			"leases_lost_total": 0, "queue_wait_seconds": 1, "launch_seconds": 1, "run_seconds": 1, "settle_seconds": 1,
			"max_in_flight_tasks": 100,
		} {
			if got := p.metric(name, "template", "cronjob/resize"); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		if got := len(h.events()); got != 0 {
			t.Errorf("%d Events on a good day", got)
		}
		if got := h.api.count("create", "jobs") + h.api.count("patch", "jobs"); got != 2 {
			t.Errorf("%d requests for one Job, want 2", got)
		}
	})
}

func TestFailedAttemptsEndInThePoisonQueue(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "2", "retry-backoff", "1m..10m")
		p := h.start()
		id := q.Send("x")[0]
		h.fail(h.awaitJobs(1)[0].Name)
		failedAt := time.Now()
		h.never(47*time.Second, "a second attempt before the backoff has passed", func() bool { return len(h.jobs()) != 1 })
		second := h.awaitJobs(2)[1]
		if got := time.Since(failedAt); got > 61*time.Second {
			t.Errorf("the second attempt came after %v, want 1m at most", got)
		}
		if want := attempt(q, id, 2); second.Name != want {
			t.Errorf("the second attempt is %s, want %s", second.Name, want)
		}
		h.fail(second.Name)
		h.eventually(time.Second, "the message is poisoned", func() bool { return len(q.Poisoned()) == 1 && q.Len() == 0 })
		got := q.Poisoned()[0]
		if got.Attempts != 2 || got.Job != second.Name || got.Reason != "attempt 2 of 2 failed: BackoffLimitExceeded: the pod failed" {
			t.Errorf("poisoned with %+v", got)
		}
		h.eventually(time.Second, "both Jobs are marked", func() bool {
			return h.jobs()[0].Labels[jobs.LabelSettled] == string(poisoned) && h.jobs()[1].Labels[jobs.LabelSettled] == string(poisoned)
		})
		if p.metric("tasks_settled_total", "outcome", "requeued") != 1 || p.metric("tasks_settled_total", "outcome", "poisoned") != 1 ||
			p.metric("task_failures_total", "reason", "BackoffLimitExceeded") != 2 || p.metric("in_flight_tasks") != 0 {
			t.Error("the metrics do not tell of one requeued and one poisoned, and of two failures")
		}
		if h.told("resize", "Poisoned", id, "attempt 2 of 2") != 1 {
			t.Errorf("no Event of the poisoned message\n%s", h.dump())
		}
	})
}

// TestEarlyRedeliveryWaits: a source may cut the delay that it was asked for, and a leader that takes over knows of none.
func TestEarlyRedeliveryWaits(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.queue("resize", lease.Traits{MaxDelay: 5 * time.Second})
		h.dispatch("resize", "retry-backoff", "1m..1m")
		p := h.start()
		q.Send("x")
		h.fail(h.awaitJobs(1)[0].Name)
		h.never(47*time.Second, "a second attempt before the backoff has passed", func() bool { return len(h.jobs()) != 1 })
		h.awaitJobs(2)
		if p.metric("messages_received_total") < 4 {
			t.Error("the message was not redelivered early, so that this test shows nothing")
		}
		if got := p.metric("tasks_settled_total", "outcome", "requeued"); got != 1 {
			t.Errorf("%v attempts were counted, want 1", got)
		}
	})
}

func TestJobDeletedByHandIsAFailedAttempt(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "3", "retry-backoff", "10s..10s")
		p := h.start()
		id := q.Send("x")[0]
		h.awaitJobs(1)
		h.deleteJob(attempt(q, id, 1))
		h.awaitJobs(1)
		h.deleteJob(attempt(q, id, 2))
		h.awaitJobs(1)
		h.fail(attempt(q, id, 3))
		h.eventually(time.Second, "the message is poisoned", func() bool { return len(q.Poisoned()) == 1 && q.Len() == 0 })
		if got := q.Poisoned()[0].Attempts; got != 3 {
			t.Errorf("%d attempts, want 3", got)
		}
		if got := p.metric("task_failures_total", "reason", reasonDeleted); got != 2 {
			t.Errorf("%v failures for deleted Jobs, want 2", got)
		}
	})
}

// TestDeletedJobThenLostSettlement: after a Job was deleted by hand, the task is remembered while its message is away. A completion
// that could not be settled must not look like one more failure then.
func TestDeletedJobThenLostSettlement(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "retry-backoff", "1s..1s", "lease-duration", "20s")
		h.start()
		id := q.Send("x")[0]
		h.awaitJobs(1)
		h.deleteJob(attempt(q, id, 1))
		h.awaitJobs(1)
		h.outage(q, errFault)
		h.succeed(attempt(q, id, 2))
		advance(time.Minute) // the lease ends meanwhile
		q.heal()
		h.eventually(time.Minute, "the message is settled", func() bool { return q.Len() == 0 })
		if got := len(h.jobs()); got != 1 {
			t.Errorf("%d Jobs, want no other after the one that succeeded", got)
		}
	})
}

// TestDeletedJobThenLostAnswer: the task that is remembered after a Job was deleted by hand is forgotten with its message, and does not keep the
// next Job from being marked.
func TestDeletedJobThenLostAnswer(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "retry-backoff", "1s..1s", "lease-duration", "20s")
		h.start()
		id := q.Send("x")[0]
		h.awaitJobs(1)
		h.deleteJob(attempt(q, id, 1))
		h.awaitJobs(1)
		q.inject(leasetest.OpComplete, leasetest.Fault{Err: errFault, AfterEffect: true, Times: 1})
		h.succeed(attempt(q, id, 2))
		h.eventually(3*time.Minute, "the Job is marked", func() bool {
			return h.job(attempt(q, id, 2)).Labels[jobs.LabelSettled] != ""
		})
	})
}

// TestDeletedJobThenReturned: a message that could not be launched comes back with the attempt that it had.
func TestDeletedJobThenReturned(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "retry-backoff", "1s..1s")
		p := h.start()
		id := q.Send("x")[0]
		h.awaitJobs(1)
		quota := h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: forbidden})
		h.deleteJob(attempt(q, id, 1))
		h.eventually(time.Minute, "the second attempt is refused", func() bool {
			return p.metric("tasks_settled_total", "outcome", "returned") > 0
		})
		advance(time.Minute)
		h.api.remove(quota)
		if got := h.awaitJobs(1)[0].Name; got != attempt(q, id, 2) {
			t.Errorf("the next Job is %s, want attempt 2, %s", got, attempt(q, id, 2))
		}
	})
}

// TestJobDeletedBeforeItsMessageIsSettled: what is known of the Job must not be lost with it.
func TestJobDeletedBeforeItsMessageIsSettled(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "20s")
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		h.outage(q, errFault)
		h.succeed(job)
		advance(time.Second)
		h.deleteJob(job)
		advance(time.Minute)
		q.heal()
		h.eventually(time.Minute, "the message is settled", func() bool { return q.Len() == 0 })
		if got := len(h.jobs()); got != 0 {
			t.Errorf("the message ran again")
		}
	})
}

func TestForeignJobIsNotAdopted(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		id := q.Send("x")[0]
		foreign := &batchv1.Job{}
		foreign.Namespace, foreign.Name = namespace, attempt(q, id, 1)
		h.create(foreign)
		h.start()
		h.eventually(time.Second, "it is told", func() bool { return h.told("resize", "NameTaken", "delete or rename it") == 1 })
		advance(5 * time.Minute)
		if q.Len() != 1 || len(q.Poisoned()) != 0 || h.told("resize", "NameTaken") != 1 {
			t.Fatalf("%d messages, %d poisoned\n%s", q.Len(), len(q.Poisoned()), h.dump())
		}
		h.deleteJob(foreign.Name)
		job := h.awaitJobs(1)[0]
		if job.Name != foreign.Name {
			t.Errorf("the Job is %s, want attempt 1, %s", job.Name, foreign.Name)
		}
	})
}

func TestMessagesThatCannotBeCarried(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "payload", "env")
		p := h.start()
		ids := q.SendMessages(
			lease.Message{Body: bytes.Repeat([]byte("a\x00b"), 40_000)},
			lease.Message{Unreadable: fmt.Errorf("%w: it has no field named data", lease.ErrUnreadable)},
			lease.Message{Body: []byte("good")},
		)
		h.succeed(h.awaitJobs(1)[0].Name)
		h.eventually(time.Second, "the queue is empty", func() bool { return q.Len() == 0 })
		reasons := map[string]string{}
		for _, m := range q.Poisoned() {
			reasons[m.Message.ID] = m.Reason
			if m.Attempts != 0 || m.Job != "" {
				t.Errorf("poisoned with %+v, want no attempt and no Job", m)
			}
		}
		if len(reasons) != 2 || !strings.Contains(reasons[ids[0]], "byte 1 is NUL") || !strings.Contains(reasons[ids[1]], "no field named data") {
			t.Errorf("poisoned %v", reasons)
		}
		if h.told("resize", "PayloadRefused", ids[0], "NUL") != 1 || h.told("resize", "Poisoned") == 0 {
			t.Errorf("Events:\n%s", h.dump())
		}
		if p.metric("errors_total", "stage", "launch", "class", "payload") != 1 {
			t.Error("no error of class payload was counted")
		}
	})
}
