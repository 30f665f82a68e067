package redisstreams

import (
	"context"
	"time"

	"github.com/lighterman-dev/lighterman/lease/internal/call"
)

// grace is how long a request that hands out leases may go on after its caller gave up.
const grace = time.Second

// await makes a call to the server, and waits for its answer only as long as ctx lasts. go-redis heeds a context's
// deadline, but once it waits for an answer, no cancellation reaches it.
//
// A call that is left behind ends by the timeouts of its connection, or when the source is closed. Its effect is unknown,
// like that of any call whose answer got lost: the server may have it in its buffers yet, and no closing of connections
// would bring it back. The scripts check the lease when they run, so one that comes late does no harm. To the process it
// must do none either: it hands over its answer by what it returns, and touches no lease.
func await[T any](ctx context.Context, request func() (T, error)) (T, error) {
	return call.Await(ctx, "no answer from Redis", request)
}

// detached is a context for a request that hands out leases. Such a request is not given up at once when ctx ends: its
// leases would be nobody's until they expire. It ends soon in any case.
func detached(ctx context.Context, block time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(block, 0)+answerTime)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return longer, func() {
		stop()
		cancel()
	}
}
