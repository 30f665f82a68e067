package eventhubs

import (
	"context"
	"fmt"
	"time"
)

// closeTime is how long it may take to close something in good order.
const closeTime = time.Second

// await makes a call to the SDK and waits for it only as long as ctx lasts. Parts of the SDK wait for locks that another call
// holds while it uses the network, and to ask for the properties of a partition heeds no context at all.
//
// A call that is left behind ends with the connection, at the latest when the client is closed. It hands its answer over by
// what it returns, and touches nothing else.
func await[T any](ctx context.Context, call func() (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	answered := start(call)
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-answered: // both at once
		return a.value, a.err
	default:
		return none, fmt.Errorf("no answer: %w", ctx.Err())
	}
}

type answer[T any] struct {
	value T
	err   error
}

// start makes a call that nobody need wait for.
func start[T any](call func() (T, error)) <-chan answer[T] {
	answered := make(chan answer[T], 1)
	go func() {
		value, err := call()
		answered <- answer[T]{value, err}
	}()
	return answered
}
