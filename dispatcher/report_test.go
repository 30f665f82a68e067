package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// everyFifth lets through but one request of five.
func everyFifth(answer func(*apiRequest) error) func(*apiRequest) error {
	var n atomic.Int64
	return func(r *apiRequest) error {
		if n.Add(1)%5 == 0 {
			return answer(r)
		}
		return nil
	}
}

// TestWhatComesAndGoesIsToldOnce: a problem that is back before long was never over.
func TestWhatComesAndGoesIsToldOnce(t *testing.T) {
	t.Run("Jobs", func(t *testing.T) {
		world(t, func(t *testing.T, h *harness) {
			q := h.dispatch("resize", "max-in-flight", "1000")
			h.start()
			advance(time.Second)
			fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: everyFifth(internal)})
			for range 100 {
				q.Send("a")
				advance(time.Second)
			}
			if failing, resumed := h.told("resize", "JobCreationFailing"), h.told("resize", "Resumed"); failing != 1 || resumed != 0 {
				t.Errorf("in 100 s it failed %d times and resumed %d times", failing, resumed)
			}
			h.api.remove(fault)
			advance(2 * steadyAfter)
			if got := h.told("resize", "Resumed"); got != 1 || len(h.jobs()) != 100 {
				t.Errorf("that it goes on was told %d times; %d Jobs", got, len(h.jobs()))
			}
		})
	})
	t.Run("the source", func(t *testing.T) {
		world(t, func(t *testing.T, h *harness) {
			q := h.dispatch("resize")
			h.start()
			advance(time.Second)
			for range 100 {
				q.inject(leasetest.OpReceive, leasetest.Fault{Times: 1, Err: errFault})
				advance(time.Second)
			}
			if failing, resumed := h.told("resize", "SourceUnavailable"), h.told("resize", "Resumed"); failing != 1 || resumed != 0 {
				t.Errorf("in 100 s it failed %d times and resumed %d times", failing, resumed)
			}
			advance(2 * steadyAfter)
			if got := h.told("resize", "Resumed"); got != 1 {
				t.Errorf("that it goes on was told %d times", got)
			}
		})
	})
}

// varying fails with another text each time.
type varying struct {
	lease.Source
	times *atomic.Int64
}

func (v varying) Check(context.Context) error {
	return fmt.Errorf("read tcp 10.1.2.3:%d->10.0.0.1:6379: connection reset by peer", v.times.Add(1))
}

// TestVaryingTextsAreOneProblem: numbers in the text of an error make no new problem of it.
func TestVaryingTextsAreOneProblem(t *testing.T) {
	var times atomic.Int64
	for name, test := range map[string]struct {
		fault  *apiFault
		source func(lease.Source) lease.Source
	}{
		"source": {source: func(s lease.Source) lease.Source { return varying{s, &times} }},
		"quota": {fault: &apiFault{verbs: "create dry-run", resource: "jobs", answer: func(r *apiRequest) error {
			return apierrors.NewForbidden(jobsResource, r.name, fmt.Errorf("exceeded quota: small, used: %d", times.Add(1)))
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				h.dispatch("resize")
				if test.fault != nil {
					h.api.inject(test.fault)
				}
				h.start(func(c *Config) {
					open := c.OpenSource
					c.OpenSource = func(spec *annotation.Spec, connection Connection) (lease.Source, error) {
						s, err := open(spec, connection)
						if err == nil && test.source != nil {
							s = test.source(s)
						}
						return s, err
					}
				})
				advance(again - time.Second)
				if got := h.told("resize", "Misconfigured"); got != 1 {
					t.Errorf("%d Events for one problem", got)
				}
			})
		})
	}
}

// TestTemplateKey: another mistake is another problem.
func TestTemplateKey(t *testing.T) {
	spec := func(stream string) *annotation.Spec {
		return &annotation.Spec{Source: annotation.SourceRedisStreams, Stream: stream}
	}
	source := func(stream string, err error) error {
		return &sourceError{problem: sourceProblem(spec(stream), err), err: err}
	}
	same := map[string][2]error{
		"ports":           {source("a", errors.New("read :1")), source("a", errors.New("read :2"))},
		"kinds that pass": {source("a", lease.ErrThrottled), source("a", context.DeadlineExceeded)},
		"quota": {
			apierrors.NewForbidden(jobsResource, "j", errors.New("used: 1")), apierrors.NewForbidden(jobsResource, "j", errors.New("used: 2")),
		},
	}
	for name, errs := range same {
		if a, b := templateKey(errs[0]), templateKey(errs[1]); a != b {
			t.Errorf("%s: %q and %q", name, a, b)
		}
	}
	other := []error{
		&annotation.Error{Key: "k", Value: "1"}, &annotation.Error{Key: "k", Value: "2"},
		fmt.Errorf("%w: one", jobs.ErrTemplate), fmt.Errorf("%w: two", jobs.ErrTemplate),
		source("a", lease.ErrNotFound), source("b", lease.ErrNotFound), source("a", lease.ErrUnauthorized), source("a", errFault),
		invalid(&apiRequest{name: "j"}), forbidden(&apiRequest{name: "j"}),
		apierrors.NewForbidden(corev1.Resource("secrets"), "j", errors.New("used: 1")),
	}
	seen := map[string]bool{}
	for _, err := range other {
		if key := templateKey(err); seen[key] {
			t.Errorf("%v is taken for another", err)
		} else {
			seen[key] = true
		}
	}
}
