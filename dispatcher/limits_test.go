package dispatcher

import (
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

func (q *queue) sendMany(n int) {
	for i := range n {
		q.Send(fmt.Sprint(i))
	}
}

// leased is how many messages are handed out.
func (h *harness) leased(q *queue) int {
	b, err := q.Backlog(h.t.Context())
	h.must(err)
	return int(b.Leased)
}

// TestMaxInFlight (invariant 6): no more is leased than can run.
func TestMaxInFlight(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-in-flight", "5")
		p := h.start()
		q.sendMany(20)
		for q.Len() > 0 {
			want := min(5, q.Len())
			h.eventually(2*time.Second, fmt.Sprintf("%d run", want), func() bool { return len(h.unfinished()) == want })
			advance(2 * time.Second)
			if got := h.leased(q); got != want || len(h.unfinished()) != want || p.metric("in_flight_tasks") != float64(want) {
				t.Fatalf("%d leased, %d run, %v in flight; want %d", got, len(h.unfinished()), p.metric("in_flight_tasks"), want)
			}
			h.succeed(names(h.unfinished())[:min(3, want)]...)
			advance(time.Second)
		}
		if len(h.jobs()) != 20 {
			t.Errorf("%d Jobs for 20 messages", len(h.jobs()))
		}
	})
}

// TestGlobalMaxInFlight: when slots are scarce, the higher priority goes first.
func TestGlobalMaxInFlight(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		low, high := h.dispatch("low"), h.dispatch("high", "priority", "10")
		h.start(func(c *Config) { c.MaxInFlight = 4 })
		low.sendMany(10)
		h.eventually(time.Second, "4 run", func() bool { return len(h.unfinished()) == 4 })
		high.sendMany(6)
		advance(time.Second)
		for range 12 {
			if got := len(h.unfinished()); got > 4 {
				t.Fatalf("%d Jobs run, want 4 at most", got)
			}
			h.succeed(h.unfinished()[0].Name)
			advance(time.Second)
		}
		// 4 of low were there first, then came all of high. What goes to a lane before its message is there may be low's.
		order := ""
		for _, j := range h.jobs() {
			order += j.Labels[jobs.LabelTemplate][:1]
		}
		if len(order) != 16 || order[:10] != "llllhhhhhh" {
			t.Errorf("launched in the order %s", order)
		}
		h.succeed(names(h.unfinished())...)
		advance(time.Second)
	})
}

// TestIdleLanesDoNotStarveABusyOne (invariant 8): slots are scarce, and lanes of higher priority look for messages that do not come.
func TestIdleLanesDoNotStarveABusyOne(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		busy := h.dispatch("busy")
		for i := range 3 {
			name := fmt.Sprintf("idle%d", i)
			h.queue(name, lease.Traits{Waits: true})
			h.dispatch(name, "priority", "10")
		}
		h.start(func(c *Config) { c.MaxInFlight = 20 })
		advance(2 * time.Second)
		busy.sendMany(50)
		start := time.Now()
		h.eventually(time.Minute, "all are done", func() bool {
			h.succeed(names(h.unfinished())...)
			return busy.Len() == 0
		})
		t.Logf("50 messages took %v", time.Since(start))
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("50 messages took %v", took)
		}
	})
}

func TestJobsPerSecond(t *testing.T) {
	for _, test := range []struct {
		rate   string
		lasts  time.Duration
		launch [2]int
		leased int // the most that wait at any time, with those that run
	}{
		{"0.5", 2 * time.Minute, [2]int{60, 61}, 1},
		{"20", 30 * time.Second, [2]int{592, 603}, 20},
	} {
		t.Run(test.rate, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "jobs-per-second", test.rate, "max-in-flight", "10000")
				h.start()
				advance(time.Second)
				q.sendMany(1000)
				for start := time.Now(); time.Since(start) < test.lasts; advance(time.Second) {
					if waiting := h.leased(q) - len(h.jobs()); waiting > test.leased {
						t.Fatalf("%d are leased and wait, want %d at most (invariant 6)", waiting, test.leased)
					}
				}
				if got := q.calls(leasetest.OpReceive); got > len(h.jobs())/min(test.leased, 4)+20 {
					t.Errorf("%d receives for %d Jobs", got, len(h.jobs()))
				}
				if got := len(h.jobs()); got < test.launch[0] || got > test.launch[1] {
					t.Errorf("%d Jobs in %v, want %v", got, test.lasts, test.launch)
				}
			})
		})
	}
}

// TestMaxPending: the API server is slow, so that many creations would be under way at once.
func TestMaxPending(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-pending", "3")
		h.start()
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "create", resource: "jobs", delay: 700 * time.Millisecond})
		q.sendMany(12)
		for len(h.jobs()) < 12 {
			before := len(h.jobs())
			advance(5 * time.Second)
			var pending []string
			for _, j := range h.jobs() {
				if jobs.StatusOf(&j).Phase == jobs.Pending {
					pending = append(pending, j.Name)
				}
			}
			if len(h.jobs()) == 12 {
				break
			}
			if len(pending) != 3 || h.leased(q) != len(h.unfinished()) {
				t.Fatalf("%d Jobs have no ready pod, want 3; %d leased for %d unfinished Jobs", len(pending), h.leased(q), len(h.unfinished()))
			}
			h.ready(pending[0])
			h.succeed(pending[1])
			if len(h.jobs()) < before {
				t.Fatal("Jobs vanished")
			}
		}
	})
}

func TestStartTimeout(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "start-timeout", "2m", "retry-backoff", "1s..1s")
		p := h.start()
		id := q.Send("x")[0]
		job := h.awaitJobs(1)[0].Name
		h.create(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pod", Labels: map[string]string{batchv1.JobNameLabel: job}},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				Name: "main", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}},
			}}},
		})
		h.never(119*time.Second, "the Job was ended early", func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil })
		h.eventually(2*time.Second, "the Job is ended", func() bool {
			d := h.job(job).Spec.ActiveDeadlineSeconds
			return d != nil && *d == 1 && h.job(job).Annotations[jobs.AnnotationEnded] == "StartTimeout: container main: ErrImagePull: no such image"
		})
		if h.told("resize", reasonStartTimeout, job, "container main: ErrImagePull: no such image") != 1 {
			t.Errorf("Events:\n%s", h.dump())
		}
		h.condition(job, batchv1.JobFailed, "DeadlineExceeded", "")
		second := h.awaitJobs(2)[1]
		if second.Name != attempt(q, id, 2) || p.metric("task_failures_total", "reason", reasonStartTimeout) != 1 {
			t.Errorf("the next Job is %s, and %v failures were counted", second.Name, p.metric("task_failures_total"))
		}
		h.ready(second.Name)
		h.never(5*time.Minute, "a Job that had started was ended", func() bool { return h.job(second.Name).Spec.ActiveDeadlineSeconds != nil })
	})
}

// TestStartTimeoutWaitsForAdmission: the time of a suspended Job begins when it is let in.
func TestStartTimeoutWaitsForAdmission(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.queue("resize")
		c := cronJob("resize", "start-timeout", "1m")
		c.Spec.JobTemplate.Spec.Suspend = ptr.To(true)
		h.create(c)
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		h.never(10*time.Minute, "a suspended Job was ended", func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil })
		h.editJob(job, func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(false) })
		h.eventually(121*time.Second, "the Job is ended", func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil })
	})
}

// TestStartTimeoutSetLive covers Jobs that wait already, and an API server that fails.
func TestStartTimeoutSetLive(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		advance(time.Minute)
		h.annotate("resize", "start-timeout", "5m")
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "patch", resource: "jobs", answer: internal, times: 2})
		h.eventually(330*time.Second, "the Job is ended", func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil })
	})
}

func TestPausedLive(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "jobs-per-second", "10")
		p := h.start()
		q.sendMany(40)
		h.eventually(time.Minute, "some run", func() bool { return len(h.jobs()) >= 5 })
		h.annotate("resize", "paused", "true")
		advance(200 * time.Millisecond)
		running := len(h.jobs())
		advance(time.Minute)
		if got := len(h.jobs()); got != running {
			t.Errorf("%d Jobs were launched while paused", got-running)
		}
		if got := h.leased(q); got != running {
			t.Errorf("%d leased while %d Jobs run: the rest was not given back", got, running)
		}
		if p.metric("template_state", "state", "paused") != 1 {
			t.Error("the state is not paused")
		}
		h.succeed(names(h.jobs())...)
		h.eventually(time.Second, "what ran is settled", func() bool { return q.Len() == 40-running })
		h.annotate("resize", "paused", "false")
		h.eventually(time.Minute, "all have a Job", func() bool { return len(h.jobs()) == 40 })
	})
}

// TestPausedWhileReceiving: messages that come with an answer that was under way are given back.
func TestPausedWhileReceiving(t *testing.T) {
	for name, stop := range map[string]func(*harness){
		"paused":  func(h *harness) { h.annotate("resize", "paused", "true") },
		"deleted": func(h *harness) { h.deleteTemplate("resize") },
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.queue("resize", lease.Traits{Waits: true})
				slow := leaseFault(3 * time.Second)
				q.inject("receive", slow)
				h.dispatch("resize")
				h.start()
				q.sendMany(3)
				advance(time.Second)
				stop(h)
				advance(time.Minute)
				if len(h.jobs()) != 0 || h.leased(q) != 0 || q.Len() != 3 {
					t.Errorf("%d Jobs, %d leased", len(h.jobs()), h.leased(q))
				}
			})
		})
	}
}

// TestStoppedWhileCreationsFail: a template that is paused or deleted launches nothing more, not even what it has begun to.
func TestStoppedWhileCreationsFail(t *testing.T) {
	for name, stop := range map[string]func(*harness){
		"paused":  func(h *harness) { h.annotate("resize", "paused", "true") },
		"deleted": func(h *harness) { h.deleteTemplate("resize") },
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize")
				h.start()
				advance(time.Second)
				fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: internal})
				q.sendMany(3)
				advance(10 * time.Second)
				stop(h)
				advance(10 * time.Second)
				h.api.remove(fault)
				advance(time.Minute)
				if len(h.jobs()) != 0 || h.leased(q) != 0 || q.Len() != 3 {
					t.Errorf("%d Jobs, %d leased", len(h.jobs()), h.leased(q))
				}
			})
		})
	}
}

func TestLimitsEditedLive(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "jobs-per-second", "0.001", "max-in-flight", "3")
		p := h.start()
		q.sendMany(30)
		advance(10 * time.Second)
		if got := len(h.jobs()); got != 1 {
			t.Fatalf("%d Jobs, want 1 in 1000 s", got)
		}
		// The next permission would come in a quarter of an hour.
		h.annotate("resize", "jobs-per-second", "off")
		h.eventually(2*time.Second, "3 run", func() bool { return len(h.jobs()) == 3 })
		h.annotate("resize", "max-in-flight", "10")
		h.eventually(2*time.Second, "10 run", func() bool { return len(h.jobs()) == 10 })
		if got := p.metric("max_in_flight_tasks"); got != 10 {
			t.Errorf("max_in_flight_tasks %v, want 10", got)
		}
		h.annotate("resize", "max-in-flight", "2")
		advance(time.Second)
		h.succeed(names(h.unfinished())[:5]...)
		h.never(5*time.Second, "more than the new limit", func() bool { return len(h.jobs()) > 10 })
		h.succeed(names(h.unfinished())...)
		h.eventually(2*time.Second, "2 run", func() bool { return len(h.unfinished()) == 2 })
		h.annotate("resize", "jobs-per-second", "1", "max-in-flight", "100")
		advance(time.Second)
		before := len(h.jobs())
		advance(10 * time.Second)
		if got := len(h.jobs()) - before; got < 9 || got > 11 {
			t.Errorf("%d Jobs in 10 s at one a second", got)
		}
	})
}

// TestShutdownWhileAJobCannotBeEnded: what is tried again when the time to start is up must not be tried for ever.
func TestShutdownWhileAJobCannotBeEnded(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "start-timeout", "2m")
		p := h.start()
		q.Send("x")
		h.awaitJobs(1)
		h.api.inject(&apiFault{verbs: "patch", resource: "jobs", answer: internal})
		h.eventually(3*time.Minute, "the Job is to be ended", func() bool { return h.api.count("patch", "jobs") > 0 })
		start := time.Now()
		p.stop()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("stopping took %v", took)
		}
	})
}
