package dispatcher

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/metrics"
)

func TestDecide(t *testing.T) {
	at := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	failed := jobs.Status{Phase: jobs.Failed, Reason: "BackoffLimitExceeded", Message: "too many", FinishedAt: at}
	tests := map[string]struct {
		attempt, maxAttempts int
		status               jobs.Status
		want                 settlement
	}{
		"succeeded":       {1, 5, jobs.Status{Phase: jobs.Succeeded, FinishedAt: at}, settlement{outcome: completed, job: "j"}},
		"succeeded late":  {9, 5, jobs.Status{Phase: jobs.Succeeded, FinishedAt: at}, settlement{outcome: completed, job: "j"}},
		"the only one":    {1, 1, failed, settlement{outcome: poisoned, job: "j", attempts: 1, reason: "attempt 1 of 1 failed: BackoffLimitExceeded: too many", failure: "BackoffLimitExceeded"}},
		"the last":        {5, 5, failed, settlement{outcome: poisoned, job: "j", attempts: 5, reason: "attempt 5 of 5 failed: BackoffLimitExceeded: too many", failure: "BackoffLimitExceeded"}},
		"beyond the last": {7, 5, failed, settlement{outcome: poisoned, job: "j", attempts: 7, reason: "attempt 7 of 5 failed: BackoffLimitExceeded: too many", failure: "BackoffLimitExceeded"}},
		"one of several": {2, 5, failed, settlement{
			outcome: requeued, job: "j", attempts: 2, reason: "BackoffLimitExceeded: too many", failure: "BackoffLimitExceeded",
			notBefore: at.Add(retryDelay(annotation.Backoff{Min: time.Minute, Max: time.Hour}, 2, "m")),
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			spec := &annotation.Spec{MaxAttempts: test.maxAttempts, RetryBackoff: annotation.Backoff{Min: time.Minute, Max: time.Hour}}
			if got := decide(spec, "m", test.attempt, "j", test.status); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestRetryDelay(t *testing.T) {
	tests := map[string]struct {
		backoff annotation.Backoff
		attempt int
		most    time.Duration
	}{
		"first":           {annotation.Backoff{Min: 10 * time.Second, Max: 10 * time.Minute}, 1, 10 * time.Second},
		"third":           {annotation.Backoff{Min: 10 * time.Second, Max: 10 * time.Minute}, 3, 40 * time.Second},
		"at the limit":    {annotation.Backoff{Min: 10 * time.Second, Max: 10 * time.Minute}, 1000, 10 * time.Minute},
		"none":            {annotation.Backoff{}, 5, 0},
		"from none to 1m": {annotation.Backoff{Max: time.Minute}, 5, 0},
		"long":            {annotation.Backoff{Min: 168 * time.Hour, Max: 168 * time.Hour}, 1000, 168 * time.Hour},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			different := map[time.Duration]bool{}
			for _, id := range []string{"a", "b", "c", "d"} {
				got := retryDelay(test.backoff, test.attempt, id)
				if got > test.most || got < test.most*4/5 {
					t.Errorf("%v, want between four fifths of %v and all", got, test.most)
				}
				if got != retryDelay(test.backoff, test.attempt, id) {
					t.Error("it is not the same each time")
				}
				different[got] = true
			}
			if test.most > 0 && len(different) < 2 {
				t.Error("all messages are in step")
			}
		})
	}
}

func TestDoubled(t *testing.T) {
	for _, test := range []struct {
		base, limit time.Duration
		times       int
		want        time.Duration
	}{
		{1, 100, 0, 1},
		{1, 100, 3, 8},
		{1, 100, 6, 64},
		{1, 100, 7, 100},
		{1, 100, 1 << 20, 100},
		{200, 100, 0, 100},
		{0, 100, 5, 0},
		{1 << 61, 1<<63 - 1, 5, 1<<63 - 1},
	} {
		if got := doubled(test.base, test.limit, test.times); got != test.want {
			t.Errorf("doubled(%d, %d, %d) = %d, want %d", test.base, test.limit, test.times, got, test.want)
		}
	}
}

func TestRoom(t *testing.T) {
	tests := map[string]struct {
		spec  annotation.Spec
		state func(*lane)
		want  int
	}{
		"all free":              {annotation.Spec{MaxInFlight: 10}, func(*lane) {}, 10},
		"some in flight":        {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.inFlight = 7 }, 3},
		"limit was lowered":     {annotation.Spec{MaxInFlight: 2}, func(l *lane) { l.inFlight = 7 }, 0},
		"some pending":          {annotation.Spec{MaxInFlight: 10, MaxPending: 4}, func(l *lane) { l.unready, l.waiting = 1, 2 }, 1},
		"all pending":           {annotation.Spec{MaxInFlight: 10, MaxPending: 4}, func(l *lane) { l.unready = 6 }, 0},
		"a slow rate":           {annotation.Spec{MaxInFlight: 10, JobsPerSecond: 0.1}, func(*lane) {}, 1},
		"a slow rate, one here": {annotation.Spec{MaxInFlight: 10, JobsPerSecond: 0.1}, func(l *lane) { l.waiting = 1 }, 0},
		"a rate":                {annotation.Spec{MaxInFlight: 10, JobsPerSecond: 4.5}, func(l *lane) { l.waiting = 2 }, 3},
		"a rate, hardly used":   {annotation.Spec{MaxInFlight: 10, JobsPerSecond: 4.5}, func(l *lane) { l.waiting = 3 }, 0},
		"paused":                {annotation.Spec{MaxInFlight: 10, Paused: true}, func(*lane) {}, 0},
		"blocked":               {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.blocked = errFault }, 0},
		"outage":                {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.outage, l.scoutAt = true, time.Now().Add(time.Second) }, 0},
		"outage, for a while":   {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.outage, l.scoutAt = true, time.Now() }, 1},
		"outage, scout waits":   {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.outage, l.waiting = true, 1 }, 0},
		"outage, and no room":   {annotation.Spec{MaxInFlight: 2}, func(l *lane) { l.outage, l.inFlight = true, 2 }, 0},
		"retired":               {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.retired = true }, 0},
		"stopping":              {annotation.Spec{MaxInFlight: 10}, func(l *lane) { l.stopping = true }, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := &lane{}
			l.settings.Store(&settings{spec: &test.spec})
			test.state(l)
			if got := l.room(); got != test.want {
				t.Errorf("room for %d, want %d", got, test.want)
			}
		})
	}
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4)
		granted := map[string]int{}
		results := make(chan func(), 10)
		ask := func(ctx context.Context, name string, want, priority int) {
			go func() {
				n, err := s.acquire(ctx, want, priority)
				results <- func() {
					if err == nil {
						granted[name] = n
					} else if n != 0 {
						t.Errorf("%s got %d slots and %v", name, n, err)
					}
				}
			}()
			synctest.Wait()
		}
		expect := func(want map[string]int) {
			t.Helper()
			synctest.Wait()
			clear(granted)
			for len(results) > 0 {
				(<-results)()
			}
			if len(granted) != len(want) {
				t.Fatalf("granted %v, want %v", granted, want)
			}
			for name, n := range want {
				if granted[name] != n {
					t.Fatalf("granted %v, want %v", granted, want)
				}
			}
		}
		ctx := t.Context()
		ask(ctx, "first", 3, 0)
		expect(map[string]int{"first": 3})
		ask(ctx, "second", 3, -5)
		expect(map[string]int{"second": 1})
		leaving, leave := context.WithCancel(ctx)
		ask(leaving, "leaves", 1, 100)
		ask(ctx, "low", 1, 0)
		ask(ctx, "low, later", 1, 0)
		ask(ctx, "high", 2, 10)
		leave()
		expect(nil)
		s.release(1)
		expect(map[string]int{"high": 1})
		s.release(1)
		expect(map[string]int{"low": 1})
		s.take(2) // Jobs that run already
		s.release(2)
		expect(nil)
		s.release(3)
		expect(map[string]int{"low, later": 1})
		ask(ctx, "last", 9, 0)
		expect(map[string]int{"last": 2})
	})
}

func TestReporterDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporter(record.NewFakeRecorder(10), slog.New(slog.DiscardHandler))
		object := &corev1.ObjectReference{UID: "u"}
		quota := problem{about: aboutRejected, key: "forbidden"}
		expect := func(p problem, more int, ok bool) {
			t.Helper()
			if gotMore, gotOK := r.due(object.UID, p); gotMore != more || gotOK != ok {
				t.Errorf("due(%v) = %d, %v; want %d, %v", p.key, gotMore, gotOK, more, ok)
			}
		}
		expect(quota, 0, true)
		expect(quota, 0, false)
		expect(problem{about: aboutSource, key: "forbidden"}, 0, true) // about something else
		expect(problem{about: aboutRejected, key: "invalid"}, 0, true) // another problem
		expect(quota, 0, true)
		advance(again - time.Second)
		expect(quota, 0, false)
		expect(quota, 0, false)
		advance(2 * time.Second)
		expect(quota, 2, true)
		expect(quota, 0, false)
		r.resolved(object, aboutRejected)
		advance(steadyAfter - time.Second)
		expect(quota, 0, false) // it was not over
		advance(2 * time.Second)
		expect(quota, 0, false)
		r.resolved(object, aboutRejected)
		advance(steadyAfter - time.Second)
		r.resolved(object, aboutRejected)
		advance(2 * time.Second)
		expect(quota, 0, true)
		r.forget(object.UID)
		expect(quota, 0, true)
		if _, ok := r.due("another", quota); !ok {
			t.Error("what was told of one object is not told of another")
		}
	})
}

func TestSameSource(t *testing.T) {
	was := annotation.Spec{
		Source: annotation.SourceRedisStreams, Stream: "s", ConsumerGroup: "g", PoisonQueue: "s:poison", LeaseDuration: time.Minute,
		ConnectionSecret: annotation.SecretKey{Name: "a", Key: "b"}, MaxInFlight: 5,
	}
	tests := map[string]struct {
		change func(*annotation.Spec)
		want   bool
	}{
		"nothing":        {func(*annotation.Spec) {}, true},
		"a limit":        {func(s *annotation.Spec) { s.MaxInFlight, s.Priority, s.Paused = 9, 3, true }, true},
		"another Secret": {func(s *annotation.Spec) { s.ConnectionSecret.Name = "z" }, true}, // what counts is what it holds
		"source":         {func(s *annotation.Spec) { s.Source = annotation.SourceAzureStorageQueue }, false},
		"stream":         {func(s *annotation.Spec) { s.Stream = "t" }, false},
		"group":          {func(s *annotation.Spec) { s.ConsumerGroup = "h" }, false},
		"poison queue":   {func(s *annotation.Spec) { s.PoisonQueue = "p" }, false},
		"lease duration": {func(s *annotation.Spec) { s.LeaseDuration = time.Hour }, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			spec := was
			test.change(&spec)
			if got := (&openLane{spec: was}).sameSource(&spec); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

func TestOlder(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))
	later := metav1.NewTime(at.Add(time.Second))
	a, b := jobs.Ref{Kind: "CronJob", Namespace: "n", Name: "a"}, jobs.Ref{Kind: "CronJob", Namespace: "n", Name: "b"}
	tests := map[string]struct {
		c    candidate
		h    holder
		want bool
	}{
		"older":             {candidate{ref: b, created: at}, holder{ref: a, created: later}, true},
		"newer":             {candidate{ref: a, created: later}, holder{ref: b, created: at}, false},
		"same second":       {candidate{ref: a, created: at}, holder{ref: b, created: at}, true},
		"same second, last": {candidate{ref: b, created: at}, holder{ref: a, created: at}, false},
		"the same object":   {candidate{ref: a, created: at}, holder{ref: a, created: at, set: "other"}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := older(&test.c, &test.h); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

// TestWordsOfTheMetrics: what package lease and package jobs call an error is a class that the metrics know.
func TestWordsOfTheMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	template := metrics.New(registry).Template("n", "t")
	p := &process{h: &harness{t: t}, registry: registry}
	for _, class := range []string{
		"lost", "not_found", "unauthorized", "throttled", "invalid", "unreadable", "canceled", "timeout",
		"forbidden", "conflict", "unavailable", "foreign", "payload",
	} {
		template.Error(metrics.StageLaunch, class)
		if got := p.metric("errors_total", "class", class); got != 1 {
			t.Errorf("class %q is not counted under its name", class)
		}
	}
	for _, reason := range []string{
		reasonDeleted, reasonStartTimeout, batchv1.JobReasonBackoffLimitExceeded, batchv1.JobReasonDeadlineExceeded,
		batchv1.JobReasonFailedIndexes, batchv1.JobReasonMaxFailedIndexesExceeded, batchv1.JobReasonPodFailurePolicy,
	} {
		template.Failed(reason)
		if got := p.metric("task_failures_total", "reason", reason); got != 1 {
			t.Errorf("reason %q is not counted under its name", reason)
		}
	}
}
