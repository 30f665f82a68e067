package storagequeue

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// TestThrottledRequests: what the service asks for reaches the caller, and the SDK does not try again by itself.
func TestThrottledRequests(t *testing.T) {
	held := func() *lease.Lease {
		l := &lease.Lease{Message: lease.Message{ID: "m", Body: []byte("x")}, Receipt: "r"}
		l.Granted(time.Now(), time.Minute)
		return l
	}
	first := func(errs []error) error {
		if len(errs) != 1 {
			return nil
		}
		return errs[0]
	}
	operations := map[string]func(context.Context, *Source) error{
		"receive":  func(ctx context.Context, s *Source) error { _, err := s.Receive(ctx, 1); return err },
		"extend":   func(ctx context.Context, s *Source) error { return first(s.Extend(ctx, []*lease.Lease{held()})) },
		"complete": func(ctx context.Context, s *Source) error { return first(s.Complete(ctx, []*lease.Lease{held()})) },
		"requeue": func(ctx context.Context, s *Source) error {
			return first(s.Requeue(ctx, []lease.Return{{Lease: held()}}))
		},
		"poison": func(ctx context.Context, s *Source) error {
			return first(s.Poison(ctx, []lease.Poisoned{{Lease: held()}}))
		},
		"backlog": func(ctx context.Context, s *Source) error { _, err := s.Backlog(ctx); return err },
	}
	for name, answer := range map[string]struct {
		status       int
		header, code string
		value        string
		want         time.Duration
	}{
		"429":                 {http.StatusTooManyRequests, "Retry-After", "", "7", 7 * time.Second},
		"503":                 {http.StatusServiceUnavailable, "Retry-After", "ServerBusy", "30", 30 * time.Second},
		"500":                 {http.StatusInternalServerError, "x-ms-retry-after-ms", "OperationTimedOut", "1500", 1500 * time.Millisecond},
		"503 without a word":  {http.StatusServiceUnavailable, "", "ServerBusy", "", 0},
		"503 and no sense":    {http.StatusServiceUnavailable, "Retry-After", "ServerBusy", "soon", 0},
		"429 in milliseconds": {http.StatusTooManyRequests, "retry-after-ms", "", "250", 250 * time.Millisecond},
	} {
		for op, call := range operations {
			t.Run(name+", "+op, func(t *testing.T) {
				var requests atomic.Int64
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					requests.Add(1)
					if answer.header != "" {
						w.Header().Set(answer.header, answer.value)
					}
					if answer.code != "" {
						w.Header().Set("x-ms-error-code", answer.code)
					}
					w.WriteHeader(answer.status)
				}))
				defer server.Close()
				s, err := New(Config{
					ConnectionString: "AccountName=a;AccountKey=" + base64.StdEncoding.EncodeToString([]byte("key")) + ";QueueEndpoint=" + server.URL + "/a",
					Queue:            "tasks", PoisonQueue: "tasks-poison", LeaseDuration: time.Minute, Concurrency: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				err = errors.Join(call(t.Context(), s), s.Close())
				if !errors.Is(err, lease.ErrThrottled) || lease.RetryAfter(err) != answer.want {
					t.Errorf("%v asks for %v, want lease.ErrThrottled and %v", err, lease.RetryAfter(err), answer.want)
				}
				if got := requests.Load(); got != 1 {
					t.Errorf("%d requests, want one", got)
				}
			})
		}
	}
}
