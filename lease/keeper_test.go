package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// extender grants what it is asked for, unless fail says otherwise, and remembers its calls.
type extender struct {
	d    time.Duration
	fail func(*Lease) error
	hang chan struct{} // when set, calls wait for it to close, whatever their context says

	mu    sync.Mutex
	calls [][]string
}

func (x *extender) Extend(_ context.Context, leases []*Lease) []error {
	if x.hang != nil {
		<-x.hang
	}
	sent := time.Now()
	errs := make([]error, len(leases))
	ids := make([]string, len(leases))
	for i, l := range leases {
		ids[i] = l.ID
		if x.fail != nil {
			errs[i] = x.fail(l)
		}
		if errs[i] == nil {
			l.Granted(sent, x.d)
		}
	}
	x.mu.Lock()
	x.calls = append(x.calls, ids)
	x.mu.Unlock()
	return errs
}

func newLease(id string, d time.Duration) *Lease {
	l := &Lease{Message: Message{ID: id}}
	l.Granted(time.Now(), d)
	return l
}

// advance moves the virtual clock on, and lets everything that is due by then happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// keep runs a keeper over x for the length of the test.
func keep(t *testing.T, x *extender, cfg KeeperConfig) *Keeper {
	t.Helper()
	k := NewKeeper(x, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return k
}

func TestKeeperRenewsUntilReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &extender{d: time.Minute}
		k := keep(t, x, KeeperConfig{Lost: func(l *Lease, err error) { t.Errorf("lost %s: %v", l.ID, err) }})
		l := newLease("a", time.Minute)
		k.Hold(l)
		advance(10 * time.Minute)
		if !l.Valid() {
			t.Error("the lease ran out while it was held")
		}
		if got := len(x.calls); got < 29 || got > 31 {
			t.Errorf("%d renewals in ten minutes of a one-minute lease, want about 30", got)
		}
		if err := k.Release(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		before := len(x.calls)
		advance(time.Hour)
		if len(x.calls) != before {
			t.Error("renewed after the release")
		}
		if l.Valid() {
			t.Error("still valid an hour after the release")
		}
	})
}

func TestKeeperBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &extender{d: time.Minute}
		k := keep(t, x, KeeperConfig{BatchSize: 10})
		for i := range 25 {
			k.Hold(newLease(fmt.Sprint(i), time.Minute))
		}
		advance(21 * time.Second)
		var sizes []int
		for _, c := range x.calls {
			sizes = append(sizes, len(c))
		}
		slices.Sort(sizes)
		if want := []int{5, 10, 10}; !slices.Equal(sizes, want) {
			t.Errorf("batches of %v, want %v", sizes, want)
		}
	})
}

func TestKeeperRetriesUntilTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		x := &extender{d: time.Minute, fail: func(*Lease) error { return broken }}
		start := time.Now()
		var lostAfter time.Duration
		var lostErr error
		k := keep(t, x, KeeperConfig{Lost: func(_ *Lease, err error) { lostAfter, lostErr = time.Since(start), err }})
		l := newLease("a", time.Minute)
		k.Hold(l)
		advance(2 * time.Minute)
		if want := time.Minute - time.Minute/8; lostAfter < want || lostAfter > want+time.Second {
			t.Errorf("lost after %v, want %v", lostAfter, want)
		}
		if !errors.Is(lostErr, broken) {
			t.Errorf("lost for %v, want the last failure", lostErr)
		}
		if len(x.calls) < 3 {
			t.Errorf("%d tries, want several", len(x.calls))
		}
		if k.Held() != 0 {
			t.Error("a lost lease is still held")
		}
	})
}

func TestKeeperRecoversFromFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 2
		x := &extender{d: time.Minute, fail: func(*Lease) error {
			if failures > 0 {
				failures--
				return errors.New("broken")
			}
			return nil
		}}
		k := keep(t, x, KeeperConfig{Lost: func(l *Lease, err error) { t.Errorf("lost %s: %v", l.ID, err) }})
		l := newLease("a", time.Minute)
		k.Hold(l)
		advance(5 * time.Minute)
		if !l.Valid() {
			t.Error("not valid after two failures and a recovery")
		}
	})
}

func TestKeeperLosesAtOnceWhatTheSourceCallsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &extender{d: time.Minute, fail: func(l *Lease) error {
			if l.ID == "gone" {
				return fmt.Errorf("extending: %w", ErrLost)
			}
			return nil
		}}
		var lost []string
		var renewed, failed int
		k := keep(t, x, KeeperConfig{
			Lost:    func(l *Lease, _ error) { lost = append(lost, l.ID) },
			Renewed: func(n int, errs []error) { renewed += n; failed += len(errs) },
		})
		gone, kept := newLease("gone", time.Minute), newLease("kept", time.Minute)
		k.Hold(gone, kept)
		advance(30 * time.Second)
		if want := []string{"gone"}; !slices.Equal(lost, want) {
			t.Errorf("lost %v, want %v", lost, want)
		}
		if gone.Valid() {
			t.Error("a lease that the source calls lost is still trusted")
		}
		if !kept.Valid() || renewed != 1 || failed != 1 {
			t.Errorf("renewed %d, failed %d, want 1 and 1", renewed, failed)
		}
	})
}

func TestKeeperNoticesDeadlinesWhileTheServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &extender{d: time.Minute, hang: make(chan struct{})}
		var lost []string
		k := keep(t, x, KeeperConfig{Concurrency: 1, BatchSize: 1, Lost: func(l *Lease, _ error) { lost = append(lost, l.ID) }})
		k.Hold(newLease("a", time.Minute), newLease("b", time.Minute))
		advance(time.Minute)
		if len(lost) != 1 {
			t.Errorf("lost %v, want the one that waited for the call", lost)
		}
		close(x.hang)
		synctest.Wait()
	})
}

func TestReleaseWaitsForTheExtension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &extender{d: time.Minute, hang: make(chan struct{})}
		k := keep(t, x, KeeperConfig{})
		l := newLease("a", time.Minute)
		k.Hold(l)
		advance(21 * time.Second) // the extension is under way
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.Release(soon, l); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("released (%v) while an extension was under way", err)
		}
		released := make(chan error, 1)
		go func() { released <- k.Release(t.Context(), l) }() // it is let go already, and waited for all the same
		synctest.Wait()
		select {
		case err := <-released:
			t.Fatalf("released (%v) while an extension was under way", err)
		default:
		}
		close(x.hang)
		if err := <-released; err != nil {
			t.Fatal(err)
		}
		if len(x.calls) != 1 {
			t.Errorf("%d calls, want 1", len(x.calls))
		}
	})
}

func TestGrantedKeepsTimeInHand(t *testing.T) {
	var l Lease
	sent := time.Now()
	l.Granted(sent, 80*time.Second)
	if got, want := l.Deadline(), sent.Add(70*time.Second); !got.Equal(want) {
		t.Errorf("deadline %v after sending, want %v", got.Sub(sent), want.Sub(sent))
	}
}

// TestHeldAgainWhileItIsExtended: a lease that could not be released in time is held again, and renewed from then on.
func TestHeldAgainWhileItIsExtended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &extender{d: time.Minute, hang: make(chan struct{})}
		k := keep(t, x, KeeperConfig{})
		l := newLease("a", time.Minute)
		k.Hold(l)
		advance(21 * time.Second) // the extension is under way
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.Release(soon, l); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("released (%v) while an extension was under way", err)
		}
		k.Hold(l)
		close(x.hang)
		advance(time.Minute)
		if len(x.calls) < 3 || !l.Valid() || k.Held() != 1 {
			t.Errorf("%d calls, valid: %v, %d held; want it renewed as ever", len(x.calls), l.Valid(), k.Held())
		}
	})
}

// TestNoDeadlineStays: a lease that was never granted, or that was forfeited, has the zero deadline, whenever it is asked for.
func TestNoDeadlineStays(t *testing.T) {
	var l Lease
	if got := l.Deadline(); !got.IsZero() {
		t.Errorf("the deadline of a lease that was never granted is %v, want the zero time", got)
	}
	l.Granted(time.Now(), time.Minute)
	l.forfeit()
	if got := l.Deadline(); !got.IsZero() || l.Valid() {
		t.Errorf("the deadline of a forfeited lease is %v, valid: %v; want the zero time, and not valid", got, l.Valid())
	}
}
