package main

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

const (
	stream = "tasks"
	group  = "lighterman" // the default of the annotation consumer-group
)

// redisQueue is a stream in a Redis that is part of this process.
type redisQueue struct {
	server *miniredis.Miniredis
	client *redis.Client
}

func startRedis(context.Context) (queue, error) {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("starting the embedded Redis: %w", err)
	}
	return &redisQueue{server: server, client: redis.NewClient(&redis.Options{Addr: server.Addr(), DisableIdentity: true})}, nil
}

func (q *redisQueue) secret() map[string]string {
	return map[string]string{"url": "redis://" + q.server.Addr() + "/0"}
}

func (q *redisQueue) send(ctx context.Context, payloads []string, sent func(int, string, time.Time)) error {
	const batch = 100
	for first := 0; first < len(payloads); first += batch {
		at := time.Now()
		pipeline := q.client.Pipeline()
		var added []*redis.StringCmd
		for _, payload := range payloads[first:min(first+batch, len(payloads))] {
			added = append(added, pipeline.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []string{"data", payload}}))
		}
		if _, err := pipeline.Exec(ctx); err != nil {
			return fmt.Errorf("adding to the stream %s: %w", stream, err)
		}
		for i, a := range added {
			sent(first+i, a.Val(), at)
		}
	}
	return nil
}

func (q *redisQueue) left(ctx context.Context) (left, error) {
	pipeline := q.client.Pipeline()
	entries, pending := pipeline.XLen(ctx, stream), pipeline.XPending(ctx, stream, group)
	poisoned := pipeline.XLen(ctx, stream+":poison")
	if _, err := pipeline.Exec(ctx); err != nil {
		return left{}, fmt.Errorf("asking the stream %s what is left: %w", stream, err)
	}
	return left{
		messages: max(entries.Val(), pending.Val().Count),
		poisoned: poisoned.Val(),
		words:    fmt.Sprintf("XLEN %d, XPENDING %d, poisoned %d", entries.Val(), pending.Val().Count, poisoned.Val()),
	}, nil
}

func (q *redisQueue) close() error {
	err := q.client.Close()
	q.server.Close()
	return err
}
