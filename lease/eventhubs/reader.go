package eventhubs

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/lighterman-dev/lighterman/lease/internal/call"
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
//
// Where events come one after the other, a Read lingers for a moment: a call for every few of them costs more than the events
// themselves. One that comes alone does not wait.
type reader struct {
	hub       *hub
	partition string
	client    *azeventhubs.PartitionClient
	// linked says that there was a link when we last looked. Without one, the SDK would begin to make one under the context that has ended.
	linked bool
	// pending is a call that waits for an event. When a Read is given up it is left to end by itself, which it may do with an event, and the next
	// Read takes its answer.
	pending <-chan call.Answer[[]*azeventhubs.ReceivedEventData]
	cancel  context.CancelFunc // of pending
	left    bool               // pending was begun by a Read that was given up
	// credit is how many events the service may send, and those that have arrived and were not returned.
	credit int
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
				events, err := r.arrived(ended, most)
				if err != nil {
					return nil, r.failed(err)
				}
				if len(events) > 0 {
					return r.more(ctx, events, most)
				}
			}
			r.wait(ctx)
		}
		select {
		case first := <-r.pending:
			left := r.left
			r.cancel()
			r.pending, r.left = nil, false
			if left && isContext(first.Err) {
				continue
			}
			return r.all(ctx, first, most)
		case <-ctx.Done():
			r.left = true
			return nil, ctx.Err()
		}
	}
}

// all returns the event that was waited for, with those that have arrived besides.
func (r *reader) all(ctx context.Context, first call.Answer[[]*azeventhubs.ReceivedEventData], most int) ([]partitioned.Event, error) {
	if first.Err != nil {
		return nil, r.failed(first.Err)
	}
	r.linked = true
	r.credit -= len(first.Value)
	if len(first.Value) >= most {
		return convert(r.partition, first.Value), nil
	}
	rest, err := r.arrived(ended, most-len(first.Value))
	if err != nil {
		return nil, r.failed(err)
	}
	return r.more(ctx, append(first.Value, rest...), most)
}

// linger is how long to wait for more events where several have come at once.
const linger = 2 * time.Millisecond

// more returns events, with those that come in a moment.
func (r *reader) more(ctx context.Context, events []*azeventhubs.ReceivedEventData, most int) ([]partitioned.Event, error) {
	if len(events) == 1 || len(events) >= most {
		return convert(r.partition, events), nil
	}
	ctx, cancel := context.WithTimeout(ctx, linger)
	defer cancel()
	rest, err := r.arrived(ctx, most-len(events))
	if err != nil {
		return nil, r.failed(err) // nothing is lost: whoever reads anew begins after what was returned
	}
	return convert(r.partition, append(events, rest...)), nil
}

// arrived returns what is there when ctx ends, and has the service send up to so many events in all. To give credit is to send a frame, which is not worth it for
// each event that was taken: while there is credit for half of them, it will do.
func (r *reader) arrived(ctx context.Context, most int) ([]*azeventhubs.ReceivedEventData, error) {
	ask := most
	if r.credit >= (most+1)/2 {
		ask = min(r.credit, most)
	}
	r.credit = max(r.credit, ask)
	events, err := r.client.ReceiveEvents(ctx, ask, nil)
	r.credit -= len(events)
	if isContext(err) {
		return nil, nil
	}
	return events, err
}

// wait begins to wait for one event.
func (r *reader) wait(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(ctx)
	r.credit = max(r.credit, 1)
	client := r.client
	r.pending = call.Start(func() ([]*azeventhubs.ReceivedEventData, error) { return client.ReceiveEvents(ctx, 1, nil) })
}

func (r *reader) failed(err error) error {
	if err == nil {
		return nil
	}
	r.linked, r.credit = false, 0
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
