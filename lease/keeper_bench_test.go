package lease

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// granting extends every lease, at no cost of its own.
type granting struct {
	duration time.Duration
	renewed  atomic.Int64
}

func (g *granting) Extend(_ context.Context, leases []*Lease) []error {
	now := time.Now()
	for _, l := range leases {
		l.Granted(now, g.duration)
	}
	g.renewed.Add(int64(len(leases)))
	return nil
}

// BenchmarkKeeper measures what it costs to keep 10,000 leases of two minutes, the default of lease-duration, beyond the requests
// themselves: the processor time of the process while they are renewed at their usual pace, as a share of one core.
func BenchmarkKeeper(b *testing.B) {
	const leases, duration, window = 10_000, 2 * time.Minute, 10 * time.Second
	var share, each float64
	for b.Loop() {
		g := &granting{duration: duration}
		k := NewKeeper(g, KeeperConfig{})
		now := time.Now()
		for i := range leases {
			l := &Lease{}
			// As if they had come evenly over the time between two renewals.
			l.Granted(now.Add(-duration/3*time.Duration(i)/leases), duration)
			k.Hold(l)
		}
		ctx, cancel := context.WithTimeout(b.Context(), window)
		before := processorTime(b)
		k.Run(ctx)
		cancel()
		used := processorTime(b) - before
		if g.renewed.Load() < leases*int64(window)/int64(duration/3)/2 {
			b.Fatalf("only %d renewals", g.renewed.Load())
		}
		share = 100 * used.Seconds() / window.Seconds()
		each = float64(used.Microseconds()) / float64(g.renewed.Load())
	}
	b.ReportMetric(share, "%core/10000-leases")
	b.ReportMetric(each, "µs/renewal")
	b.ReportMetric(0, "ns/op")
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
