// Package redisstreams leases messages from a Redis stream through a consumer group. It needs Redis 6.2 or later.
//
// How a stream becomes a queue with leases:
//
//	XREADGROUP          hands out entries that no consumer of the group has seen; each becomes a *pending* entry
//	pending entry       is the lease: it names the consumer that holds it, and how long it has been idle
//	XCLAIM … IDLE 0     extends the lease: the idle time starts again
//	XAUTOCLAIM          takes over entries that have been idle for longer than a lease lasts
//	XACK, XDEL          complete the message
//
// The group is created from the beginning of the stream, so that what was queued before the first dispatcher came is not
// skipped. All members of a group must use the same lease duration, since each judges by its own when the others'
// leases are over.
//
// A lease is proved by consumer name *and* delivery count. The name alone is not enough: when a lease expires and the
// same process receives the entry again, the older lease must be dead although the consumer is the same. Taking an entry
// over raises its delivery count, and extending does not, so the count is the receipt. Every operation checks it and acts
// in one Lua script, hence an operation on a lost lease changes nothing.
//
// A message that is given back goes to a consumer that does not exist, named in returnedConsumer, with an idle time
// that makes it due when its delay is over. Redis cannot keep an idle time in the future, so the lease duration is also the
// longest delay. The messages so given back are looked for every second, those of crashed dispatchers every quarter of
// a lease: a returned message is found by asking for that one consumer's entries, and costs nothing when there are
// none, while the search for expired leases walks over everything pending.
//
// Completing acknowledges the entry, and deletes it when this group is the stream's only one. Other groups lose nothing;
// then it is up to their owner to trim the stream.
//
// An answer that gets lost after its effect took place, in Complete, Requeue or Poison, reads as a lost lease on the next
// try. Nothing is done twice.
//
// While a server hangs, every call returns as soon as its context ends, and Receive within a second of it, since what it
// may have leased by then would be nobody's otherwise. Close takes a second at most. See await for what becomes of the
// request. Where no context ends, a request of Receive is given up after five and a half seconds, and any other after two
// tries of go-redis' read_timeout, which is five seconds unless the connection string says otherwise.
//
// Redis Cluster is not supported.
package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
)

// Source leases messages from one stream for one consumer group. It implements lease.Source.
type Source struct {
	client   *redis.Client
	stream   string
	group    string
	consumer string
	poison   string
	lease    time.Duration
	identity string

	// ready says that the consumer group was there when we last looked.
	ready atomic.Bool

	mu sync.Mutex
	// expired and returned plan the two searches for messages that can be claimed.
	expired, returned search
	// cursor is where the search for expired leases goes on.
	cursor string
	// prunedAt is when consumers without leases were last removed.
	prunedAt time.Time
}

var _ lease.Source = (*Source)(nil)

// New makes a source. It does not connect; Check does. Values that cannot work are reported as lease.ErrInvalid.
func New(c Config) (*Source, error) {
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	quiet()
	return &Source{
		client:   redis.NewClient(opts),
		stream:   c.Stream,
		group:    c.Group,
		consumer: c.Consumer,
		poison:   c.PoisonStream,
		lease:    c.LeaseDuration,
		identity: identity(opts, c.Stream, c.Group),
		cursor:   firstID,
	}, nil
}

// Identity implements lease.Source.
func (s *Source) Identity() string { return s.identity }

// Traits implements lease.Source.
func (s *Source) Traits() lease.Traits {
	return lease.Traits{Waits: true, MaxDelay: s.lease, CreatesMissing: true}
}

// Check implements lease.Source. It creates the stream and the group where they are missing.
func (s *Source) Check(ctx context.Context) error {
	if _, err := await(ctx, func() (string, error) { return s.client.Ping(ctx).Result() }); err != nil {
		return s.wrap("checking", err)
	}
	for _, key := range []string{s.stream, s.poison} {
		kind, err := await(ctx, func() (string, error) { return s.client.Type(ctx, key).Result() })
		if err != nil {
			return s.wrap("checking", err)
		}
		if kind != "stream" && kind != "none" {
			return fmt.Errorf("checking: key %q holds a %s, not a stream; name another key, or remove this one: %w",
				key, kind, lease.ErrInvalid)
		}
	}
	_, err := await(ctx, func() (any, error) { return nil, s.createGroup(ctx) })
	return s.wrap("checking", err)
}

// ensureGroup creates the consumer group, once.
func (s *Source) ensureGroup(ctx context.Context) error {
	if s.ready.Load() {
		return nil
	}
	return s.createGroup(ctx)
}

func (s *Source) createGroup(ctx context.Context) error {
	err := s.client.XGroupCreateMkStream(ctx, s.stream, s.group, firstID).Err()
	if err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP") {
		return err
	}
	if err := s.client.XGroupCreateConsumer(ctx, s.stream, s.group, returnedConsumer).Err(); err != nil {
		return err
	}
	s.ready.Store(true)
	return nil
}

// withGroup runs a command that needs the group, and makes the group anew if it has gone, as happens when somebody deletes
// the stream.
func (s *Source) withGroup(ctx context.Context, command func() error) error {
	if err := s.ensureGroup(ctx); err != nil {
		return err
	}
	err := command()
	if !groupGone(err) {
		return err
	}
	s.ready.Store(false)
	if err := s.createGroup(ctx); err != nil {
		return err
	}
	return command()
}

// Close implements lease.Source. It also takes our consumer out of the group if it holds nothing, so that the list of
// consumers does not grow with every start of a dispatcher.
func (s *Source) Close() error {
	if s.ready.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// A consumer that stays behind is pruned later by somebody else.
		_, _ = await(ctx, func() (any, error) {
			return nil, pruneScript.Run(ctx, s.client, []string{s.stream}, s.group, s.consumer).Err()
		})
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("closing the connections to Redis: %w", err)
	}
	return nil
}

// pruneConsumers removes the consumers of dispatchers that are no more. Only those that our default names belong to, that
// hold no lease and have been silent for long; and even if one was still alive, Redis would make it anew. It is no more
// than tidying up, so what fails is left for the next time.
func (s *Source) pruneConsumers(ctx context.Context) {
	consumers, err := s.client.XInfoConsumers(ctx, s.stream, s.group).Result()
	if err != nil {
		return
	}
	for _, c := range consumers {
		if c.Name == s.consumer || c.Pending > 0 || c.Idle < pruneAfter || !strings.HasPrefix(c.Name, consumerPrefix) {
			continue
		}
		if pruneScript.Run(ctx, s.client, []string{s.stream}, s.group, c.Name).Err() != nil {
			return
		}
	}
}

// Backlog implements lease.Source. It only reads: where the group is missing, all that the stream holds is waiting.
func (s *Source) Backlog(ctx context.Context) (lease.Backlog, error) {
	b, err := await(ctx, func() (lease.Backlog, error) { return s.backlog(ctx) })
	return b, s.wrap("reading the backlog", err)
}
