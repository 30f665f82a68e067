package dispatcher

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

var (
	errFault     = errors.New("injected fault")
	jobsResource = schema.GroupResource{Group: "batch", Resource: "jobs"}
)

func forbidden(r *apiRequest) error {
	return apierrors.NewForbidden(jobsResource, r.name, errors.New("exceeded quota: small, requested: count/jobs.batch=1"))
}

func invalid(r *apiRequest) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: "batch", Kind: "Job"}, r.name, nil)
}

func internal(*apiRequest) error { return apierrors.NewInternalError(errFault) }

// outage makes all that a source does fail.
func (h *harness) outage(q *queue, err error) {
	for _, op := range []leasetest.Op{
		leasetest.OpReceive, leasetest.OpExtend, leasetest.OpComplete, leasetest.OpRequeue, leasetest.OpPoison, leasetest.OpBacklog,
	} {
		q.inject(op, leasetest.Fault{Err: err})
	}
}

// TestSettlingSurvivesTheSource runs each way to settle against each way to fail.
func TestSettlingSurvivesTheSource(t *testing.T) {
	faults := map[string]leasetest.Fault{
		"refused a few times": {Err: errFault, Times: 3},
		"throttled":           {Err: lease.ErrThrottled, Times: 3},
		"answers lost":        {Err: errFault, AfterEffect: true, Times: 2},
		"hangs once":          {Delay: time.Hour, Times: 1},
		"slow":                {Delay: 5 * time.Second, Times: 3},
	}
	for name, fault := range faults {
		t.Run("complete, "+name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize")
				p := h.start()
				q.Send("a", "b")
				q.inject(leasetest.OpComplete, fault)
				h.succeed(names(h.awaitJobs(2))...)
				h.eventually(2*time.Minute, "the queue is empty", func() bool { return q.Len() == 0 && p.metric("in_flight_tasks") == 0 })
				advance(5 * time.Minute)
				if got := len(h.jobs()); got != 2 {
					t.Errorf("%d Jobs for 2 messages", got)
				}
			})
		})
		t.Run("requeue, "+name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "retry-backoff", "10s..10s")
				h.start()
				id := q.Send("a")[0]
				q.inject(leasetest.OpRequeue, fault)
				h.fail(h.awaitJobs(1)[0].Name)
				h.eventually(3*time.Minute, "there is a second attempt", func() bool { return len(h.jobs()) == 2 })
				advance(5 * time.Minute)
				if got := h.jobs(); len(got) != 2 || got[1].Name != attempt(q, id, 2) {
					t.Errorf("Jobs %v, want one more, of attempt 2", names(got))
				}
			})
		})
		t.Run("poison, "+name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "max-attempts", "1")
				p := h.start()
				q.Send("a")
				q.inject(leasetest.OpPoison, fault)
				h.fail(h.awaitJobs(1)[0].Name)
				h.eventually(2*time.Minute, "the queue is empty", func() bool { return q.Len() == 0 && p.metric("in_flight_tasks") == 0 })
				advance(5 * time.Minute)
				if got := len(q.Poisoned()); got != 1 || len(h.jobs()) != 1 {
					t.Errorf("%d poisoned and %d Jobs, want one of each", got, len(h.jobs()))
				}
			})
		})
	}
}

// TestLostReceive: leases that an answer took with it come back when they expire.
func TestLostReceive(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		q.inject(leasetest.OpReceive, leasetest.Fault{Err: errFault, AfterEffect: true, Times: 1})
		q.Send("a", "b")
		h.start()
		h.awaitJobs(2)
	})
}

// TestLeaseLostWhileTheJobRuns (invariants 3 and 5).
func TestLeaseLostWhileTheJobRuns(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		p := h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		q.inject(leasetest.OpExtend, leasetest.Fault{Err: errFault})
		h.eventually(time.Minute, "the lease is lost", func() bool { return p.metric("leases_lost_total") >= 1 })
		q.heal()
		h.eventually(time.Minute, "the message comes again", func() bool { return p.metric("messages_received_total") >= 2 })
		advance(time.Minute)
		if got := h.jobs(); len(got) != 1 || got[0].Spec.ActiveDeadlineSeconds != nil || q.Len() != 1 {
			t.Fatalf("%d Jobs and %d messages, want the one Job to run on\n%s", len(got), q.Len(), h.dump())
		}
		h.succeed(job)
		h.eventually(time.Second, "the message is completed", func() bool { return q.Len() == 0 })
	})
}

// TestLeaseLostAndJobDone: the Job ends while nobody holds the message, which is completed when it comes again.
func TestLeaseLostAndJobDone(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		p := h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		h.outage(q, errFault)
		h.eventually(time.Minute, "the lease is lost", func() bool { return p.metric("leases_lost_total") >= 1 })
		h.succeed(job)
		advance(time.Second)
		if p.metric("in_flight_tasks") != 0 {
			t.Error("a task without Job and message takes up a slot")
		}
		q.heal()
		h.eventually(time.Minute, "the message is completed", func() bool { return q.Len() == 0 })
		h.eventually(time.Minute, "the Job is marked", func() bool { return h.job(job).Labels[jobs.LabelSettled] != "" })
		if len(h.jobs()) != 1 {
			t.Error("the message ran twice")
		}
	})
}

// TestNothingIsSettledPastTheDeadline (invariant 5): a call that began in time must not take effect after it.
func TestNothingIsSettledPastTheDeadline(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "16s")
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		leasedAt := time.Now()
		q.inject(leasetest.OpExtend, leasetest.Fault{Err: errFault})
		q.inject(leasetest.OpComplete, leasetest.Fault{Delay: 5 * time.Second, Times: 1})
		advance(10*time.Second - time.Since(leasedAt))
		h.succeed(job)
		advance(5500 * time.Millisecond) // 14 s are trusted, and the server waits for 16 s
		if q.Len() == 0 {
			t.Error("the message was completed with a lease that was not trusted any more")
		}
		q.heal()
		h.eventually(time.Minute, "the message is completed", func() bool { return q.Len() == 0 })
	})
}

// TestExpiredBeforeLaunch (invariant 5): the API server hangs until the lease is over.
func TestExpiredBeforeLaunch(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "16s")
		h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: internal, times: 4})
		q.inject(leasetest.OpExtend, leasetest.Fault{Err: errFault})
		q.inject(leasetest.OpReceive, leasetest.Fault{Err: errFault, Skip: 1})
		slow := h.api.inject(&apiFault{verbs: "create", resource: "jobs", delay: 13 * time.Second})
		q.Send("x")
		leasedAt := time.Now()
		h.never(30*time.Second, "a Job was created past the lease's deadline", func() bool {
			return time.Since(leasedAt) > 14*time.Second && len(h.jobs()) > 0
		})
		h.api.remove(slow)
		q.heal()
		h.awaitJobs(1)
	})
}

// TestOutageOfTheAPIServer: what fails in passing is tried again, receives stop meanwhile, and no Job is doubled.
func TestOutageOfTheAPIServer(t *testing.T) {
	for name, fault := range map[string]apiFault{
		"internal errors":                  {answer: internal},
		"internal errors after the effect": {answer: internal, afterEffect: true},
		"throttled":                        {answer: func(*apiRequest) error { return apierrors.NewTooManyRequests("slow down", 0) }},
		"connections refused":              {answer: func(*apiRequest) error { return errCut }},
		"hangs":                            {delay: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "max-in-flight", "20")
				p := h.start()
				advance(time.Second)
				fault.verbs, fault.resource = "create", "jobs"
				hit := h.api.inject(&fault)
				q.Send("a", "b", "c")
				advance(20 * time.Second)
				received := p.metric("messages_received_total")
				q.Send("d", "e", "f", "g")
				if !fault.afterEffect {
					advance(scoutEvery + time.Second)
					if got := p.metric("messages_received_total"); got > received+2 && fault.delay == 0 {
						t.Errorf("%v messages were received while no Job could be created", got-received)
					}
					advance(time.Minute)
				}
				h.api.remove(hit)
				h.eventually(time.Minute, "all have a Job", func() bool { return len(h.jobs()) == 7 })
				h.succeed(names(h.jobs())...)
				h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
				if got := h.jobs(); len(got) != 7 {
					t.Errorf("%d Jobs for 7 messages", len(got))
				}
			})
		})
	}
}

// TestOutageEndsWithoutASuccess: when no creation that failed is left to succeed, receiving goes on all the same.
func TestOutageEndsWithoutASuccess(t *testing.T) {
	t.Run("leases lost", func(t *testing.T) {
		world(t, func(t *testing.T, h *harness) {
			q := h.dispatch("resize", "lease-duration", "20s")
			h.start()
			advance(time.Second)
			fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: internal})
			q.Send("a")
			advance(time.Second)
			h.outage(q, errFault)
			advance(time.Minute)
			q.heal()
			h.api.remove(fault)
			h.awaitJobs(1)
		})
	})
	t.Run("then refused", func(t *testing.T) {
		world(t, func(t *testing.T, h *harness) {
			q := h.dispatch("resize")
			h.start()
			advance(time.Second)
			h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: internal, times: 1})
			quota := h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: forbidden})
			q.Send("a")
			advance(10 * time.Second)
			h.api.remove(quota)
			h.awaitJobs(1)
		})
	})
}

// TestRejectedJobs (invariant 7): a quota, an admission rule, a right.
func TestRejectedJobs(t *testing.T) {
	for name, answer := range map[string]func(*apiRequest) error{"quota": forbidden, "invalid": invalid} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q, other := h.dispatch("resize"), h.dispatch("other")
				p := h.start()
				advance(time.Second)
				quota := h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: func(r *apiRequest) error {
					if text(r.body, "metadata", "labels", jobs.LabelTemplate) == "other" {
						return nil
					}
					return answer(r)
				}})
				ids := q.Send("a", "b", "c")
				h.eventually(time.Second, "it is told", func() bool { return h.told("resize", "JobRejected") == 1 })
				other.Send("1", "2", "3")
				h.eventually(time.Second, "the other template is at full speed", func() bool { return len(h.of("other")) == 3 })
				advance(9 * time.Minute)
				if got := h.told("resize", "JobRejected"); got != 1 {
					t.Errorf("%d Events, want one", got)
				}
				if b, _ := q.Backlog(t.Context()); q.Len() != 3 || b.Leased != 0 {
					t.Errorf("%d messages in the queue and %d leased, want 3 and none", q.Len(), b.Leased)
				}
				if p.metric("template_state", "template", "cronjob/resize", "state", "blocked") != 1 {
					t.Error("the state is not blocked")
				}
				if p.metric("tasks_settled_total", "template", "cronjob/resize", "outcome", "requeued") != 0 {
					t.Error("an attempt was counted")
				}
				h.api.remove(quota)
				h.eventually(time.Minute, "dispatch has resumed", func() bool { return len(h.of("resize")) == 3 })
				for i, j := range h.of("resize") {
					if !slices.Contains(ids, j.Annotations[jobs.AnnotationMessageID]) || j.Annotations[jobs.AnnotationAttempt] != "1" {
						t.Errorf("Job %d is of message %s, attempt %s", i, j.Annotations[jobs.AnnotationMessageID], j.Annotations[jobs.AnnotationAttempt])
					}
				}
				h.ready(names(h.of("resize"))...)
				advance(2 * time.Minute)
				if h.told("resize", "Resumed") != 1 || p.metric("template_state", "template", "cronjob/resize", "state", "running") != 1 {
					t.Errorf("it was not told that dispatch goes on\n%s", h.dump())
				}
			})
		})
	}
}

// TestRefusalGivesBackWhatWaits (invariant 6): more messages wait than are launched at once.
func TestRefusalGivesBackWhatWaits(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", delay: time.Second, answer: forbidden})
		h.api.inject(&apiFault{verbs: "dry-run", resource: "jobs", answer: forbidden})
		q.sendMany(80)
		advance(900 * time.Millisecond)
		if h.leased(q) <= 32 {
			t.Fatalf("%d are leased, too few to show anything", h.leased(q))
		}
		advance(3 * time.Second)
		if got := h.leased(q); got != 0 || q.Len() != 80 {
			t.Errorf("%d are leased while nothing can be launched", got)
		}
	})
}

// TestQuotaThatIsUsedUpAgainAndAgain: with each Job that goes, there is room for one more, and a dry run passes.
func TestQuotaThatIsUsedUpAgainAndAgain(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: func(r *apiRequest) error {
			if len(h.unfinished()) >= 3 {
				return forbidden(r)
			}
			return nil
		}})
		for i := range 24 {
			q.Send(fmt.Sprint(i))
		}
		for range 18 {
			advance(30 * time.Second)
			h.succeed(h.unfinished()[0].Name)
		}
		if got := h.told("resize", "JobRejected") + h.told("resize", "Resumed"); got > 2 {
			t.Errorf("%d Events in nine minutes\n%s", got, h.dump())
		}
		for start := time.Now(); q.Len() > 0 && time.Since(start) < 30*time.Minute; advance(10 * time.Second) {
			h.succeed(names(h.unfinished())...)
		}
		if len(h.jobs()) != 24 || q.Len() != 0 {
			t.Errorf("%d Jobs for 24 messages, %d left", len(h.jobs()), q.Len())
		}
	})
}

// TestMarkingSurvivesTheAPIServer: a Job whose message is settled is marked in the end.
func TestMarkingSurvivesTheAPIServer(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		q.Send("a")
		job := h.awaitJobs(1)[0].Name
		h.api.inject(&apiFault{verbs: "patch", resource: "jobs", answer: internal, times: 5})
		h.succeed(job)
		h.eventually(time.Minute, "the Job is marked", func() bool { return h.job(job).Labels[jobs.LabelSettled] != "" })
	})
}

// TestHangingSourceSlowsNobodyElse (invariant 8).
func TestHangingSourceSlowsNobodyElse(t *testing.T) {
	for _, op := range []leasetest.Op{leasetest.OpCheck, leasetest.OpReceive, leasetest.OpComplete, leasetest.OpExtend, leasetest.OpBacklog} {
		t.Run(string(op), func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				hanging, other := h.dispatch("hanging"), h.dispatch("other")
				hanging.inject(op, leasetest.Fault{Delay: time.Hour})
				hanging.Send("x")
				h.start()
				for range 10 {
					other.Send("y")
					h.eventually(500*time.Millisecond, "the other has its Job", func() bool { return len(h.unfinishedOf("other")) == 1 })
					h.succeed(names(h.unfinishedOf("other"))...)
					h.succeed(names(h.unfinishedOf("hanging"))...)
					h.eventually(500*time.Millisecond, "the other is settled", func() bool { return other.Len() == 0 })
					advance(10 * time.Second)
				}
				hanging.heal()
				h.eventually(3*time.Minute, "the hanging one is settled", func() bool {
					h.succeed(names(h.unfinished())...)
					return hanging.Len() == 0
				})
				if len(h.of("hanging")) != 1 {
					t.Errorf("%d Jobs for one message", len(h.of("hanging")))
				}
			})
		})
	}
}

func (h *harness) unfinishedOf(template string) []batchv1.Job {
	var found []batchv1.Job
	for _, j := range h.unfinished() {
		if j.Labels[jobs.LabelTemplate] == template {
			found = append(found, j)
		}
	}
	return found
}

// leaseFault only delays.
func leaseFault(delay time.Duration) leasetest.Fault { return leasetest.Fault{Delay: delay} }
