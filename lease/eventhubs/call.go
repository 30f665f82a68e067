package eventhubs

import (
	"context"
	"time"

	"github.com/lighterman-dev/lighterman/lease/internal/call"
)

// closeTime is how long it may take to close something in good order.
const closeTime = time.Second

// await makes a call to the SDK and waits for it only as long as ctx lasts. Parts of the SDK wait for locks that another call
// holds while it uses the network, and to ask for the properties of a partition heeds no context at all.
//
// A call that is left behind ends with the connection, at the latest when the client is closed. It hands its answer over by
// what it returns, and touches nothing else.
func await[T any](ctx context.Context, request func() (T, error)) (T, error) {
	return call.Await(ctx, "no answer", request)
}
