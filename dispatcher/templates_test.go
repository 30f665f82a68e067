package dispatcher

import (
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// TestBadTemplates (invariant 7): each mistake is told once, with what to do about it, costs nothing and nobody else anything, and
// dispatch begins by itself when it is mended.
func TestBadTemplates(t *testing.T) {
	secret := func(name string, data map[string]string) *corev1.Secret {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{}}
		for k, v := range data {
			s.Data[k] = []byte(v)
		}
		return s
	}
	rewrite := func(h *harness, value string) {
		h.must(edit(h.api, "secrets", namespace, "own", func(s *corev1.Secret) { s.Data["connection"] = []byte(value) }))
	}
	tests := map[string]struct {
		bad  func(h *harness)
		told []string // parts of the Event's text
		mend func(h *harness)
	}{
		"unknown source": {
			func(h *harness) { h.create(cronJob("bad", "source", "rabbit")) },
			[]string{"lighterman.dev/source", "rabbit", "redis-streams"},
			func(h *harness) { h.annotate("bad", "source", annotation.SourceRedisStreams) },
		},
		"unknown key": {
			func(h *harness) { h.create(cronJob("bad", "max-inflight", "3")) },
			[]string{"lighterman.dev/max-inflight", "max-in-flight"},
			func(h *harness) { h.annotate("bad", "max-inflight", "") },
		},
		"value that does not parse": {
			func(h *harness) { h.create(cronJob("bad", "lease-duration", "two minutes")) },
			[]string{"lighterman.dev/lease-duration", "two minutes"},
			func(h *harness) { h.annotate("bad", "lease-duration", "2m") },
		},
		"not suspended": {
			func(h *harness) {
				c := cronJob("bad")
				c.Spec.Suspend = ptr.To(false)
				h.create(c)
			},
			[]string{"set spec.suspend: true"},
			func(h *harness) {
				h.must(edit(h.api, "cronjobs", namespace, "bad", func(c *batchv1.CronJob) { c.Spec.Suspend = ptr.To(true) }))
			},
		},
		"missing Secret": {
			func(h *harness) { h.create(cronJob("bad", "connection-secret", "own/connection")) },
			[]string{"lighterman.dev/connection-secret", "own/connection", "does not exist in namespace batch", "create it"},
			func(h *harness) { h.create(secret("own", map[string]string{"connection": "good"})) },
		},
		"missing key": {
			func(h *harness) {
				h.create(secret("own", map[string]string{"other": "good"}))
				h.create(cronJob("bad", "connection-secret", "own/connection"))
			},
			[]string{"own/connection", "add the key connection"},
			func(h *harness) { rewrite(h, "good") },
		},
		"empty key": {
			func(h *harness) {
				h.create(secret("own", map[string]string{"connection": ""}))
				h.create(cronJob("bad", "connection-secret", "own/connection"))
			},
			[]string{"own/connection", "empty"},
			func(h *harness) { rewrite(h, "good") },
		},
		"wrong connection string": {
			func(h *harness) {
				h.create(secret("own", map[string]string{"connection": "wrong password"}))
				h.create(cronJob("bad", "connection-secret", "own/connection"))
			},
			[]string{"own/connection", "does not open the source", "put a valid connection string there"},
			func(h *harness) { rewrite(h, "good") },
		},
		"connection string that does not parse": {
			func(h *harness) {
				h.create(secret("own", map[string]string{"connection": "unparsable"}))
				h.create(cronJob("bad", "connection-secret", "own/connection"))
			},
			[]string{"own/connection", "do not make a usable source"},
			func(h *harness) { rewrite(h, "good") },
		},
		"missing queue": {
			func(h *harness) { h.create(cronJob("bad", "stream", "misspelt")) },
			[]string{"lighterman.dev/stream", "misspelt", "does not exist"},
			func(h *harness) { h.annotate("bad", "stream", "bad") },
		},
		"queue that is created later": {
			func(h *harness) {
				h.queue("bad").refuses = lease.ErrNotFound
				h.create(cronJob("bad"))
			},
			[]string{"lighterman.dev/stream", "does not exist"},
			func(h *harness) { h.queue("bad").refuses = nil },
		},
		"rejected by the API server": {
			func(h *harness) {
				h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: func(r *apiRequest) error {
					if text(r.body, "metadata", "labels", "lighterman.dev/template") != "bad" {
						return nil
					}
					if spec := decode[batchv1.Job](r.body).Spec.Template.Spec; spec.RestartPolicy != corev1.RestartPolicyAlways {
						return nil
					}
					return invalid(r)
				}})
				c := cronJob("bad")
				c.Spec.JobTemplate.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyAlways
				h.create(c)
			},
			[]string{"would not take a Job of this template", "is invalid"},
			func(h *harness) {
				h.must(edit(h.api, "cronjobs", namespace, "bad", func(c *batchv1.CronJob) {
					c.Spec.JobTemplate.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
				}))
			},
		},
		"sets the payload itself": {
			func(h *harness) {
				c := cronJob("bad")
				c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "KEDA_TASK_DATA", Value: "x"}}
				h.create(c)
			},
			[]string{`container "main" sets KEDA_TASK_DATA itself`},
			func(h *harness) {
				h.must(edit(h.api, "cronjobs", namespace, "bad", func(c *batchv1.CronJob) {
					c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Env = nil
				}))
			},
		},
		"only named sets, and one is wrong": {
			func(h *harness) {
				h.create(cronJob("bad", "source", "", "stream", "", "connection-secret", "",
					"a.lighterman.dev/source", annotation.SourceRedisStreams, "a.lighterman.dev/stream", "bad",
					"a.lighterman.dev/connection-secret", "queue/connection", "a.lighterman.dev/priority", "high"))
			},
			[]string{"a.lighterman.dev/priority", "high"},
			func(h *harness) { h.annotate("bad", "a.lighterman.dev/priority", "5") },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				bad, good := h.queue("bad"), h.dispatch("good")
				test.bad(h)
				p := h.start()
				bad.Send("x")
				h.eventually(time.Second, "it is told", func() bool { return h.told("bad", "Misconfigured", test.told...) == 1 })
				advance(9 * time.Minute)
				if h.told("bad", "Misconfigured") != 1 {
					t.Errorf("it is a stream\n%s", h.dump())
				}
				if p.metric("template_state", "template", "cronjob/bad", "state", "misconfigured") != 1 ||
					p.metric("errors_total", "template", "cronjob/bad", "stage", "discover") == 0 {
					t.Error("the metrics do not tell")
				}
				if bad.calls(leasetest.OpReceive) != 0 || len(h.of("bad")) != 0 || bad.Len() != 1 {
					t.Error("a message was touched")
				}
				good.Send("y")
				h.eventually(500*time.Millisecond, "the other dispatches", func() bool { return len(h.of("good")) == 1 })
				test.mend(h)
				h.eventually(30*time.Second, "it dispatches", func() bool { return len(h.of("bad")) == 1 })
				advance(steadyAfter)
				if h.told("bad", "Resumed") != 1 {
					t.Errorf("that it goes on is not told\n%s", h.dump())
				}
				if got := p.metric("template_state", "state", "misconfigured"); got != 0 {
					t.Errorf("%v templates are misconfigured still", got)
				}
			})
		})
	}
}

// suspendedJob makes an annotated Job of the CronJob that it would otherwise be.
func suspendedJob(name string, annotations ...string) *batchv1.Job {
	c := cronJob(name, annotations...)
	job := &batchv1.Job{ObjectMeta: c.ObjectMeta, Spec: c.Spec.JobTemplate.Spec}
	job.Spec.Suspend = ptr.To(true)
	return job
}

func TestSuspendedJobAsTemplate(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.queue("resize")
		h.create(suspendedJob("resize"))
		p := h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0]
		if job.Spec.Suspend != nil || job.Annotations["lighterman.dev/source"] != "" {
			t.Errorf("suspend %v and the annotations %v are the template's own", job.Spec.Suspend, job.Annotations)
		}
		h.succeed(job.Name)
		h.eventually(time.Second, "the queue is empty", func() bool { return q.Len() == 0 })
		if p.metric("tasks_settled_total", "template", "job/resize", "outcome", "completed") != 1 {
			t.Error("the metrics do not name the Job as template")
		}

		h.queue("runs")
		running := suspendedJob("runs")
		running.Spec.Suspend = nil
		h.create(running)
		h.eventually(time.Second, "it is told", func() bool { return h.told("runs", "Misconfigured", "create it with spec.suspend: true") == 1 })
	})
}

// TestTwoTemplatesOnOneSource: the older dispatches, in whatever order they are found.
func TestTwoTemplatesOnOneSource(t *testing.T) {
	for name, makeThem := range map[string]func(h *harness){
		"the newer comes later": func(h *harness) {
			h.create(cronJob("older", "stream", "shared"))
			h.start()
			advance(5 * time.Second)
			h.create(cronJob("newer", "stream", "shared"))
		},
		"both are there": func(h *harness) {
			h.create(cronJob("older", "stream", "shared"))
			advance(5 * time.Second)
			h.create(cronJob("newer", "stream", "shared"))
			h.start()
		},
		"the older wants it later": func(h *harness) {
			h.create(cronJob("older", "stream", "shared", "source", "mistake"))
			advance(5 * time.Second)
			h.create(cronJob("newer", "stream", "shared"))
			h.start()
			advance(5 * time.Second)
			if h.procs[0].metric("template_state", "template", "cronjob/newer", "state", "running") != 1 {
				h.t.Error("the newer does not dispatch while the older is unusable")
			}
			h.annotate("older", "source", annotation.SourceRedisStreams)
		},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.queue("shared")
				makeThem(h)
				h.eventually(time.Minute, "the newer is told", func() bool {
					return h.told("newer", "Misconfigured", q.Identity(), "CronJob batch/older", "use another queue or consumer group") == 1
				})
				q.Send("x")
				h.eventually(time.Minute, "the older dispatches", func() bool { return len(h.of("older")) == 1 })
				advance(5 * time.Minute)
				if len(h.of("newer")) != 0 || h.told("newer", "Misconfigured") != 1 {
					t.Errorf("the newer dispatches too, or is told in a stream\n%s", h.dump())
				}
				p := h.procs[0]
				if p.metric("template_state", "template", "cronjob/newer", "state", "misconfigured") != 1 {
					t.Error("the newer is not misconfigured in the metrics")
				}
				h.deleteTemplate("older")
				q.Send("y")
				h.eventually(30*time.Second, "the newer has taken over", func() bool { return len(h.of("newer")) == 1 })
				h.succeed(names(h.jobs())...)
				h.eventually(5*time.Minute, "both messages are settled", func() bool { return q.Len() == 0 })
				if len(h.jobs()) != 2 {
					t.Errorf("%d Jobs for 2 messages", len(h.jobs()))
				}
				if p.metric("template_state", "template", "cronjob/older", "state", "running") != 0 {
					t.Error("the metrics of the template that is gone stay")
				}
			})
		})
	}
}

// TestOtherConsumerGroupIsAnotherSource.
func TestOtherConsumerGroupIsAnotherSource(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		one, two := h.queue("shared"), h.queue("shared@two")
		h.create(cronJob("one", "stream", "shared"))
		h.create(cronJob("two", "stream", "shared", "consumer-group", "two"))
		h.start()
		one.Send("x")
		two.Send("x")
		h.awaitJobs(2)
	})
}

func TestTemplateDeletedWhileJobsRun(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-in-flight", "2", "lease-duration", "30s")
		p := h.start()
		q.Send("a", "b", "c")
		running := names(h.awaitJobs(2))
		h.deleteTemplate("resize")
		advance(5 * time.Minute)
		if got := len(h.jobs()); got != 2 || h.leased(q) != 2 {
			t.Fatalf("%d Jobs and %d leased, want the two that ran", got, h.leased(q))
		}
		h.succeed(running[0])
		h.fail(running[1])
		h.eventually(time.Second, "the one is settled", func() bool { return q.Len() == 2 })
		h.eventually(time.Minute, "its Job is marked", func() bool { return h.job(running[0]).Labels["lighterman.dev/settled"] != "" })
		advance(time.Minute)
		if len(h.jobs()) != 2 {
			t.Error("something was launched without a template")
		}
		if got := p.metric("messages_received_total") + p.metric("template_state"); got != 0 {
			t.Error("the metrics of a template that is gone stay")
		}
		h.create(cronJob("resize"))
		h.eventually(time.Minute, "a new template goes on", func() bool { return len(h.jobs()) == 4 })
		if got := h.awaitJobs(4); got[2].Annotations["lighterman.dev/attempt"]+got[3].Annotations["lighterman.dev/attempt"] == "11" {
			t.Error("the failed attempt was forgotten")
		}
	})
}

// TestTemplateDeletedWhileItsLeasesAreLost: the lane ends with its last Job, and lets go of the source.
func TestTemplateDeletedWhileItsLeasesAreLost(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "20s")
		p := h.start()
		q.Send("a", "b")
		running := names(h.awaitJobs(2))
		h.deleteJob(running[1])
		h.outage(q, errFault)
		advance(time.Minute)
		h.deleteTemplate("resize")
		advance(time.Second)
		h.succeed(running[0])
		h.eventually(time.Minute, "the lane has ended", func() bool { return len(p.lanes()) == 0 })
	})
}

// TestSourceChangedWhileJobsRun: what came from the old source is settled there.
func TestSourceChangedWhileJobsRun(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		before, after := h.dispatch("before"), h.queue("after")
		h.start()
		before.Send("a")
		job := h.awaitJobs(1)[0].Name
		after.Send("b")
		h.annotate("before", "stream", "after")
		h.awaitJobs(2)
		before.Send("c")
		advance(time.Minute)
		if len(h.jobs()) != 2 {
			t.Error("the old source is dispatched still")
		}
		h.succeed(job)
		h.eventually(time.Second, "it is settled in the old source", func() bool { return before.Len() == 1 })
		h.succeed(names(h.unfinished())...)
		h.eventually(time.Second, "the new one is settled", func() bool { return after.Len() == 0 })
		// And back, while nothing runs.
		h.annotate("before", "stream", "before")
		h.awaitJobs(3)
	})
}

// TestSourceChangedToAMissingOne: what the template does not ask for any more is not dispatched, even if what it asks for cannot be had.
func TestSourceChangedToAMissingOne(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		p := h.start()
		q.Send("a")
		job := h.awaitJobs(1)[0].Name
		h.annotate("resize", "stream", "misspelt")
		advance(time.Second)
		q.Send("b")
		advance(time.Minute)
		if len(h.jobs()) != 1 || p.metric("template_state", "state", "misconfigured") != 1 {
			t.Errorf("%d Jobs, want the one\n%s", len(h.jobs()), h.dump())
		}
		h.succeed(job)
		h.eventually(time.Second, "what ran is settled", func() bool { return q.Len() == 1 })
		h.annotate("resize", "stream", "resize")
		h.awaitJobs(2)
	})
}

// TestLeaseDurationChanged opens the same source anew, beside Jobs that run.
func TestLeaseDurationChanged(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		h.start()
		q.Send("a")
		job := h.awaitJobs(1)[0].Name
		h.annotate("resize", "lease-duration", "1m")
		q.Send("b")
		h.awaitJobs(2)
		h.succeed(job)
		h.eventually(time.Minute, "it is settled", func() bool { return q.Len() == 1 })
	})
}

// TestRotatedCredentials: the connection string in use is refused, and a new one is put into the Secret.
func TestRotatedCredentials(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		p := h.start()
		advance(time.Second)
		h.outage(q, lease.ErrUnauthorized)
		q.Send("a")
		h.eventually(time.Minute, "it is told", func() bool { return h.told("resize", "SourceUnavailable", "put a valid connection string there") == 1 })
		advance(time.Minute)
		q.planned = nil // the new one is good; the old one stays bad
		h.must(edit(h.api, "secrets", namespace, "queue", func(s *corev1.Secret) { s.Data["connection"] = []byte("good again") }))
		h.eventually(time.Minute, "dispatch goes on", func() bool { return len(h.jobs()) == 1 })
		advance(time.Minute)
		if got := h.told("resize", "SourceUnavailable") + h.told("resize", "Misconfigured"); got > 1 {
			t.Errorf("told %d times\n%s", got, h.dump())
		}
		_ = p
	})
}

func TestSeveralSourcesOnOneObject(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		plain, thumbs, lost := h.queue("plain"), h.queue("thumbs"), h.queue("late")
		h.create(cronJob("resize", "stream", "plain", "max-in-flight", "2",
			"thumbs.lighterman.dev/source", annotation.SourceRedisStreams, "thumbs.lighterman.dev/stream", "thumbs",
			"thumbs.lighterman.dev/connection-secret", "queue/connection",
			"late.lighterman.dev/source", annotation.SourceRedisStreams, "late.lighterman.dev/stream", "late",
			"late.lighterman.dev/connection-secret", "later/connection"))
		p := h.start()
		plain.sendMany(3)
		thumbs.sendMany(3)
		lost.sendMany(1)
		h.eventually(time.Second, "each has its own limit", func() bool { return h.leased(plain) == 2 && h.leased(thumbs) == 2 })
		if h.told("resize", "Misconfigured", "late.lighterman.dev/connection-secret") != 1 {
			t.Errorf("Events:\n%s", h.dump())
		}
		if p.metric("template_state", "template", "cronjob/resize/late", "state", "misconfigured") != 1 ||
			p.metric("in_flight_tasks", "template", "cronjob/resize/thumbs") != 2 {
			t.Error("the metrics do not tell the sets apart")
		}
		h.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "later"}, Data: map[string][]byte{"connection": []byte("good")}})
		h.eventually(30*time.Second, "the third is dispatched", func() bool { return h.leased(lost) == 1 })
		h.annotate("resize", "thumbs.lighterman.dev/source", "", "thumbs.lighterman.dev/stream", "", "thumbs.lighterman.dev/connection-secret", "")
		advance(time.Second)
		h.succeed(names(h.jobs())...)
		h.eventually(time.Minute, "the set that is gone receives nothing more", func() bool { return plain.Len() == 1 && thumbs.Len() == 1 })
		h.never(time.Minute, "a message of the set that is gone is leased", func() bool { return h.leased(thumbs) > 0 })
		if got := p.metric("template_state", "template", "cronjob/resize/thumbs"); got != 0 {
			t.Error("the metrics of the set that is gone stay")
		}
		h.eventually(time.Second, "the plain one goes on", func() bool { return h.leased(plain) == 1 })
	})
}

// TestPassingFailureOfACheck: that a template which dispatches could not be looked at for a moment says nothing against it.
func TestPassingFailureOfACheck(t *testing.T) {
	for name, fault := range map[string]apiFault{
		"dry run fails":        {verbs: "dry-run", resource: "jobs", answer: internal},
		"dry run hangs":        {verbs: "dry-run", resource: "jobs", delay: time.Hour},
		"Secret is unreadable": {verbs: "get", resource: "secrets", answer: internal},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "jobs-per-second", "100")
				p := h.start()
				q.Send("a")
				h.awaitJobs(1)
				hit := h.api.inject(&fault)
				h.annotate("resize", "jobs-per-second", "1", "max-in-flight", "20")
				advance(time.Second)
				q.sendMany(30)
				h.eventually(30*time.Second, "as many run as may by now", func() bool { return len(h.jobs()) == 20 })
				h.ready(names(h.jobs())...)
				advance(2 * time.Minute)
				if len(h.jobs()) != 20 || p.metric("tasks_settled_total", "outcome", "returned") != 0 {
					t.Errorf("%d Jobs\n%s", len(h.jobs()), h.dump())
				}
				if p.metric("template_state", "state", "running") != 1 || h.told("resize", "CheckFailing") != 1 || len(h.events()) != 1 {
					t.Errorf("Events:\n%s", h.dump())
				}
				h.api.remove(hit)
				advance(2 * time.Minute)
				if h.told("resize", "Resumed") != 1 {
					t.Errorf("Events:\n%s", h.dump())
				}
			})
		})
	}
}

// TestStopWhileATemplateIsChecked: what fails only because the process stops is nobody's mistake.
func TestStopWhileATemplateIsChecked(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.dispatch("resize")
		p := h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "dry-run", resource: "jobs", delay: time.Hour})
		h.annotate("resize", "max-in-flight", "20")
		advance(time.Second)
		p.stop()
		advance(time.Minute)
		if len(h.events()) != 0 {
			t.Errorf("Events:\n%s", h.dump())
		}
	})
}

// TestManyHangingTemplates (invariant 8): they keep no other from being looked at.
func TestManyHangingTemplates(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		for i := range 40 {
			h.dispatch(fmt.Sprintf("hanging%d", i)).inject(leasetest.OpCheck, leasetest.Fault{Delay: time.Hour})
		}
		h.start()
		advance(5 * time.Minute)
		h.dispatch("good").Send("x")
		h.eventually(time.Second, "the good one has its Job", func() bool { return len(h.of("good")) == 1 })
	})
}
