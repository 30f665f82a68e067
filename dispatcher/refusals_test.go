package dispatcher

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/metrics"
)

// ofMessages is an answer for the Jobs of certain messages only, by their payload's beginning.
func ofMessages(beginning string, answer func(*apiRequest) error) func(*apiRequest) error {
	return func(r *apiRequest) error {
		for _, env := range decode[batchv1.Job](r.body).Spec.Template.Spec.Containers[0].Env {
			if env.Name == jobs.EnvPayload && strings.HasPrefix(env.Value, beginning) {
				return answer(r)
			}
		}
		return nil
	}
}

// TestMessageWhoseJobCannotBeCreated: it stops nobody (invariants 7 and 8), is not lost, uses no attempt up, and is told of once. The API
// server fails on it as it fails in passing, or refuses it for what it is.
func TestMessageWhoseJobCannotBeCreated(t *testing.T) {
	for name, answer := range map[string]func(*apiRequest) error{"fails": internal, "forbidden": forbidden, "invalid": invalid} {
		for _, bad := range []int{1, 30} {
			t.Run(fmt.Sprintf("%s, %d", name, bad), func(t *testing.T) {
				world(t, func(t *testing.T, h *harness) {
					q := h.dispatch("resize", "max-in-flight", "20")
					p := h.start()
					advance(time.Second)
					fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: ofMessages("bad", answer)})
					var ids []string
					for i := range bad {
						ids = append(ids, q.Send(fmt.Sprint("bad", i))...)
					}
					advance(10 * time.Second)
					for i := range 60 {
						q.Send(fmt.Sprint("good", i))
					}
					start := time.Now()
					for time.Since(start) < time.Hour && q.Len() > bad {
						advance(500 * time.Millisecond)
						h.succeed(names(h.unfinished())...)
					}
					if len(h.jobs()) != 60 {
						t.Fatalf("%d Jobs for 60 messages", len(h.jobs()))
					}
					limit := 30 * time.Second
					if bad > 20 { // they take up all there is, until they are put off often enough: 23 minutes or 31
						limit = 45 * time.Minute
					}
					if took := time.Since(start); took > limit {
						t.Errorf("60 messages took %v", took)
					}
					advance(10 * time.Minute)
					before := h.api.count("create", "jobs")
					advance(10 * time.Minute)
					// Of one that fails while nobody else asks, nothing can be known.
					if tries := h.api.count("create", "jobs") - before; name != "fails" && tries > 5*bad {
						t.Errorf("%d tries in ten minutes", tries)
					}
					q.Send("late")
					h.eventually(patience+2*scoutEvery, "one that comes late has its Job", func() bool { return len(h.jobs()) == 61 })
					if got := h.told("resize", "MessageRefused"); got == 0 || got > 5 {
						t.Errorf("it was told %d times in half an hour\n%s", got, h.dump())
					}
					if p.metric("tasks_settled_total", "outcome", "requeued") != 0 {
						t.Error("an attempt was counted")
					}
					h.api.remove(fault)
					seen := map[string]bool{}
					for range 24 {
						advance(longestPutOff / 20)
						for _, j := range h.unfinished() {
							seen[j.Annotations[jobs.AnnotationMessageID]+" "+j.Annotations[jobs.AnnotationAttempt]] = true
						}
						h.succeed(names(h.unfinished())...)
					}
					for _, id := range ids {
						if !seen[id+" 1"] {
							t.Errorf("message %s has no Job of a first attempt", id)
						}
					}
				})
			})
		}
	}
}

// TestDryRunThatPassesForNothing (invariant 7): where the real requests are refused all the same, the lane is stopped in the end.
func TestDryRunThatPassesForNothing(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		advance(time.Second)
		fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: forbidden})
		q.sendMany(150)
		advance(2 * time.Minute)
		before := h.api.count("create", "jobs")
		advance(time.Minute)
		if tries := h.api.count("create", "jobs") - before; tries > 4*32 || h.told("resize", "JobRejected") != 1 {
			t.Errorf("%d tries in a minute\n%s", tries, h.dump())
		}
		h.api.remove(fault)
		for range 24 {
			advance(longestPutOff / 20)
			h.succeed(names(h.unfinished())...)
		}
		if len(h.jobs()) != 150 {
			t.Errorf("%d Jobs for 150 messages", len(h.jobs()))
		}
	})
}

// TestTooLargeForEtcd: no other try can help.
func TestTooLargeForEtcd(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: func(*apiRequest) error {
			return &apierrors.StatusError{ErrStatus: metav1.Status{
				Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: "etcdserver: request is too large",
			}}
		}})
		q.Send("x")
		h.eventually(time.Second, "it is poisoned", func() bool { return len(q.Poisoned()) == 1 })
	})
}

// TestPoisonedMessagesAreLogged: the Event is told once in a while, and each message's reason stands in the log.
func TestPoisonedMessagesAreLogged(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "1")
		var log strings.Builder
		h.start(func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		ids := q.Send("a", "b", "c")
		h.fail(names(h.awaitJobs(3))...)
		h.eventually(time.Second, "all are poisoned", func() bool { return len(q.Poisoned()) == 3 })
		for _, id := range ids {
			found := false
			for line := range strings.Lines(log.String()) {
				found = found || strings.Contains(line, `msg="message poisoned"`) && strings.Contains(line, "message_id="+id) &&
					strings.Contains(line, "attempt=1") && strings.Contains(line, "job="+attempt(q, id, 1)) &&
					strings.Contains(line, "BackoffLimitExceeded: the pod failed") && strings.Contains(line, "destination=resize:poison")
			}
			if !found {
				t.Errorf("message %s is not in the log:\n%s", id, log.String())
			}
		}
		if got := h.told("resize", "Poisoned"); got != 1 {
			t.Errorf("%d Events", got)
		}
	})
}

// TestLateAnswer: what comes of creating an attempt's Job does not count for the next attempt's, which is being created by then.
func TestLateAnswer(t *testing.T) {
	spec := &annotation.Spec{Source: annotation.SourceRedisStreams, Stream: "s", MaxInFlight: 10, MaxAttempts: 5}
	for name, late := range map[string]func(*lane, order){
		"created":   func(l *lane, o order) { l.launched(o, &batchv1.Job{}, false) },
		"settled":   func(l *lane, o order) { l.settleTask(o, settlement{outcome: poisoned}) },
		"put off":   func(l *lane, o order) { l.putOff(o, true) },
		"abandoned": func(l *lane, o order) { l.abandon(o) },
	} {
		t.Run(name, func(t *testing.T) {
			log := slog.New(slog.DiscardHandler)
			l := newLane(laneDeps{
				slots: newSlots(10), log: log, report: newReporter(record.NewFakeRecorder(10), log),
				metrics: metrics.New(prometheus.NewRegistry()).Template(namespace, "s"),
			}, leasetest.NewMemory(leasetest.MemoryConfig{Name: "s"}), &settings{spec: spec, object: &corev1.ObjectReference{}})
			task := &task{messages: "m", attempt: 2, state: launching, lease: &lease.Lease{}}
			l.tasks["m"] = task
			late(l, order{task: task, attempt: 1, held: &lease.Lease{}})
			if task.state != launching || l.tasks["m"] != task {
				t.Errorf("the task is in state %d", task.state)
			}
		})
	}
}
