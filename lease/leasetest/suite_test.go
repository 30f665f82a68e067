package leasetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lighterman-dev/lighterman/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Run("memory", func(t *testing.T) { t.Parallel(); Run(t, memoryHarness(nil)) })
	t.Run("memory-waiting", func(t *testing.T) {
		t.Parallel()
		h := memoryHarness(nil)
		h.NewQueue = newMemoryQueue(lease.Traits{Waits: true, MaxBatch: 10, MaxDelay: time.Hour}, nil)
		Run(t, h)
	})
	// A wrapper without faults must be as good as what it wraps.
	t.Run("memory-faultless", func(t *testing.T) {
		t.Parallel()
		Run(t, memoryHarness(func(s lease.Source) lease.Source { return NewFaults(s) }))
	})
}

// memoryHarness checks a Memory, or what wrap makes of it.
func memoryHarness(wrap func(lease.Source) lease.Source) Harness {
	return Harness{
		Lease:    300 * time.Millisecond,
		Binary:   true,
		NewQueue: newMemoryQueue(lease.Traits{}, wrap),
		NotApplicable: map[string]string{
			"MissingQueue":     "a Memory always exists",
			"WrongCredentials": "a Memory has none",
			"ServerRestart":    "a Memory has no server",
		},
	}
}

func newMemoryQueue(traits lease.Traits, wrap func(lease.Source) lease.Source) func(T) Queue {
	if wrap == nil {
		wrap = func(s lease.Source) lease.Source { return s }
	}
	var mu sync.Mutex
	n := 0
	return func(T) Queue {
		mu.Lock()
		n++
		m := NewMemory(MemoryConfig{Name: fmt.Sprintf("queue-%d", n), Traits: traits})
		mu.Unlock()
		return Queue{
			Source: func(_ T, d time.Duration) lease.Source { return wrap(m.Handle(d)) },
			Send:   func(_ T, bodies ...string) { m.Send(bodies...) },
			Poisoned: func(T) []string {
				var bodies []string
				for _, p := range m.Poisoned() {
					bodies = append(bodies, string(p.Message.Body))
				}
				return bodies
			},
			BrokenPoison: func(_ T, d time.Duration) lease.Source {
				f := NewFaults(m.Handle(d))
				f.Inject(OpPoison, Fault{Err: errors.New("the poison queue is out of order")})
				return wrap(f)
			},
			SendUnreadable: func(T) {
				m.SendMessages(lease.Message{Unreadable: fmt.Errorf("not a form we know: %w", lease.ErrUnreadable)})
			},
		}
	}
}

// recorder is a T that keeps what a check has to complain about.
type recorder struct {
	ctx context.Context //nolint:containedctx // a test has one too

	mu         sync.Mutex
	complaints []string
	cleanups   []func()
}

func (r *recorder) Helper()                  {}
func (r *recorder) Context() context.Context { return r.ctx }
func (r *recorder) Logf(string, ...any)      {}
func (r *recorder) Cleanup(f func())         { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complaints = append(r.complaints, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// complaints runs one check to its end.
func complaints(ctx context.Context, c Check, h Harness) []string {
	r := &recorder{ctx: ctx}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range slices.Backward(r.cleanups) {
				f()
			}
		}()
		c.Run(r, h)
	}()
	<-done
	return r.complaints
}

// broken is a source that breaks promises where a function is set.
type broken struct {
	lease.Source
	receive  func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error)
	extend   func(ctx context.Context, s lease.Source, l []*lease.Lease) []error
	complete func(ctx context.Context, s lease.Source, l []*lease.Lease) []error
	requeue  func(ctx context.Context, s lease.Source, r []lease.Return) []error
	poison   func(ctx context.Context, s lease.Source, p []lease.Poisoned) []error
	backlog  func(ctx context.Context, s lease.Source) (lease.Backlog, error)
}

func (b broken) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	if b.receive != nil {
		return b.receive(ctx, b.Source, limit)
	}
	return b.Source.Receive(ctx, limit)
}

func (b broken) Extend(ctx context.Context, l []*lease.Lease) []error {
	if b.extend != nil {
		return b.extend(ctx, b.Source, l)
	}
	return b.Source.Extend(ctx, l)
}

func (b broken) Complete(ctx context.Context, l []*lease.Lease) []error {
	if b.complete != nil {
		return b.complete(ctx, b.Source, l)
	}
	return b.Source.Complete(ctx, l)
}

func (b broken) Requeue(ctx context.Context, r []lease.Return) []error {
	if b.requeue != nil {
		return b.requeue(ctx, b.Source, r)
	}
	return b.Source.Requeue(ctx, r)
}

func (b broken) Poison(ctx context.Context, p []lease.Poisoned) []error {
	if b.poison != nil {
		return b.poison(ctx, b.Source, p)
	}
	return b.Source.Poison(ctx, p)
}

func (b broken) Backlog(ctx context.Context) (lease.Backlog, error) {
	if b.backlog != nil {
		return b.backlog(ctx, b.Source)
	}
	return b.Source.Backlog(ctx)
}

// memoryOf finds the queue below a source.
func memoryOf(s lease.Source) *Memory {
	if f, ok := s.(*Faults); ok {
		return memoryOf(f.source)
	}
	return s.(*Memory)
}

// stealReceipts makes the source believe every lease: the newest receipt of the message is put into it.
func stealReceipts(s lease.Source, leases []*lease.Lease) {
	q := memoryOf(s).queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range leases {
		if msg := q.byID[l.ID]; msg != nil && msg.receipt != "" {
			l.Receipt = msg.receipt
		}
	}
}

func TestSuiteBites(t *testing.T) {
	swallow := func(errs []error) []error { return nil }
	for name, test := range map[string]struct {
		broken broken
		caught []string // checks that must complain; others may
	}{
		"exceeds the limit": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				return s.Receive(ctx, limit+1)
			}},
			[]string{"BatchSizeNeverExceeded"},
		},
		"waits for a full batch": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				var all []*lease.Lease
				for len(all) < limit && ctx.Err() == nil {
					got, _ := s.Receive(ctx, limit-len(all))
					all = append(all, got...)
					timer := time.NewTimer(time.Millisecond)
					<-timer.C
				}
				return all, nil
			}},
			[]string{"EmptyQueue"},
		},
		"hands out without leasing": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				got, err := s.Receive(ctx, limit)
				var copies []*lease.Lease
				for _, l := range got {
					c := &lease.Lease{Message: l.Message, Receipt: l.Receipt}
					c.Granted(time.Now(), time.Hour)
					copies = append(copies, c)
				}
				s.Requeue(ctx, returns(got))
				return copies, err
			}},
			[]string{"ExclusiveLeases"},
		},
		"ignores receipts when it extends": {
			broken{extend: func(ctx context.Context, s lease.Source, l []*lease.Lease) []error {
				stealReceipts(s, l)
				return s.Extend(ctx, l)
			}},
			[]string{"StaleLeaseIsLost", "SameProcessRedelivery"},
		},
		"ignores receipts when it completes": {
			broken{complete: func(ctx context.Context, s lease.Source, l []*lease.Lease) []error {
				stealReceipts(s, l)
				return s.Complete(ctx, l)
			}},
			[]string{"StaleLeaseIsLost", "SameProcessRedelivery"},
		},
		"ignores receipts when it requeues": {
			broken{requeue: func(ctx context.Context, s lease.Source, r []lease.Return) []error {
				for _, r := range r {
					stealReceipts(s, []*lease.Lease{r.Lease})
				}
				return s.Requeue(ctx, r)
			}},
			[]string{"StaleLeaseIsLost", "SameProcessRedelivery"},
		},
		"copies to the poison queue with a lost lease": {
			broken{poison: func(ctx context.Context, s lease.Source, p []lease.Poisoned) []error {
				errs := s.Poison(ctx, p)
				q := memoryOf(s).queue
				q.mu.Lock()
				defer q.mu.Unlock()
				for i, err := range errs {
					if errors.Is(err, lease.ErrLost) {
						q.poisoned = append(q.poisoned, PoisonedMessage{Message: p[i].Lease.Message})
					}
				}
				return errs
			}},
			[]string{"StaleLeaseIsLost", "SameProcessRedelivery", "SpentLeaseIsLost"},
		},
		"deletes before the poison copy is confirmed": {
			broken{poison: func(ctx context.Context, s lease.Source, p []lease.Poisoned) []error {
				errs := s.Poison(ctx, p)
				for i, err := range errs {
					if err != nil && !errors.Is(err, lease.ErrLost) {
						s.Complete(ctx, []*lease.Lease{p[i].Lease})
					}
				}
				return errs
			}},
			[]string{"PoisonConfirmedFirst"},
		},
		"drops what it should poison": {
			broken{poison: func(ctx context.Context, s lease.Source, p []lease.Poisoned) []error {
				var l []*lease.Lease
				for _, p := range p {
					l = append(l, p.Lease)
				}
				return s.Complete(ctx, l)
			}},
			[]string{"PoisonMove"},
		},
		"does not extend": {
			broken{extend: func(_ context.Context, _ lease.Source, l []*lease.Lease) []error {
				for _, l := range l {
					l.Granted(time.Now(), 600*time.Millisecond)
				}
				return nil
			}},
			[]string{"Extension"},
		},
		"blanks the body when it extends": {
			broken{extend: func(ctx context.Context, s lease.Source, l []*lease.Lease) []error {
				errs := s.Extend(ctx, l)
				q := memoryOf(s).queue
				q.mu.Lock()
				defer q.mu.Unlock()
				for _, l := range l {
					if msg := q.byID[l.ID]; msg != nil {
						msg.Body = nil
					}
				}
				return errs
			}},
			[]string{"ExtensionKeepsBody"},
		},
		"counts an extension as a delivery": {
			broken{extend: func(ctx context.Context, s lease.Source, l []*lease.Lease) []error {
				errs := s.Extend(ctx, l)
				q := memoryOf(s).queue
				q.mu.Lock()
				defer q.mu.Unlock()
				for _, l := range l {
					if msg := q.byID[l.ID]; msg != nil {
						msg.Deliveries++
					}
				}
				return errs
			}},
			[]string{"ExtensionKeepsBody"},
		},
		"does not complete": {
			broken{complete: func(context.Context, lease.Source, []*lease.Lease) []error { return nil }},
			[]string{"Completion", "Backlog"},
		},
		"hides lost leases": {
			broken{complete: func(ctx context.Context, s lease.Source, l []*lease.Lease) []error {
				return swallow(s.Complete(ctx, l))
			}},
			[]string{"StaleLeaseIsLost", "SpentLeaseIsLost", "PartialFailure"},
		},
		"fails the whole batch for one": {
			broken{complete: func(ctx context.Context, s lease.Source, l []*lease.Lease) []error {
				errs := s.Complete(ctx, l)
				if errs == nil {
					return nil
				}
				all := make([]error, len(l))
				for i := range all {
					all[i] = lease.ErrLost
				}
				return all
			}},
			[]string{"PartialFailure"},
		},
		"requeues only when the lease expires": {
			broken{requeue: func(context.Context, lease.Source, []lease.Return) []error { return nil }},
			[]string{"RequeueAtOnce", "RequeueWithDelay"},
		},
		"ignores the delay": {
			broken{requeue: func(ctx context.Context, s lease.Source, r []lease.Return) []error {
				for i := range r {
					r[i].Delay = 0
				}
				return s.Requeue(ctx, r)
			}},
			[]string{"RequeueWithDelay"},
		},
		"forgets deliveries": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				got, err := s.Receive(ctx, limit)
				for _, l := range got {
					l.Deliveries = 1
				}
				return got, err
			}},
			[]string{"RedeliveryAfterExpiry", "RequeueAtOnce"},
		},
		"mangles bodies": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				got, err := s.Receive(ctx, limit)
				for _, l := range got {
					l.Body = []byte(fmt.Sprintf("%q", l.Body))
				}
				return got, err
			}},
			[]string{"BodyRoundTrip"},
		},
		"drops leases when cancelled": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				got, err := s.Receive(context.WithoutCancel(ctx), limit)
				timer := time.NewTimer(3 * time.Millisecond)
				defer timer.Stop()
				select {
				case <-timer.C:
					return got, err
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}},
			[]string{"Cancellation"},
		},
		"ignores cancellation": {
			broken{receive: func(ctx context.Context, s lease.Source, limit int) ([]*lease.Lease, error) {
				return s.Receive(context.WithoutCancel(ctx), limit)
			}},
			[]string{"Cancellation"},
		},
		"does not count what is leased": {
			broken{backlog: func(ctx context.Context, s lease.Source) (lease.Backlog, error) {
				b, err := s.Backlog(ctx)
				b.Messages -= b.Leased
				return b, err
			}},
			[]string{"Backlog"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := memoryHarness(func(s lease.Source) lease.Source {
				b := test.broken
				b.Source = s
				return b
			})
			checks := map[string]Check{}
			for _, c := range Checks() {
				checks[c.Name] = c
			}
			for _, name := range test.caught {
				// Enough for a check that finds the fault; one that hangs over it has found it too.
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				got := complaints(ctx, checks[name], h)
				cancel()
				if len(got) == 0 {
					t.Errorf("%s finds nothing wrong with a source that %s", name, t.Name())
				} else {
					t.Logf("%s: %s", name, got[0])
				}
			}
		})
	}
}
