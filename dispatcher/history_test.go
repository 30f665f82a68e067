package dispatcher

import (
	"fmt"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/jobs"
)

func TestRetain(t *testing.T) {
	const window = 4 * time.Minute
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	// done is a Job that finished some time ago, and that is removed when it has been left for so much longer.
	done := func(name string, ago, left time.Duration) pastJob {
		return pastJob{
			finishedAt: now.Add(-ago),
			job: &batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec:       batchv1.JobSpec{TTLSecondsAfterFinished: ptr.To(int32((ago + left) / time.Second))},
			},
		}
	}
	forever := done("c", 3*time.Hour, 0)
	forever.job.Spec.TTLSecondsAfterFinished = nil
	var crowd []pastJob
	for i := range 100 {
		crowd = append(crowd, done(fmt.Sprintf("%03d", i), time.Duration(i)*time.Hour, 5*24*time.Hour))
	}
	for name, test := range map[string]struct {
		records     []pastJob
		newest      int
		keep, letGo []string
	}{
		"nothing":           {newest: 3},
		"fresh ones":        {records: []pastJob{done("a", 10*time.Second, window), done("b", time.Second, window)}, newest: 1},
		"the newest expire": {records: []pastJob{done("c", 9*time.Minute, time.Minute), done("a", 3*time.Minute, time.Minute), done("b", 5*time.Minute, time.Minute)}, newest: 2, keep: []string{"a", "b"}},
		"none is wanted":    {records: []pastJob{done("a", 3*time.Minute, time.Second)}, newest: 0},
		"kept already":      {records: []pastJob{done("a", time.Hour, 6*24*time.Hour)}, newest: 1},
		"kept for days":     {records: []pastJob{done("a", 4*24*time.Hour, 3*24*time.Hour)}, newest: 1, keep: []string{"a"}},
		"others have come": {
			records: []pastJob{done("old", time.Hour, 6*24*time.Hour), done("new", time.Second, window), done("older", 2*time.Hour, 6*24*time.Hour)},
			newest:  2, letGo: []string{"older"},
		},
		"let go before":               {records: []pastJob{done("old", time.Hour, window), done("new", time.Second, window)}, newest: 1},
		"the limit was lowered to 0":  {records: []pastJob{done("a", time.Hour, 6*24*time.Hour)}, newest: 0, letGo: []string{"a"}},
		"the limit was raised":        {records: []pastJob{done("a", time.Hour, 6*24*time.Hour), done("b", 2*time.Hour, time.Minute)}, newest: 2, keep: []string{"b"}},
		"at the same second":          {records: []pastJob{done("b", time.Hour, time.Minute), done("a", time.Hour, time.Minute)}, newest: 1, keep: []string{"a"}},
		"somebody took the TTL away":  {records: []pastJob{done("a", time.Hour, 6*24*time.Hour), done("b", 2*time.Hour, 6*24*time.Hour), forever}, newest: 1, letGo: []string{"b"}},
		"clocks differ by a minute":   {records: []pastJob{done("a", 0, window+time.Minute)}, newest: 0},
		"many are let go bit by bit":  {records: crowd, newest: 3, letGo: namesOf(crowd[100-3-mostLetGo:])},
		"kept by an older, long TTL":  {records: []pastJob{done("a", time.Hour, 23*time.Hour)}, newest: 1, keep: []string{"a"}},
		"one more than may be kept":   {records: []pastJob{done("a", 1*time.Minute, 90*time.Second), done("b", 2*time.Minute, time.Minute)}, newest: 1, keep: []string{"a"}},
		"the newest in no hurry":      {records: []pastJob{done("a", 1*time.Minute, window-30*time.Second), done("b", 2*time.Minute, time.Minute)}, newest: 1},
		"the whole history vanishing": {records: []pastJob{done("a", time.Hour, -time.Second)}, newest: 3, keep: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			keep, letGo := retain(slices.Clone(test.records), test.newest, window, now)
			if got := namesOf(keep); !slices.Equal(got, test.keep) {
				t.Errorf("to keep: %v, want %v", got, test.keep)
			}
			if got := namesOf(letGo); !slices.Equal(got, test.letGo) {
				t.Errorf("to let go: %v, want %v", got, test.letGo)
			}
		})
	}
}

func namesOf(records []pastJob) (n []string) {
	for _, r := range records {
		n = append(n, r.job.Name)
	}
	return n
}

// collect does what the TTL controller does, for a while.
func (h *harness) collect(lasting time.Duration) {
	step := min(max(5*time.Second, lasting/200), 20*time.Second)
	for start := time.Now(); time.Since(start) < lasting; advance(step) {
		for _, j := range h.jobs() {
			if ttl := j.Spec.TTLSecondsAfterFinished; ttl != nil && time.Since(jobs.StatusOf(&j).FinishedAt) >= time.Duration(*ttl)*time.Second {
				h.deleteJob(j.Name)
			}
		}
	}
}

// phases counts the Jobs of a template that succeeded and that failed.
func (h *harness) phases(template string) (succeeded, failed int) {
	for _, j := range h.of(template) {
		switch jobs.StatusOf(&j).Phase {
		case jobs.Succeeded:
			succeeded++
		case jobs.Failed:
			failed++
		}
	}
	return succeeded, failed
}

// finish sends messages, and ends their Jobs, the first ones as failed. The last ones to end are returned.
func (h *harness) finish(q *queue, template string, succeed, fail int) (last []string) {
	h.t.Helper()
	q.sendMany(succeed + fail)
	h.eventually(time.Minute, "all have their Jobs", func() bool { return len(h.unfinishedOf(template)) == succeed+fail })
	for i, name := range names(h.unfinishedOf(template)) {
		if i < fail {
			h.fail(name)
		} else {
			h.succeed(name)
			last = append(last, name)
		}
		advance(time.Second)
	}
	h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
	return last
}

func TestHistoryLimits(t *testing.T) {
	for name, test := range map[string]struct {
		succeeded, failed         *int32
		ttl                       *int32
		suspendedJob              bool
		wantSucceeded, wantFailed int
	}{
		"defaults":        {wantSucceeded: 3, wantFailed: 1},
		"limits":          {succeeded: ptr.To[int32](5), failed: ptr.To[int32](2), wantSucceeded: 5, wantFailed: 2},
		"none":            {succeeded: ptr.To[int32](0), failed: ptr.To[int32](0)},
		"more than ended": {succeeded: ptr.To[int32](50), failed: ptr.To[int32](50), wantSucceeded: 7, wantFailed: 4},
		"a TTL decides":   {succeeded: ptr.To[int32](5), ttl: ptr.To[int32](60)},
		"suspended Job":   {suspendedJob: true, wantSucceeded: 3, wantFailed: 1},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.queue("resize")
				c := cronJob("resize", "max-attempts", "1")
				c.Spec.SuccessfulJobsHistoryLimit, c.Spec.FailedJobsHistoryLimit = test.succeeded, test.failed
				c.Spec.JobTemplate.Spec.TTLSecondsAfterFinished = test.ttl
				if test.suspendedJob {
					j := &batchv1.Job{ObjectMeta: c.ObjectMeta, Spec: c.Spec.JobTemplate.Spec}
					j.Spec.Suspend = ptr.To(true)
					h.create(j)
				} else {
					h.create(c)
				}
				h.start()
				last := h.finish(q, "resize", 7, 4)
				if s, f := h.phases("resize"); s != 7 || f != 4 {
					t.Fatalf("%d succeeded and %d failed within the window, want all", s, f)
				}
				for _, lasting := range []time.Duration{10 * time.Minute, time.Hour} {
					h.collect(lasting)
					if s, f := h.phases("resize"); s != test.wantSucceeded || f != test.wantFailed {
						t.Fatalf("%d succeeded and %d failed are left, want %d and %d", s, f, test.wantSucceeded, test.wantFailed)
					}
				}
				for _, name := range last[len(last)-test.wantSucceeded:] {
					h.job(name) // the newest
				}
				for _, j := range h.of("resize") {
					if j.Spec.TTLSecondsAfterFinished == nil {
						t.Errorf("Job %s is kept for ever", j.Name)
					}
				}
			})
		})
	}
}

// TestHistoryGoesOnWithTheNextLeader, and moves on with the Jobs that finish.
func TestHistoryGoesOnWithTheNextLeader(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "max-attempts", "1")
		p := h.start()
		h.finish(q, "resize", 4, 2)
		h.collect(10 * time.Minute)
		p.crash()
		h.collect(time.Minute)
		h.start()
		patches := h.api.count("patch", "jobs")
		h.collect(5 * time.Hour)
		if s, f := h.phases("resize"); s != 3 || f != 1 {
			t.Fatalf("%d succeeded and %d failed are left, want 3 and 1", s, f)
		}
		if got := h.api.count("patch", "jobs") - patches; got != 0 {
			t.Errorf("%d patches in five hours without a message", got)
		}
		last := h.finish(q, "resize", 3, 1)
		h.collect(20 * time.Minute)
		if s, f := h.phases("resize"); s != 3 || f != 1 {
			t.Fatalf("%d succeeded and %d failed are left, want 3 and 1", s, f)
		}
		for _, name := range last {
			h.job(name)
		}
	})
}

// TestHistoryCostsNothingAtSpeed: where Jobs finish faster than the window passes, none is touched twice but the last.
func TestHistoryCostsNothingAtSpeed(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "lease-duration", "30s")
		h.start()
		for range 120 {
			q.sendMany(5)
			advance(5 * time.Second)
			h.succeed(names(h.unfinished())...)
			h.collect(5 * time.Second)
		}
		if patches, created := h.api.count("patch", "jobs"), h.api.count("create", "jobs"); patches > created {
			t.Errorf("%d patches for %d Jobs", patches, created)
		}
		h.collect(10 * time.Minute)
		if s, _ := h.phases("resize"); s != 3 {
			t.Errorf("%d are left, want 3", s)
		}
	})
}

// TestHistorySurvivesTheAPIServer: one that fails for a while does not lose the newest Jobs.
func TestHistorySurvivesTheAPIServer(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		h.finish(q, "resize", 5, 0)
		advance(time.Second)
		h.api.inject(&apiFault{verbs: "patch", resource: "jobs", answer: internal, times: 3})
		h.collect(30 * time.Minute)
		if s, _ := h.phases("resize"); s != 3 {
			t.Errorf("%d are left, want 3", s)
		}
	})
}
