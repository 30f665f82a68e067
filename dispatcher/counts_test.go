package dispatcher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// recount compares what the lanes of a process have counted with what is there. Every test does so when it stops a process.
func (p *process) recount() {
	synctest.Wait()
	for _, l := range p.lanes() {
		if wrong := l.miscounted(); wrong != "" {
			p.h.t.Error(wrong)
		}
	}
}

// lanes are those of the shards that the process leads.
func (d *Dispatcher) lanes() (found []*lane) {
	d.mu.Lock()
	leading := slices.Collect(maps.Values(d.leading))
	d.mu.Unlock()
	for _, l := range leading {
		l.mu.Lock()
		for _, h := range l.holders {
			found = append(found, h.lane)
		}
		l.mu.Unlock()
	}
	return found
}

// miscounted says what a lane has counted wrongly.
func (l *lane) miscounted() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting, unready, inFlight := 0, 0, 0
	for _, t := range l.tasks {
		if t.state == queued {
			waiting++
		}
		if t.pending {
			unready++
		}
		if t.slot {
			inFlight++
		}
	}
	inFlight += l.packs.slots
	if waiting == l.waiting && unready == l.unready && inFlight == l.inFlight {
		return ""
	}
	return fmt.Sprintf("%s counts %d waiting, %d unready, %d in flight, and there are %d, %d and %d",
		l.identity, l.waiting, l.unready, l.inFlight, waiting, unready, inFlight)
}

// Messages whose Jobs finished while nobody led never wait to be launched, and must not count as if they had.
func TestRateIsKeptAfterAFailover(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "jobs-per-second", "1", "lease-duration", "10s")
		first := h.start()
		for i := range 5 {
			q.Send(fmt.Sprint(i))
		}
		found := h.awaitJobs(5)
		first.crash()
		advance(time.Second)
		h.succeed(names(found)...)
		second := h.start()
		h.eventually(2*time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
		second.recount()
		for i := range 20 {
			q.Send(fmt.Sprint("later ", i))
		}
		before := len(h.jobs())
		advance(2 * time.Second)
		if launched := len(h.jobs()) - before; launched > 4 {
			t.Errorf("%d Jobs in two seconds at one a second", launched)
		}
	})
}

// A task whose lease is lost while it waits is gone, and must not be given back as well when the template is paused.
func TestLostTasksAreNotGivenBack(t *testing.T) {
	world(t, func(_ *testing.T, h *harness) {
		q := h.dispatch("resize", "jobs-per-second", "5", "lease-duration", "10s")
		p := h.start()
		advance(time.Second)
		h.annotate("resize", "jobs-per-second", "0.01")
		advance(time.Second)
		for i := range 5 {
			q.Send(fmt.Sprint(i))
		}
		advance(3 * time.Second)
		q.inject(leasetest.OpReceive, leasetest.Fault{Err: errFault})
		q.inject(leasetest.OpExtend, leasetest.Fault{Err: lease.ErrLost})
		advance(15 * time.Second)
		h.annotate("resize", "paused", "true")
		advance(time.Second)
		p.recount()
		q.heal()
	})
}

// The time to start begins when a Job is admitted, whenever that is.
func TestStartTimeoutBeginsWithAdmission(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.queue("resize")
		c := cronJob("resize", "start-timeout", "10m")
		c.Spec.JobTemplate.Spec.Suspend = ptr.To(true)
		h.create(c)
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		ended := func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil }
		advance(19*time.Minute + 55*time.Second)
		h.editJob(job, func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(false) })
		h.never(9*time.Minute+50*time.Second, "the Job is ended before its time", ended)
		h.eventually(time.Minute, "the Job is ended", ended)
	})
}

// A Job that has started is not ended, even where none of its pods is ready when its time to start is over.
func TestStartTimeoutLeavesWhatHasStarted(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "start-timeout", "10m")
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		advance(2 * time.Second)
		h.ready(job)
		advance(9*time.Minute + 50*time.Second)
		h.editJob(job, func(j *batchv1.Job) { j.Status.Ready = ptr.To[int32](0) })
		h.never(20*time.Minute, "the Job is ended", func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil })
	})
}

// slowToAnswer is a source whose answer to Requeue takes a while, and comes after the effect.
type slowToAnswer struct {
	lease.Source
	by time.Duration
}

func (s slowToAnswer) Requeue(ctx context.Context, returns []lease.Return) []error {
	errs := s.Source.Requeue(ctx, returns)
	advanceWithin(s.by)
	return errs
}

// advanceWithin lets virtual time pass for one goroutine.
func advanceWithin(d time.Duration) { <-time.After(d) }

// A message that comes again before the answer to its return does has its next turn at once.
func TestRedeliveryBeforeTheAnswer(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "retry-backoff", "0s..0s", "lease-duration", "10m")
		h.start(func(c *Config) {
			open := c.OpenSource
			c.OpenSource = func(s *annotation.Spec, connection Connection) (lease.Source, error) {
				source, err := open(s, connection)
				return slowToAnswer{source, 300 * time.Millisecond}, err
			}
		})
		advance(time.Second)
		q.Send("a")
		h.fail(h.awaitJobs(1)[0].Name)
		h.eventually(5*time.Second, "there is a second attempt", func() bool { return len(h.jobs()) == 2 })
	})
}

// What nobody could note is noted once the source shows that the message is gone.
func TestJobsOfMessagesThatAreGoneAreMarked(t *testing.T) {
	marked := func(h *harness) func() bool {
		return func() bool {
			for _, job := range h.jobs() {
				if job.Labels[jobs.LabelSettled] == "" || job.Spec.TTLSecondsAfterFinished == nil {
					return false
				}
			}
			return true
		}
	}
	t.Run("the answer was lost", func(t *testing.T) {
		world(t, func(_ *testing.T, h *harness) {
			q := h.dispatch("resize")
			h.start()
			q.inject(leasetest.OpComplete, leasetest.Fault{Times: 1, Err: errFault, AfterEffect: true})
			q.Send("a")
			h.succeed(names(h.awaitJobs(1))...)
			h.eventually(10*time.Minute, "the Job is marked", marked(h))
		})
	})
	t.Run("the dispatcher crashed", func(t *testing.T) {
		world(t, func(t *testing.T, h *harness) {
			q := h.dispatch("resize", "lease-duration", "10s")
			p := h.start()
			q.Send("a", "b", "c")
			found := h.awaitJobs(3)
			h.api.inject(&apiFault{verbs: "patch", resource: "jobs", answer: internal, times: 3})
			h.succeed(names(found)...)
			advance(50 * time.Millisecond)
			p.crash()
			if q.Len() != 0 || marked(h)() {
				t.Fatal("the crash came too early or too late for this test")
			}
			h.start()
			h.eventually(10*time.Minute, "the Jobs are marked", marked(h))
		})
	})
	t.Run("not while a message is left", func(t *testing.T) {
		world(t, func(_ *testing.T, h *harness) {
			q := h.dispatch("resize", "lease-duration", "10s")
			p := h.start()
			q.Send("a")
			found := h.awaitJobs(1)
			p.crash()
			h.succeed(names(found)...)
			q.inject(leasetest.OpReceive, leasetest.Fault{Err: errFault})
			h.start()
			h.never(time.Hour, "a Job is marked whose message is still there", marked(h))
			q.heal()
			h.eventually(time.Minute, "the Job is marked", marked(h))
		})
	})
}

// A source that hangs keeps few of the slots that all share.
func TestHungSourceKeepsFewSlots(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		hog := h.dispatch("hog", "max-in-flight", "64")
		h.start(func(c *Config) { c.MaxInFlight = 64 })
		advance(time.Second)
		for range 2000 {
			hog.Send("x")
		}
		for range 10 {
			advance(time.Second)
			h.succeed(names(h.unfinished())...)
		}
		hog.inject(leasetest.OpReceive, leasetest.Fault{Delay: time.Hour})
		for range 3 {
			advance(time.Second)
			h.succeed(names(h.unfinished())...)
		}
		advance(2 * time.Minute)
		other := h.dispatch("other")
		advance(5 * time.Second)
		for i := range 20 {
			other.Send(fmt.Sprint(i))
		}
		h.eventually(5*time.Second, "the other template has its Jobs", func() bool { return len(h.of("other")) == 20 })
	})
}
