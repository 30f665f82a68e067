package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

const (
	// maxDepth is how many messages of a kind may be unsettled. Azurite slows down badly above a thousand in all its queues.
	maxDepth = 500
	// feedBatch is how many are sent at once, and so for how long a fault that needs the server may have to wait.
	feedBatch = 32
	feedPause = 50 * time.Millisecond

	// trickle is the pause between messages that are sent although it is not their turn yet, where fewer than few are under way: what
	// is measured by the next Job needs a message to make it of.
	trickle = 300 * time.Millisecond
	few     = 40
)

// A feeder sends messages as those before them are settled, straight to the server: that a message was sent twice or not at
// all must not be mistaken for lighterman's doing.
type feeder struct {
	messages []message
	send     func(context.Context, []message) error
	settled  func() int
	allowed  atomic.Int64 // how many may be sent by now
	sent     atomic.Int64

	last time.Time // of a send; run's own

	// server is held while messages are sent, and by whoever stops the server: so none is under way then.
	server sync.Mutex
}

// run sends until all messages are sent or ctx ends.
func (f *feeder) run(ctx context.Context) error {
	ticker := time.NewTicker(feedPause)
	defer ticker.Stop()
	for f.sent.Load() < int64(len(f.messages)) {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := f.sendSome(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func (f *feeder) sendSome(ctx context.Context) error {
	f.server.Lock()
	defer f.server.Unlock()
	sent := int(f.sent.Load())
	turn, underWay := int(f.allowed.Load())-sent, sent-f.settled()
	if turn <= 0 && underWay < few && time.Since(f.last) > trickle {
		turn = 1
	}
	n := min(turn, feedBatch, maxDepth-underWay, len(f.messages)-sent)
	if n <= 0 {
		return nil
	}
	f.last = time.Now()
	if err := f.send(ctx, f.messages[sent:sent+n]); err != nil {
		return fmt.Errorf("sending messages from %s on: %w", f.messages[sent].id, err)
	}
	f.sent.Add(int64(n))
	return nil
}

// allow lets so much of all messages be sent.
func (f *feeder) allow(part float64) {
	f.allowed.Store(int64(min(part, 1) * float64(len(f.messages))))
}

// openQueues connects to Azurite, without retries: a message must not be sent twice.
func openQueues(connection string) (*azqueue.ServiceClient, error) {
	options := &azqueue.ClientOptions{}
	options.Retry = policy.RetryOptions{MaxRetries: -1}
	service, err := azqueue.NewServiceClientFromConnectionString(connection, options)
	if err != nil {
		return nil, fmt.Errorf("connecting to Azurite: %w", err)
	}
	return service, nil
}

func sendToQueues(service *azqueue.ServiceClient) func(context.Context, []message) error {
	return func(ctx context.Context, messages []message) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(4)
		for _, m := range messages {
			group.Go(func() error {
				_, err := service.NewQueueClient(m.queue).EnqueueMessage(ctx, m.payload(), nil)
				return err
			})
		}
		return group.Wait()
	}
}

// openStreams connects to redis-server, without retries.
func openStreams(address string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DisableIdentity: true})
}

func sendToStreams(client *redis.Client) func(context.Context, []message) error {
	return func(ctx context.Context, messages []message) error {
		_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			var errs []error
			for _, m := range messages {
				errs = append(errs, p.XAdd(ctx, &redis.XAddArgs{Stream: m.queue, Values: []string{"data", m.payload()}}).Err())
			}
			return errors.Join(errs...)
		})
		return err
	}
}
