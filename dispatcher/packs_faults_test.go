package dispatcher

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/jobs"
)

// What goes wrong with packs at the worst moment: at a limit, while answers are lost, while the template changes.

// wantOneJobEach fails where a message's attempt had more than one Job.
func (h *harness) wantOneJobEach() {
	h.t.Helper()
	seen := map[string]int{}
	for _, j := range h.jobs() {
		for _, id := range idsOf(h.t, &j) {
			seen[id+" #"+j.Annotations[jobs.AnnotationAttempt]]++
		}
	}
	for attempt, n := range seen {
		if n != 1 {
			h.t.Errorf("%s has %d Jobs: %v", attempt, n, packsOf(h.t, h.jobs()))
		}
	}
}

// TestDeletedPackAtTheLimit: messages that are back in the source take up no room.
func TestDeletedPackAtTheLimit(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.dispatch("resize", "tasks-per-job", "3", "max-in-flight", "1", "retry-backoff", "1s..1s")
		h.start()
		h.queue("resize").Send("a", "b", "c")
		h.deleteJob(h.awaitJobs(1)[0].Name)
		h.eventually(30*time.Minute, "the next attempt", func() bool { return len(h.jobs()) > 0 })
	})
}

// TestPacksPutOffAtTheLimit: the same, of messages whose Job could not be created.
func TestPacksPutOffAtTheLimit(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.dispatch("resize", "tasks-per-job", "3", "max-in-flight", "1")
		h.start()
		advance(time.Second)
		fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: internal})
		h.queue("resize").Send("a", "b", "c")
		advance(6 * time.Minute)
		h.api.remove(fault)
		h.eventually(30*time.Minute, "a Job", func() bool { return len(h.jobs()) > 0 })
	})
}

// TestFromPacksToSingleOnesAtTheLimit: what a pack had room for is more than there may be Jobs.
func TestFromPacksToSingleOnesAtTheLimit(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "10", "batch-wait", "10m", "max-in-flight", "2")
		h.start()
		advance(time.Second)
		q.Send("a", "b", "c", "d", "e", "f", "g", "h")
		advance(5 * time.Second)
		h.annotate("resize", "tasks-per-job", "", "batch-wait", "")
		advance(5 * time.Second)
		if n := len(h.unfinished()); n > 2 {
			t.Errorf("%d Jobs run, max-in-flight is 2", n)
		}
		h.eventually(10*time.Minute, "all is done", func() bool {
			for _, j := range h.unfinished() {
				h.report(j.Name, "")
			}
			return q.Len() == 0
		})
	})
}

// TestLostAnswerToAPackOfOne: one message is a pack as well, and must not join another while its Job may be there.
func TestLostAnswerToAPackOfOne(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "3", "batch-wait", "2s")
		h.start()
		advance(time.Second)
		h.api.gate.set(func(s *gateState) { s.held = true })
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", times: 1, afterEffect: true, answer: internal})
		fault := h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: forbidden})
		q.Send("a")
		advance(3 * time.Second)
		h.api.remove(fault)
		q.Send("b", "c")
		advance(time.Minute)
		h.api.gate.set(func(s *gateState) { s.held = false })
		advance(time.Second)
		h.wantOneJobEach()
	})
}

// TestFewerAttemptsPoisonNoNeighbours: a template that allows fewer attempts than a pack has had by then.
func TestFewerAttemptsPoisonNoNeighbours(t *testing.T) {
	for name, after := range map[string][]string{
		"single": {"tasks-per-job", "", "max-attempts", "1"}, "packs": {"max-attempts", "2"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "tasks-per-job", "27", "max-attempts", "4", "batch-wait", "2s", "retry-backoff", "1s..1s")
				h.start()
				for i := range 9 {
					q.Send(fmt.Sprint(i))
				}
				first := h.awaitJobs(1)[0].Name
				if name == "packs" {
					h.fail(first)
					h.eventually(time.Minute, "attempt 2", func() bool { return len(h.unfinished()) > 0 })
				}
				h.annotate("resize", after...)
				advance(time.Second)
				for _, j := range h.unfinished() {
					h.fail(j.Name)
				}
				advance(time.Minute)
				if n := len(q.Poisoned()); n > 0 {
					t.Errorf("%d poisoned: %s", n, q.Poisoned()[0].Reason)
				}
			})
		})
	}
}

// TestStarvedPackAtTheLimit: the messages that a Job waits for are received although it is the only one that may run.
func TestStarvedPackAtTheLimit(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "2", "max-in-flight", "1", "lease-duration", "20s")
		first := h.start()
		fault := h.api.inject(&apiFault{verbs: "create", resource: "secrets", answer: internal})
		q.Send("a", "b")
		h.eventually(time.Minute, "there is a Job", func() bool { return len(h.jobs()) > 0 })
		waiting := h.jobs()[0].Name
		first.crash()
		h.api.remove(fault)
		h.start()
		h.eventually(time.Hour, "its Secret is there", func() bool {
			_, err := h.admin.CoreV1().Secrets(namespace).Get(t.Context(), waiting, metav1.GetOptions{})
			return err == nil
		})
	})
}

// TestStartTimeoutWaitsForTheSecret: a refused Secret costs no attempt.
func TestStartTimeoutWaitsForTheSecret(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "payload", "secret", "start-timeout", "30s")
		h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "create dry-run", resource: "secrets", answer: forbidden})
		q.Send("a")
		advance(2 * time.Minute)
		for _, j := range h.jobs() {
			if e := j.Annotations[jobs.AnnotationEnded]; e != "" {
				t.Errorf("ended: %s", e)
			}
		}
	})
}

// TestPacksOfManyBytesKeepTheLimit: packs that are full before they have tasks-per-job messages take up no more slots than there are.
func TestPacksOfManyBytesKeepTheLimit(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "100", "max-in-flight", "2", "batch-wait", "1s")
		p := h.start()
		advance(time.Second)
		for range 40 {
			q.Send(strings.Repeat("x", 200<<10))
		}
		most, running := 0.0, 0
		h.eventually(10*time.Minute, "all is done", func() bool {
			most = max(most, p.metric("in_flight_tasks"))
			running = max(running, len(h.unfinished()))
			for _, j := range h.unfinished() {
				h.report(j.Name, "")
			}
			return q.Len() == 0
		})
		if most > 2 || running > 2 {
			t.Errorf("%v in flight and %d Jobs at once, want 2 at most", most, running)
		}
	})
}

// TestLostAnswerWhileBlocked: a lane that goes on afterwards finds out what became of a request.
func TestLostAnswerWhileBlocked(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "3", "batch-wait", "5m", "lease-duration", "20s")
		h.start()
		advance(time.Second)
		h.api.gate.set(func(s *gateState) { s.held = true })
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", times: 1, afterEffect: true, answer: internal})
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", times: 1, answer: forbidden})
		dry := h.api.inject(&apiFault{verbs: "dry-run", resource: "jobs", answer: forbidden})
		q.Send("a", "b", "c", "d", "e", "f")
		advance(2 * time.Second)
		h.api.remove(dry)
		advance(5 * time.Second)
		q.Send("g")
		advance(2 * time.Minute)
		h.api.gate.set(func(s *gateState) { s.held = false })
		advance(time.Second)
		h.wantOneJobEach()
	})
}

// TestRetiredWhileFindingOut: nothing is queued in a lane that launches nothing more.
func TestRetiredWhileFindingOut(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "3", "retry-backoff", "1s..1s")
		p := h.start()
		advance(time.Second)
		h.api.gate.set(func(s *gateState) { s.held = true })
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", times: 1, afterEffect: true, answer: internal})
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", times: 1, answer: invalid})
		q.Send("a", "b", "c")
		advance(2 * time.Second)
		h.fail(h.jobs()[0].Name)
		advance(5 * time.Second)
		l := p.lanes()[0]
		l.retire()
		advance(time.Minute)
		h.api.gate.set(func(s *gateState) { s.held = false })
		advance(30 * time.Minute)
		l.mu.Lock()
		for k, task := range l.tasks {
			t.Errorf("task %s in state %d, leased %v", k, task.state, task.lease != nil)
		}
		l.mu.Unlock()
	})
}

// TestFullByBytes: a pack that has no room for more does not wait for batch-wait.
func TestFullByBytes(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "100", "batch-wait", "10m")
		h.start()
		advance(time.Second)
		for range 20 {
			q.Send(strings.Repeat("x", 200<<10))
		}
		advance(time.Minute)
		if n := len(h.jobs()); n != 5 {
			t.Errorf("%d Jobs after a minute, want 5 of 4 messages each", n)
		}
	})
}
