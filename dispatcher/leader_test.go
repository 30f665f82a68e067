package dispatcher

import (
	"errors"
	"fmt"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// leads is how many shards a process leads.
func (p *process) leads() int { return int(p.metric("leader")) }

func shards(n int) option { return func(c *Config) { c.Lock.Shards = n } }

// TestTakeoverIsPrompt: two seconds after the lock has expired at the latest, the next process creates Jobs; after a graceful stop, at once.
func TestTakeoverIsPrompt(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*process)
		want time.Duration
	}{
		"crash":    {(*process).crash, 17 * time.Second},
		"graceful": {(*process).stop, 2 * time.Second},
	} {
		for phase := range 8 { // of the renewals, when it ends
			t.Run(fmt.Sprintf("%s-%d", name, phase), func(t *testing.T) {
				world(t, func(t *testing.T, h *harness) {
					q := h.dispatch("resize")
					first := h.start()
					advance(time.Duration(phase) * 137 * time.Millisecond)
					h.start()
					advance(10 * time.Second)
					q.Send("a")
					h.awaitJobs(1)
					advance(time.Duration(phase) * 273 * time.Millisecond)
					ended := time.Now()
					c.end(first)
					q.Send("b")
					h.eventually(c.want-time.Since(ended), "the next process has created a Job", func() bool { return len(h.jobs()) == 2 })
				})
			})
		}
	}
}

// TestLockIsWrittenSeldom: those who wait look often, the holder writes no more than it must.
func TestLockIsWrittenSeldom(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.start()
		advance(time.Minute)
		before := h.api.count("update", "leases")
		advance(time.Minute)
		if n := h.api.count("update", "leases") - before; n < 25 || n > 31 {
			t.Errorf("the lock was written %d times in a minute, want one each 2 s", n)
		}
	})
}

// TestFencedProcessStepsDown: it was paused, so to speak, and learns from the API server that another process leads. Its message goes back unused.
func TestFencedProcessStepsDown(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.api.fenced = true
		q := h.dispatch("resize")
		first := h.start()
		advance(time.Second)
		if first.metric("fenced") != 1 {
			t.Error("it does not know that it is fenced")
		}
		h.must(edit(h.api, "leases", namespace, "lock", func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity = ptr.To("another")
			l.Spec.RenewTime = ptr.To(metav1.NowMicro())
			*l.Spec.LeaseTransitions++
		}))
		q.Send("a")
		h.eventually(time.Second, "it has stepped down", func() bool { return first.leads() == 0 })
		if b, _ := q.Backlog(t.Context()); b.Leased != 0 || len(h.jobs()) != 0 {
			t.Errorf("%d leased, %d Jobs; want none of either", b.Leased, len(h.jobs()))
		}
		lock := h.lock()
		if holder := lock.Spec.HolderIdentity; holder == nil || *holder != "another" {
			t.Errorf("it released the lock of the other process")
		}
		h.eventually(time.Minute, "it leads again, in a new term", func() bool { return len(h.jobs()) == 1 })
		lock = h.lock()
		if got, want := h.jobs()[0].Annotations[jobs.AnnotationFence], fence.Value(namespace, "lock", int(*lock.Spec.LeaseTransitions)); got != want {
			t.Errorf("the Job's fence is %s, want %s", got, want)
		}
	})
}

// TestStaleFence: the API server has not heard yet that the lock is ours. Nothing is made of that.
func TestStaleFence(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.api.fenced = true
		q := h.dispatch("resize")
		p := h.start()
		advance(time.Second)
		stale := &apiFault{verbs: "create", resource: "jobs", times: 3, answer: func(r *apiRequest) error {
			r.body["metadata"].(object)["annotations"].(object)[jobs.AnnotationFence] = fence.Value(namespace, "lock", 99)
			return h.api.admit(r)
		}}
		h.api.inject(stale)
		q.Send("a")
		h.eventually(5*time.Second, "the Job is created", func() bool { return len(h.jobs()) == 1 })
		if p.leads() != 1 || h.told("resize", "JobRejected") != 0 || h.told("resize", "Misconfigured") != 0 {
			t.Errorf("it leads %d shards; Events: %v", p.leads(), h.events())
		}
	})
}

// TestPausedLeaderCreatesNothing: a process that wakes after a pause knows by the clock that another may lead, before its elector does.
func TestPausedLeaderCreatesNothing(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.dispatch("resize")
		p := h.start()
		advance(time.Second)
		l := p.lanes()[0]
		held := &lease.Lease{}
		held.Granted(time.Now(), time.Hour)
		job, _, err := l.settings.Load().template.Job(jobs.Task{Identity: jobs.Identity{Source: l.identity, Messages: "m", Attempt: 1}, Content: content(t, "")})
		h.must(err)
		l.term.mu.Lock()
		l.term.sent = time.Now().Add(-15 * time.Second)
		l.term.mu.Unlock()
		if _, _, err := l.create(t.Context(), job, order{task: &task{messages: "m"}, held: held}); !errors.Is(err, errTermOver) {
			t.Errorf("got %v, want %v", err, errTermOver)
		}
		if len(h.jobs()) != 0 {
			t.Error("the Job was created")
		}
	})
}

// TestDeletedLockIsMadeAnew: in a term of its own, so that no former leader passes for the current one.
func TestDeletedLockIsMadeAnew(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		advance(30 * 365 * 24 * time.Hour) // a bubble begins in 2000
		h.api.fenced = true
		q := h.dispatch("resize")
		h.start()
		advance(10 * time.Second)
		lock := h.lock()
		before := *lock.Spec.LeaseTransitions
		h.must(h.admin.CoordinationV1().Leases(namespace).Delete(t.Context(), "lock", metav1.DeleteOptions{}))
		q.Send("a")
		h.eventually(time.Minute, "the Job is created", func() bool { return len(h.jobs()) == 1 })
		advance(20 * time.Second)
		lock = h.lock()
		if after := *lock.Spec.LeaseTransitions; after <= before {
			t.Errorf("the term is %d, and was %d", after, before)
		}
		q.Send("b")
		h.eventually(time.Minute, "dispatch goes on", func() bool { return len(h.jobs()) == 2 })
	})
}

// TestShards: processes share the shards fairly as they come and go, and the messages whose Jobs run go with them.
func TestShards(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		h.api.fenced = true
		const templates = 12
		var queues []*queue
		for i := range templates {
			queues = append(queues, h.dispatch(fmt.Sprintf("t%d", i), "lease-duration", "5m"))
		}
		launched := 0
		send := func() {
			t.Helper()
			for _, q := range queues {
				q.Send("x")
			}
			launched += templates
			h.eventually(10*time.Second, "each template has its Job", func() bool { return len(h.jobs()) == launched })
		}
		first := h.start(shards(4))
		h.eventually(time.Minute, "the one has all", func() bool { return first.leads() == 4 })
		send()
		second := h.start(shards(4))
		h.eventually(20*time.Second, "the two share", func() bool { return first.leads() == 2 && second.leads() == 2 })
		send()
		third := h.start(shards(4))
		h.eventually(20*time.Second, "the three share", func() bool {
			return third.leads() == 1 && first.leads()+second.leads() == 3
		})
		// What ran when its shard moved is settled by whoever has it now, long before the lease of five minutes ends.
		h.succeed(names(h.unfinished())...)
		h.eventually(10*time.Second, "all are settled", func() bool {
			for _, q := range queues {
				if q.Len() != 0 {
					return false
				}
			}
			return true
		})
		first.stop()
		h.eventually(5*time.Second, "two are left, and share", func() bool { return second.leads() == 2 && third.leads() == 2 })
		send()
		second.crash()
		h.eventually(20*time.Second, "one is left, and has all", func() bool { return third.leads() == 4 })
		send()
		if len(h.jobs()) != launched {
			t.Errorf("%d Jobs for %d messages", len(h.jobs()), launched)
		}
		before := h.api.count("update", "leases") + h.api.count("list", "leases")
		advance(time.Minute)
		if n := h.api.count("update", "leases") + h.api.count("list", "leases") - before; n > 350 {
			t.Errorf("%d requests for locks in a minute", n)
		}
	})
}

// TestSetsOfOneTemplateInTwoShards: each is dispatched by the shard of its source, and has metrics of its own.
func TestSetsOfOneTemplateInTwoShards(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		other := h.queue("other")
		q := h.dispatch("resize", "b.lighterman.dev/stream", "other", "b.lighterman.dev/source", "redis-streams",
			"b.lighterman.dev/connection-secret", "queue/connection")
		const n = 16 // few enough to be in one shard by chance, many enough that these two are not
		p := h.start(shards(n))
		h.eventually(10*time.Second, "it leads", func() bool { return p.leads() == n })
		if a, b := p.cfg.Lock.shardOf("redis-streams", "resize", "lighterman"), p.cfg.Lock.shardOf("redis-streams", "other", "lighterman"); a == b {
			t.Fatal("both are in one shard, so that this test shows nothing")
		}
		q.Send("a")
		other.Send("b")
		h.awaitJobs(2)
		if p.metric("template_state", "state", "running") != 2 {
			t.Error("not both run")
		}
		h.annotate("resize", "max-in-flight", "nonsense")
		h.eventually(10*time.Second, "it is told of, once", func() bool { return h.told("resize", "Misconfigured", "nonsense") == 1 })
		advance(time.Minute)
		if p.metric("template_state", "state", "misconfigured") != 1 || h.told("resize", "Misconfigured") != 1 {
			t.Errorf("%v misconfigured; Events %v", p.metric("template_state", "state", "misconfigured"), h.events())
		}
		h.annotate("resize", "max-in-flight", "7")
		h.eventually(10*time.Second, "both run again", func() bool { return p.metric("template_state", "state", "running") == 2 })
		h.deleteTemplate("resize")
		h.succeed(names(h.unfinished())...)
		h.eventually(10*time.Second, "nothing is told of it any more", func() bool {
			return p.metric("template_state") == 0 && q.Len() == 0 && other.Len() == 0
		})
	})
}

// TestLockIsNotReleasedBeforeTheLanesHaveEnded: the elector gives up after renewals that failed, and would hand the lock over at once.
func TestLockIsNotReleasedBeforeTheLanesHaveEnded(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		p := h.start()
		advance(time.Minute)
		slow := h.api.inject(&apiFault{verbs: "create", resource: "jobs", delay: time.Hour})
		q.Send("x")
		renewals := h.api.inject(&apiFault{verbs: "update", resource: "leases", answer: func(r *apiRequest) error {
			if text(r.body, "spec", "holderIdentity") == "" {
				return nil
			}
			return internal(r)
		}})
		gaveUp := false
		h.never(20*time.Second, "the lock is free while its last holder leads", func() bool {
			gaveUp = gaveUp || p.metric("leader") == 0
			return p.metric("leader") == 1 && ptr.Deref(h.lock().Spec.HolderIdentity, "") == ""
		})
		if !gaveUp {
			t.Error("the elector did not give up, so that this test shows nothing")
		}
		h.api.remove(renewals)
		h.api.remove(slow)
		h.awaitJobs(1)
	})
}

// TestTermEndsBeforeTheElectorKnows: a renewal that took long is followed by one that hangs. Once another process may lead, no message goes back
// and forth until the elector gives up.
func TestTermEndsBeforeTheElectorKnows(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		p := h.start()
		advance(time.Minute)
		h.api.inject(&apiFault{verbs: "update", resource: "leases", delay: 9500 * time.Millisecond, times: 1})
		hang := h.api.inject(&apiFault{verbs: "update", resource: "leases", delay: time.Hour})
		advance(18 * time.Second) // 15 s after it was sent, the renewal does not count any more
		if p.metric("leader") != 1 {
			t.Fatal("the elector has given up already, so that this test shows nothing")
		}
		// Not more than this, or the clock would stand still.
		q.inject(leasetest.OpReceive, leasetest.Fault{Skip: 100, Delay: time.Hour})
		before := p.metric("messages_received_total")
		q.Send("x")
		advance(2 * time.Second)
		if got := p.metric("messages_received_total") - before; got > 1 {
			t.Errorf("the message was received %v times", got)
		}
		if len(h.jobs()) != 0 {
			t.Error("a Job was created after the term")
		}
		h.api.remove(hang)
		q.heal()
		h.awaitJobs(1)
	})
}
