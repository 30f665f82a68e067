package dispatcher

import (
	"context"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// TestSuccessorAdoptsAndSettles (invariant 3): a leader dies with Jobs that run, that have just ended, and that had failed before.
func TestSuccessorAdoptsAndSettles(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s", "retry-backoff", "10s..10s", "max-attempts", "3")
		first := h.start()
		second := h.start()
		ids := q.Send("runs on", "ends meanwhile", "fails meanwhile", "failed before")
		h.awaitJobs(4)
		h.fail(attempt(q, ids[3], 1))
		h.awaitJobs(5)
		first.crash()
		h.succeed(attempt(q, ids[1], 1))
		h.fail(attempt(q, ids[2], 1))
		failedAt := time.Now()
		h.eventually(20*time.Second, "the second process leads", func() bool { return second.metric("leader") == 1 })
		h.eventually(time.Minute, "what ended is settled", func() bool { return q.Len() == 3 })
		h.eventually(time.Minute, "what failed runs again", func() bool { return len(h.jobs()) == 6 })
		if got := time.Since(failedAt); got < 8*time.Second {
			t.Errorf("the second attempt came after %v", got)
		}
		h.fail(attempt(q, ids[3], 2))
		h.eventually(time.Minute, "there is a third attempt", func() bool { return len(h.jobs()) == 7 })
		for _, name := range []string{attempt(q, ids[0], 1), attempt(q, ids[2], 2), attempt(q, ids[3], 3)} {
			if status := h.job(name); jobs.StatusOf(&status).Phase != jobs.Pending {
				t.Errorf("Job %s has ended", name)
			}
		}
		h.succeed(names(h.unfinished())...)
		h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
		advance(2 * time.Minute)
		if got := len(h.jobs()); got != 7 || len(q.Poisoned()) != 0 {
			t.Errorf("%d Jobs, want 7; %d poisoned, want none", got, len(q.Poisoned()))
		}
		if got := second.metric("in_flight_tasks"); got != 0 {
			t.Errorf("%v tasks in flight", got)
		}
	})
}

// TestCrashIsNotAnAttempt: however often leaders die, the Job is attempt 1's.
func TestCrashIsNotAnAttempt(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "20s", "max-attempts", "2")
		id := q.Send("x")[0]
		for range 5 {
			p := h.start()
			h.eventually(time.Minute, "it has the message", func() bool { return p.metric("messages_received_total") == 1 })
			h.awaitJobs(1)
			advance(time.Second)
			p.crash()
			advance(25 * time.Second)
		}
		h.start()
		h.succeed(attempt(q, id, 1))
		h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
		if len(h.jobs()) != 1 || len(q.Poisoned()) != 0 {
			t.Errorf("%d Jobs and %d poisoned, want the one Job\n%s", len(h.jobs()), len(q.Poisoned()), h.dump())
		}
	})
}

// TestAlreadyExistsIsAdopted (invariant 2): the Job exists, and the cache does not know of it.
func TestAlreadyExistsIsAdopted(t *testing.T) {
	for name, finish := range map[string]func(*harness, string){
		"running":   func(*harness, string) {},
		"succeeded": func(h *harness, job string) { h.succeed(job) },
		"failed":    func(h *harness, job string) { h.fail(job) },
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "max-attempts", "1")
				id := q.Send("x")[0]
				template, err := jobs.FromCronJob(cronJob("resize"), func(map[string]string) map[string]string { return nil })
				h.must(err)
				job, _, err := template.Job(jobs.Task{Identity: jobs.Identity{Source: q.Identity(), Messages: jobs.NewMessageSet(id), Attempt: 1}, Content: content(t, "x")})
				h.must(err)
				h.create(job)
				finish(h, job.Name)
				uid := h.job(job.Name).UID
				// No list and no watch tells of the Job.
				unlabel := func(j *batchv1.Job) { delete(j.Labels, jobs.LabelTemplate) }
				h.must(edit(h.api, "jobs", namespace, job.Name, unlabel))
				p := h.start()
				h.eventually(time.Second, "it is adopted", func() bool { return p.metric("jobs_launched_total", "result", "adopted") == 1 })
				h.must(edit(h.api, "jobs", namespace, job.Name, func(j *batchv1.Job) { j.Labels[jobs.LabelTemplate] = "resize" }))
				if name == "running" {
					advance(time.Minute)
					if q.Len() != 1 {
						t.Fatal("settled while the Job runs")
					}
					h.succeed(job.Name)
				}
				h.eventually(time.Second, "the message is settled", func() bool { return q.Len() == 0 })
				if got := len(q.Poisoned()); (got == 1) != (name == "failed") {
					t.Errorf("%d poisoned", got)
				}
				if got := h.awaitJobs(1)[0].UID; got != uid {
					t.Error("the Job was created anew")
				}
			})
		})
	}
}

// TestShutdownIsGraceful: within ten seconds, what is decided is settled, what was not launched is back, the lock is free, and nothing
// is left running (synctest sees to the last).
func TestShutdownIsGraceful(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "jobs-per-second", "3")
		done := h.dispatch("done")
		p := h.start()
		q.Send("1", "2", "3", "4", "5", "6", "7", "8")
		done.Send("x")
		h.eventually(time.Minute, "some are launched", func() bool { return len(h.of("resize")) == 2 && len(h.of("done")) == 1 })
		done.inject(leasetest.OpComplete, leasetest.Fault{Err: errFault, Times: 2})
		h.succeed(h.of("done")[0].Name)
		start := time.Now()
		p.stop()
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("stopping took %v", took)
		}
		launched := len(h.of("resize"))
		if b, _ := q.Backlog(context.WithoutCancel(t.Context())); b.Messages != 8 || b.Leased != 0 || launched >= 8 {
			t.Errorf("%d messages, %d leased, %d launched; want 8, all given back, those whose Jobs run too", b.Messages, b.Leased, launched)
		}
		if done.Len() != 0 || h.of("done")[0].Labels[jobs.LabelSettled] == "" {
			t.Error("what was done is not settled")
		}
		if holder := h.lock().Spec.HolderIdentity; holder != nil && *holder != "" {
			t.Errorf("the lock is held by %q", *holder)
		}

		// The next one need not wait for the lock, nor for the leases.
		second := h.start()
		running := names(h.of("resize"))
		h.eventually(2*time.Second, "the next leads", func() bool { return second.metric("leader") == 1 })
		h.succeed(running...)
		h.eventually(2*time.Second, "what was adopted is settled", func() bool { return q.Len() <= 8-launched })
		h.eventually(time.Minute, "all are launched", func() bool { return len(h.of("resize")) == 8 })
	})
}

func TestShutdownOfIdleLanesIsImmediate(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.dispatch("resize")
		h.dispatch("paused", "paused", "true")
		p := h.start()
		advance(time.Second)
		start := time.Now()
		p.stop()
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("stopping took %v", took)
		}
	})
}

// TestShutdownWhenAllHangs: a source and an API server that do not answer do not keep a process from stopping.
func TestShutdownWhenAllHangs(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		p := h.start()
		q.Send("a", "b")
		job := h.awaitJobs(2)[0].Name
		for _, op := range []leasetest.Op{leasetest.OpReceive, leasetest.OpExtend, leasetest.OpComplete, leasetest.OpRequeue, leasetest.OpBacklog} {
			q.inject(op, leasetest.Fault{Delay: time.Hour})
		}
		h.api.inject(&apiFault{verbs: "create patch get dry-run", resource: "jobs", delay: time.Hour})
		q.Send("c")
		h.succeed(job)
		advance(time.Minute)
		start := time.Now()
		p.stop()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("stopping took %v, want 10 s at most", took)
		}
		if holder := h.lock().Spec.HolderIdentity; holder != nil && *holder != "" {
			t.Errorf("the lock is held by %q", *holder)
		}
	})
}

func TestStopBeforeLeading(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.dispatch("resize")
		h.start()
		advance(time.Second)
		standby := h.start()
		advance(time.Minute)
		if standby.metric("leader") != 0 {
			t.Error("two lead")
		}
		start := time.Now()
		standby.stop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		if holder := h.lock().Spec.HolderIdentity; holder == nil || *holder != "process-0" {
			t.Error("the leader lost its lock when another stopped")
		}
	})
}

// TestLeaderLosesTheLockAndLeadsAgain: the lock's requests fail for a while, in which another process takes over.
func TestLeaderLosesTheLockAndLeadsAgain(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "20s")
		first := h.start()
		advance(time.Second)
		q.Send("a")
		job := h.awaitJobs(1)[0].Name
		// Somebody else writes the lock, and renews it for a while.
		h.takeLock("stranger")
		for range 5 {
			advance(5 * time.Second)
			h.takeLock("stranger")
		}
		if first.metric("leader") != 0 {
			t.Fatal("it leads without the lock")
		}
		q.Send("b")
		h.never(10*time.Second, "a Job was launched without the lock", func() bool { return len(h.jobs()) > 1 })
		h.succeed(job)
		h.eventually(time.Minute, "it leads again", func() bool { return first.metric("leader") == 1 })
		h.eventually(time.Minute, "it has settled the one, and launched the other", func() bool { return q.Len() == 1 && len(h.jobs()) == 2 })
		h.succeed(h.unfinished()[0].Name)
		h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
	})
}

func (h *harness) takeLock(identity string) {
	h.t.Helper()
	h.must(edit(h.api, "leases", namespace, "lock", func(l *coordinationv1.Lease) {
		l.Spec.HolderIdentity = &identity
		l.Spec.RenewTime.Time = time.Now()
	}))
}

// TestZombie (invariants 2 and 4): a former leader that has not noticed goes on as if nothing had happened, beside the new one.
func TestZombie(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		// Neither can have all.
		q := h.dispatch("resize", "lease-duration", "20s", "retry-backoff", "1s..1s", "max-in-flight", "40")
		zombie := h.start(func(c *Config) { c.Lock.Name = "lock-of-its-own" })
		other := h.start()
		q.sendMany(60)
		h.eventually(time.Minute, "all have a Job", func() bool { return len(h.jobs()) == 60 })
		for i, j := range h.jobs() {
			if i%3 == 0 {
				h.fail(j.Name)
			} else {
				h.succeed(j.Name)
			}
		}
		h.eventually(time.Minute, "all that failed have a second", func() bool { return len(h.jobs()) == 80 })
		h.succeed(names(h.unfinished())...)
		h.eventually(2*time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
		advance(time.Minute)
		if len(h.jobs()) != 80 || len(q.Poisoned()) != 0 {
			t.Errorf("%d Jobs, want 80; %d poisoned", len(h.jobs()), len(q.Poisoned()))
		}
		if zombie.metric("in_flight_tasks") != 0 || other.metric("in_flight_tasks") != 0 {
			t.Error("tasks are left in flight")
		}
		if zombie.metric("messages_received_total") == 0 || other.metric("messages_received_total") == 0 {
			t.Error("one of the two had nothing to do, so that this test shows nothing")
		}
	})
}

// TestStaleCacheOfAFailedJob: the Job exists, failed long ago, and the cache does not know of it. Its message must not go back and forth until the
// cache does.
func TestStaleCacheOfAFailedJob(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "3", "retry-backoff", "1s..1s")
		id := q.Send("x")[0]
		template, err := jobs.FromCronJob(cronJob("resize"), func(map[string]string) map[string]string { return nil })
		h.must(err)
		job, _, err := template.Job(jobs.Task{Identity: jobs.Identity{Source: q.Identity(), Messages: jobs.NewMessageSet(id), Attempt: 1}, Content: content(t, "x")})
		h.must(err)
		h.create(job)
		h.fail(job.Name)
		unlabel := func(j *batchv1.Job) { delete(j.Labels, jobs.LabelTemplate) }
		h.must(edit(h.api, "jobs", namespace, job.Name, unlabel))
		advance(time.Minute)
		// Not more than this, or the clock would stand still.
		q.inject(leasetest.OpReceive, leasetest.Fault{Skip: 100, Delay: time.Hour})
		p := h.start()
		h.eventually(5*time.Second, "the second attempt is launched", func() bool { return len(h.jobs()) == 1 })
		if name := h.jobs()[0].Name; name != attempt(q, id, 2) {
			t.Errorf("the Job is %s, want attempt 2, %s", name, attempt(q, id, 2))
		}
		if got := p.metric("messages_received_total"); got != 1 {
			t.Errorf("the message was received %v times, want once", got)
		}
		q.heal()
	})
}
