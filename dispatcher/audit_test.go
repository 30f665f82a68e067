package dispatcher

import (
	"fmt"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
)

// blind breaks off the watches of Jobs, and returns what lets them list and watch anew: what came and went meanwhile they never see.
func (h *harness) blind() (see func()) {
	away := h.api.inject(&apiFault{verbs: "list watch", resource: "jobs", answer: internal})
	h.api.breakWatches()
	advance(time.Second)
	return func() { h.api.remove(away) }
}

// TestJobThatNoWatchSaw: it came and went while every watch was away.
func TestJobThatNoWatchSaw(t *testing.T) {
	for name, succeeded := range map[string]bool{"deleted while it ran": false, "finished first": true} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "retry-backoff", "1s..1s", "max-attempts", "2")
				p := h.start()
				advance(time.Second)
				see := h.blind()
				id := q.Send("x")[0]
				job := h.awaitJobs(1)[0].Name
				if succeeded {
					h.succeed(job)
				}
				h.deleteJob(job)
				see()
				// Whether it succeeded nobody can know, so that it counts as any Job that somebody deleted.
				h.eventually(3*time.Minute, "there is a second attempt", func() bool { return len(h.jobs()) == 1 })
				if got := h.jobs()[0].Name; got != attempt(q, id, 2) {
					t.Errorf("the next Job is %s, want attempt 2", got)
				}
				if got := p.metric("task_failures_total", "reason", reasonDeleted); got != 1 {
					t.Errorf("%v failures for deleted Jobs, want 1", got)
				}
				h.succeed(attempt(q, id, 2))
				h.eventually(2*time.Minute, "the message is completed", func() bool { return q.Len() == 0 && p.metric("in_flight_tasks") == 0 })
			})
		})
	}
}

// TestManyJobsThatNoWatchSaw: they free their slots in little time, one request each, whatever the size of a batch.
func TestManyJobsThatNoWatchSaw(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-in-flight", "1000", "max-attempts", "1")
		h.start()
		advance(time.Second)
		see := h.blind()
		const n = 2*auditBatch + 50
		q.sendMany(n)
		for _, job := range names(h.awaitJobs(n)) {
			h.deleteJob(job)
		}
		see()
		before := h.api.count("get", "jobs")
		h.eventually(3*time.Minute, "all messages are poisoned", func() bool { return len(q.Poisoned()) == n })
		if got := h.api.count("get", "jobs") - before; got != n {
			t.Errorf("%d requests for %d Jobs", got, n)
		}
	})
}

// TestLateWatchIsAwaited: a Job that is there, and that the watch has not told of yet, is left to run.
func TestLateWatchIsAwaited(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		p := h.start()
		advance(time.Second)
		see := h.blind()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		h.never(10*time.Minute, "the task was given up", func() bool { return p.metric("task_failures_total") != 0 || len(h.jobs()) != 1 })
		if got := h.api.count("get", "jobs"); got < 5 || got > 15 {
			t.Errorf("%d requests in ten minutes for the one Job", got)
		}
		see()
		h.succeed(job)
		h.eventually(time.Minute, "the message is completed", func() bool { return q.Len() == 0 })
	})
}

// TestAuditWhileTheAPIServerFails: what could not be asked is asked for again.
func TestAuditWhileTheAPIServerFails(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "1")
		p := h.start()
		advance(time.Second)
		see := h.blind()
		q.Send("x")
		h.deleteJob(h.awaitJobs(1)[0].Name)
		fault := h.api.inject(&apiFault{verbs: "get", resource: "jobs", answer: internal})
		see()
		h.never(5*time.Minute, "the message was settled on no evidence", func() bool { return len(q.Poisoned()) != 0 })
		if p.metric("errors_total", "stage", "track") == 0 {
			t.Error("the failures were not counted")
		}
		h.api.remove(fault)
		h.eventually(3*time.Minute, "the message is poisoned", func() bool { return len(q.Poisoned()) == 1 })
	})
}

// TestAuditAsksNothingOnAGoodDay: Jobs that run for hours cost no request.
func TestAuditAsksNothingOnAGoodDay(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		for i := range 20 {
			q.Send(fmt.Sprint(i))
		}
		for _, j := range h.awaitJobs(20) {
			h.ready(j.Name)
		}
		before := h.api.count("get", "jobs")
		advance(3 * time.Hour)
		if got := h.api.count("get", "jobs") - before; got != 0 {
			t.Errorf("%d requests", got)
		}
		for _, j := range h.jobs() {
			if jobs.StatusOf(&j).Phase != jobs.Running {
				t.Errorf("Job %s does not run any more", j.Name)
			}
		}
	})
}
