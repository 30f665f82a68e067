package dispatcher

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// load is how much a process has in hand.
type load struct {
	goroutines int
	// kept is all that the lanes keep for later.
	kept int
}

func (p *process) load() load {
	n := load{goroutines: runtime.NumGoroutine()}
	for _, l := range p.lanes() {
		l.mu.Lock()
		n.kept += len(l.tasks) + cap(l.queue) + cap(l.toSettle) + cap(l.toMark) + cap(l.starts) + l.busy + l.marking + l.keeper.Held()
		l.mu.Unlock()
	}
	return n
}

// TestNothingGrowsWhileOthersFail (invariant 8): for an hour a source hangs, the API server takes no Job of another template, a third source
// refuses all, and messages keep coming. Goroutines and what the lanes keep stay as they are, and the template beside them keeps its speed.
func TestNothingGrowsWhileOthersFail(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		limits := []string{"max-in-flight", "50", "lease-duration", "1m", "start-timeout", "5m"}
		hanging, failing, refusing := h.dispatch("hanging", limits...), h.dispatch("failing", limits...), h.dispatch("refusing", limits...)
		healthy := h.dispatch("healthy")
		p := h.start()
		// All have tasks at every step when it begins.
		for _, q := range []*queue{hanging, refusing} {
			q.sendMany(30)
		}
		h.awaitJobs(60)
		h.api.inject(&apiFault{verbs: "create dry-run", resource: "jobs", answer: func(r *apiRequest) error {
			if text(r.body, "metadata", "labels", jobs.LabelTemplate) == "failing" {
				return internal(r)
			}
			return nil
		}})
		for _, op := range []leasetest.Op{
			leasetest.OpReceive, leasetest.OpExtend, leasetest.OpComplete, leasetest.OpRequeue, leasetest.OpPoison, leasetest.OpBacklog,
		} {
			hanging.inject(op, leasetest.Fault{Delay: 24 * time.Hour})
		}
		h.outage(refusing, errFault)
		for _, template := range []string{"hanging", "refusing"} {
			for i, name := range names(h.of(template)) {
				if i%2 == 0 {
					h.succeed(name)
				} else if i%3 == 0 {
					h.fail(name)
				}
			}
		}

		var early load
		for minute := range 60 {
			for _, q := range []*queue{hanging, failing, refusing} {
				q.sendMany(20)
			}
			healthy.Send(fmt.Sprint(minute))
			h.eventually(500*time.Millisecond, "the healthy template has its Job", func() bool { return len(h.unfinishedOf("healthy")) == 1 })
			h.succeed(names(h.unfinishedOf("healthy"))...)
			h.eventually(500*time.Millisecond, "its message is completed", func() bool { return healthy.Len() == 0 })
			advance(time.Minute)
			if n := p.load(); minute < 20 {
				early.goroutines, early.kept = max(early.goroutines, n.goroutines), max(early.kept, n.kept)
			} else if n.goroutines > early.goroutines+20 || n.kept > early.kept+50 {
				t.Fatalf("minute %d: %+v, and %+v at most in the first twenty", minute, n, early)
			}
		}
		t.Logf("at most %+v in the first twenty minutes, and %+v after an hour", early, p.load())
		if early.kept > 2000 {
			t.Errorf("%d things are kept for four templates that may have 250 tasks", early.kept)
		}
	})
}
