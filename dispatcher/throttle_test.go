package dispatcher

import (
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// asking is the error of a source that asks for fewer requests.
type asking time.Duration

func (asking) Error() string               { return "slow down" }
func (asking) Unwrap() error               { return lease.ErrThrottled }
func (a asking) RetryAfter() time.Duration { return time.Duration(a) }

func TestHeed(t *testing.T) {
	for range 100 {
		if got := heed(time.Second, asking(10*time.Second)); got < 10*time.Second || got > 12*time.Second {
			t.Fatalf("%v after 10 s were asked for", got)
		}
		if got := heed(20*time.Second, asking(10*time.Second)); got != 20*time.Second {
			t.Fatalf("%v, want the 20 s that were planned", got)
		}
		if got := heed(time.Second, asking(time.Hour)); got < longestAsked || got > longestAsked*6/5 {
			t.Fatalf("%v after an hour was asked for", got)
		}
		if got := heed(time.Second, errFault); got != time.Second {
			t.Fatalf("%v, want the second that was planned", got)
		}
	}
}

// TestThrottlingSourceIsHeeded: nothing is asked of it more often than it wants, and it all goes on afterwards.
func TestThrottlingSourceIsHeeded(t *testing.T) {
	for _, op := range []leasetest.Op{leasetest.OpReceive, leasetest.OpComplete, leasetest.OpBacklog, leasetest.OpExtend} {
		t.Run(string(op), func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "lease-duration", "20m")
				p := h.start()
				q.Send("x")
				job := h.awaitJobs(1)[0].Name
				advance(time.Second)
				q.inject(op, leasetest.Fault{Err: asking(30 * time.Second)})
				advance(time.Minute)
				if op == leasetest.OpComplete {
					h.succeed(job)
				}
				before := q.calls(op)
				advance(10 * time.Minute)
				if got := q.calls(op) - before; got < 2 || got > 21 {
					t.Errorf("%d calls in ten minutes of a source that asks for 30 s", got)
				}
				q.heal()
				if op != leasetest.OpComplete {
					h.succeed(job)
				}
				q.Send("y")
				h.eventually(40*time.Second, "all goes on", func() bool {
					h.succeed(names(h.unfinished())...)
					return q.Len() == 0 && len(h.jobs()) == 2
				})
				if got := p.metric("leases_lost_total"); got != 0 {
					t.Errorf("%v leases were lost", got)
				}
			})
		})
	}
}

// TestThrottlingAPIServer: its Retry-After is heeded, creations are few, nothing is received that cannot be launched, and all goes on
// afterwards.
func TestThrottlingAPIServer(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q, other := h.dispatch("resize", "max-in-flight", "20"), h.dispatch("other")
		p := h.start()
		advance(time.Second)
		fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: func(r *apiRequest) error {
			if text(r.body, "metadata", "labels", "lighterman.dev/template") == "other" {
				return nil
			}
			return apierrors.NewTooManyRequests("slow down", 5)
		}})
		q.sendMany(3)
		h.eventually(90*time.Second, "it is told", func() bool { return h.told("resize", "JobCreationFailing") == 1 })
		q.sendMany(100)
		before, received := h.api.count("create", "jobs"), p.metric("messages_received_total", "template", "cronjob/resize")
		advance(5 * time.Minute)
		if got := h.api.count("create", "jobs") - before; got > 20*5*60/5 {
			t.Errorf("%d creations in five minutes of an API server that asks for 5 s", got)
		}
		if got := p.metric("messages_received_total", "template", "cronjob/resize") - received; got > 35 {
			t.Errorf("%v messages were received while no Job could be created", got)
		}
		if p.metric("errors_total", "stage", "launch", "template", "cronjob/resize") == 0 {
			t.Error("no error was counted")
		}
		other.Send("y")
		h.eventually(time.Second, "the other template is at full speed", func() bool { return len(h.of("other")) == 1 })
		h.api.remove(fault)
		h.eventually(2*time.Minute, "all have had a Job", func() bool {
			h.succeed(names(h.unfinished())...)
			return q.Len() == 0
		})
		if got := len(h.of("resize")); got != 103 {
			t.Errorf("%d Jobs for 103 messages", got)
		}
	})
}
