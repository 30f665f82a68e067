package lease

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// asking is the error of a source that asks for fewer requests.
type asking time.Duration

func (asking) Error() string               { return "slow down" }
func (asking) Unwrap() error               { return ErrThrottled }
func (a asking) RetryAfter() time.Duration { return time.Duration(a) }

func TestRetryAfter(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want time.Duration
	}{
		"none":           {nil, 0},
		"does not say":   {ErrThrottled, 0},
		"wrapped":        {fmt.Errorf("receiving: %w", asking(time.Second)), time.Second},
		"one of several": {errors.Join(ErrLost, asking(0), fmt.Errorf("b: %w", asking(3*time.Second)), asking(time.Second)), 3 * time.Second},
		"with a class":   {fmt.Errorf("%w: %w", ErrThrottled, asking(time.Minute)), time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			if got := RetryAfter(test.err); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

// TestKeeperHeedsTheSource: no lease is renewed before the source wants to be asked again, whichever of them it told.
func TestKeeperHeedsTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var throttles atomic.Bool
		throttles.Store(true)
		x := &extender{d: 3 * time.Minute, fail: func(*Lease) error {
			if throttles.Swap(false) {
				return asking(40 * time.Second)
			}
			return nil
		}}
		k := keep(t, x, KeeperConfig{BatchSize: 1, Lost: func(l *Lease, err error) { t.Errorf("lost %s: %v", l.ID, err) }})
		for i := range 20 {
			k.Hold(newLease(fmt.Sprint(i), 3*time.Minute))
			advance(time.Second)
		}
		advance(40*time.Second + 500*time.Millisecond) // the first was due a moment ago, and told to wait
		calls := func() int {
			x.mu.Lock()
			defer x.mu.Unlock()
			return len(x.calls)
		}
		if got := calls(); got != 1 {
			t.Fatalf("%d renewals, want the one that was throttled", got)
		}
		advance(38 * time.Second)
		if got := calls(); got != 1 {
			t.Errorf("%d renewals while the source wants quiet", got-1)
		}
		advance(11 * time.Second)
		if got := calls(); got != 21 {
			t.Errorf("%d renewals after the quiet, want all 20", got-1)
		}
	})
}

// TestKeeperDoesNotWaitForTooLong: a source that asks for more than the leases have left is asked all the same, and not often.
func TestKeeperDoesNotWaitForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var healed atomic.Bool
		x := &extender{d: time.Minute, fail: func(*Lease) error {
			if healed.Load() {
				return nil
			}
			return asking(time.Hour)
		}}
		var lost []string
		k := keep(t, x, KeeperConfig{Lost: func(l *Lease, _ error) { lost = append(lost, l.ID) }})
		k.Hold(newLease("a", time.Minute), newLease("b", time.Minute))
		advance(45 * time.Second)
		if len(x.calls) < 2 || len(x.calls) > 4 {
			t.Errorf("%d tries within 45 s of a one-minute lease", len(x.calls))
		}
		healed.Store(true)
		advance(10 * time.Minute)
		if len(lost) != 0 {
			t.Fatalf("lost %v", lost)
		}
		healed.Store(false)
		advance(2 * time.Minute)
		if len(lost) != 2 || k.Held() != 0 {
			t.Errorf("lost %v, %d held; want both lost at their deadlines", lost, k.Held())
		}
		if got := len(x.calls); got > 100 {
			t.Errorf("%d calls", got)
		}
	})
}
