package eventhubs

import (
	"context"
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// mostAtOnce is the most events that the SDK can be asked for at a time.
const mostAtOnce = 5000

// reader reads one partition. It implements partitioned.Reader.
//
// To ask the SDK for n events does two things: the service is given credit for as many as it takes to have n on the way, and then
// it is waited until all n are there, or the context ends. To ask with a context that has ended gives the credit and waits for
// nothing: it returns what has arrived. So a Read first asks for all it wants in that manner, and only when nothing is there
// waits for one event. While there are enough, the service always has credit for a whole batch, and nobody waits for an answer.
type reader struct {
	hub       *hub
	partition string
	client    *azeventhubs.PartitionClient
	// linked says that there was a link when we last looked. Without one, the SDK would begin to make one under the context that has ended.
	linked bool
	// pending is a call that waits for an event. When a Read is given up it is left to end by itself, which it may do with an event, and the next
	// Read takes its answer.
	pending <-chan answer[[]*azeventhubs.ReceivedEventData]
	cancel  context.CancelFunc // of pending
	left    bool               // pending was begun by a Read that was given up
}

// ended is a context that has ended.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// Read implements partitioned.Reader.
func (r *reader) Read(ctx context.Context, most int) ([]partitioned.Event, error) {
	most = min(max(most, 1), mostAtOnce)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		if r.pending == nil {
			if r.linked {
				events, err := r.arrived(most)
				if err != nil || len(events) > 0 {
					return convert(r.partition, nil, events), r.failed(err)
				}
			}
			r.wait(ctx)
		}
		select {
		case first := <-r.pending:
			left := r.left
			r.cancel()
			r.pending, r.left = nil, false
			if left && isContext(first.err) {
				continue
			}
			return r.all(first, most)
		case <-ctx.Done():
			r.left = true
			return nil, ctx.Err()
		}
	}
}

// all returns the event that was waited for, with those that have arrived besides.
func (r *reader) all(first answer[[]*azeventhubs.ReceivedEventData], most int) ([]partitioned.Event, error) {
	if first.err != nil {
		return nil, r.failed(first.err)
	}
	r.linked = true
	if len(first.value) >= most {
		return convert(r.partition, nil, first.value), nil
	}
	rest, err := r.arrived(most - len(first.value))
	if err != nil {
		return nil, r.failed(err)
	}
	return convert(r.partition, first.value, rest), nil
}

// arrived returns what is there, and has the service send up to so many events in all.
func (r *reader) arrived(most int) ([]*azeventhubs.ReceivedEventData, error) {
	events, err := r.client.ReceiveEvents(ended, most, nil)
	if errors.Is(err, context.Canceled) {
		return nil, nil
	}
	return events, err
}

// wait begins to wait for one event.
func (r *reader) wait(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(ctx)
	client := r.client
	r.pending = start(func() ([]*azeventhubs.ReceivedEventData, error) { return client.ReceiveEvents(ctx, 1, nil) })
}

func (r *reader) failed(err error) error {
	if err == nil {
		return nil
	}
	r.linked = false
	return r.hub.wrap(r.hub.reading(r.partition), err)
}

// Close implements partitioned.Reader.
func (r *reader) Close(ctx context.Context) error {
	if r.cancel != nil {
		r.cancel()
	}
	_, err := await(ctx, func() (any, error) { return nil, r.client.Close(ctx) })
	return r.hub.wrap("ending to read partition "+r.partition, err)
}
