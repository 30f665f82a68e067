package dispatcher

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/lease"
)

// backoff is a delay that doubles with each failure in a row, from base to limit, and is spread by a fifth to either side so
// that what failed together does not come back together.
type backoff struct {
	base, limit time.Duration
	failures    int
}

// next is how long to wait after one more failure.
func (b *backoff) next() time.Duration {
	d := doubled(b.base, b.limit, b.failures)
	b.failures++
	return spread(d)
}

func (b *backoff) reset() { b.failures = 0 }

// retryDelay is how long a message rests after its attempt failed. It is the same each time it is asked for, so that a
// dispatcher which meets the message again, after a crash, comes to the same result.
func retryDelay(b annotation.Backoff, attempt int, messageID string) time.Duration {
	d := doubled(b.Min, b.Max, attempt-1)
	// Up to a fifth less, by the message's own id, against retries in step.
	var h uint32 = 2166136261
	for _, c := range []byte(messageID) {
		h = (h ^ uint32(c)) * 16777619
	}
	h = (h ^ uint32(attempt)) * 16777619 //nolint:gosec // attempts are few, and any bits do
	return d - time.Duration(float64(d)/5*float64(h%1024)/1024)
}

func doubled(base, limit time.Duration, times int) time.Duration {
	d := base
	for range times {
		if d >= limit/2 {
			return limit
		}
		d *= 2
	}
	return min(d, limit)
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64())) //nolint:gosec // no secret depends on it
}

// longestAsked is the longest wait that a source is granted.
const longestAsked = time.Minute

// heed is how long to wait after an error: as planned, or as long as the source asks and a little more, so that those who were asked together do
// not come back together.
func heed(planned time.Duration, err error) time.Duration {
	asked := min(lease.RetryAfter(err), longestAsked)
	return max(planned, asked+time.Duration(float64(asked)/5*rand.Float64())) //nolint:gosec // no secret depends on it
}

// persist tries until it has succeeded or ctx ends, each time for no longer than timeout. It returns why the last try failed.
func persist(ctx context.Context, timeout time.Duration, try func(context.Context) error) error {
	retry := backoff{base: 50 * time.Millisecond, limit: 500 * time.Millisecond}
	for {
		once, cancel := context.WithTimeout(ctx, timeout)
		err := try(once)
		cancel()
		if err == nil || !sleep(ctx, retry.next()) {
			return err
		}
	}
}

// sleep waits for d, or less if ctx ends; it reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
