package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
)

const (
	// claimChunk is the most entries that one script claims, so that no script holds up the server for long.
	claimChunk = 500
	// scansPerReceive is how often one Receive moves the search for expired leases on. Redis looks at ten times as
	// many entries as it may claim, so a small Receive does not get through a long list of pending entries at once.
	scansPerReceive = 8
)

// search plans one of the searches for messages that can be claimed.
type search struct{ next time.Time }

// begin reports whether the search is due, and if so keeps others from it for the time being.
func (p *search) begin(now time.Time, every time.Duration) bool {
	if now.Before(p.next) {
		return false
	}
	p.next = now.Add(every)
	return true
}

// notAfter brings the search forward.
func (p *search) notAfter(t time.Time) {
	if t.Before(p.next) {
		p.next = t
	}
}

func (s *Source) expiredEvery() time.Duration  { return s.lease / 4 }
func (s *Source) returnedEvery() time.Duration { return min(returnedEvery, s.lease/4) }

// Receive implements lease.Source: first what was given back and is due, then what others lost, then what is new.
func (s *Source) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	if limit <= 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	leases, err := s.receive(ctx, limit)
	if err == nil && len(leases) == 0 {
		err = ctx.Err()
	}
	if isContext(err) && ctx.Err() != nil {
		return leases, ctx.Err()
	}
	return leases, s.wrap("receiving from", err)
}

func (s *Source) receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	var leases []*lease.Lease
	for _, claim := range []func(context.Context, int) ([]*lease.Lease, error){s.claimReturned, s.claimExpired} {
		claimed, err := claim(ctx, limit-len(leases))
		leases = append(leases, claimed...)
		if err != nil || len(leases) >= limit || ctx.Err() != nil {
			return leases, err
		}
	}
	block := time.Duration(-1) // do not wait
	if len(leases) == 0 {
		block = s.block()
	}
	fresh, err := s.readNew(ctx, limit-len(leases), block)
	return append(leases, fresh...), err
}

// block is how long a read may wait: not past the next search, and not for so long that little of the lease was left to
// trust, since the lease counts from when the request was sent.
func (s *Source) block() time.Duration {
	s.mu.Lock()
	next := s.returned.next
	if s.expired.next.Before(next) {
		next = s.expired.next
	}
	s.mu.Unlock()
	block := min(maxBlock, s.lease/8, time.Until(next))
	// Zero would mean for ever.
	return max(block.Truncate(time.Millisecond), time.Millisecond)
}

func (s *Source) readNew(ctx context.Context, limit int, block time.Duration) ([]*lease.Lease, error) {
	ctx, cancel := detached(ctx, block)
	defer cancel()
	type answer struct {
		streams []redis.XStream
		sentAt  time.Time
	}
	read, err := await(ctx, func() (a answer, err error) {
		err = s.withGroup(ctx, func() (err error) {
			a.sentAt = time.Now()
			a.streams, err = s.client.XReadGroup(ctx, &redis.XReadGroupArgs{
				Group:    s.group,
				Consumer: s.consumer,
				Streams:  []string{s.stream, ">"},
				Count:    int64(limit),
				Block:    block,
			}).Result()
			return err
		})
		return a, err
	})
	if errors.Is(err, redis.Nil) { // nothing new
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var leases []*lease.Lease
	for _, stream := range read.streams {
		if leases == nil {
			leases = make([]*lease.Lease, 0, len(stream.Messages))
		}
		for _, entry := range stream.Messages {
			leases = append(leases, s.newLease(entry.ID, entry.Values, 1, read.sentAt))
		}
	}
	return leases, nil
}

// claimReturned claims what was given back and is due.
func (s *Source) claimReturned(ctx context.Context, limit int) ([]*lease.Lease, error) {
	s.mu.Lock()
	due := s.returned.begin(time.Now(), s.returnedEvery())
	s.mu.Unlock()
	if !due {
		return nil, nil
	}
	var leases []*lease.Lease
	for len(leases) < limit && ctx.Err() == nil {
		count := min(limit-len(leases), claimChunk)
		reply, sentAt, err := s.runClaim(ctx, returnedScript, s.leaseMillis(), returnedConsumer, count)
		if err != nil {
			s.again(&s.returned)
			return leases, err
		}
		claimed, err := s.leases(reply, sentAt)
		leases = append(leases, claimed...)
		if err != nil || len(reply) < count {
			return leases, err
		}
	}
	s.again(&s.returned) // there may be more
	return leases, nil
}

// claimExpired claims what nobody has extended for as long as a lease lasts.
func (s *Source) claimExpired(ctx context.Context, limit int) ([]*lease.Lease, error) {
	s.mu.Lock()
	now := time.Now()
	due := s.expired.begin(now, s.expiredEvery())
	prune := due && now.Sub(s.prunedAt) > pruneEvery
	if prune {
		s.prunedAt = now
	}
	cursor := s.cursor
	s.mu.Unlock()
	if !due {
		return nil, nil
	}
	var leases []*lease.Lease
	for range scansPerReceive {
		reply, sentAt, err := s.runClaim(ctx, expiredScript, s.leaseMillis(), cursor, min(limit-len(leases), claimChunk))
		if err != nil {
			s.again(&s.expired)
			return leases, err
		}
		var entries []any
		if len(reply) == 2 {
			cursor, _ = reply[0].(string)
			entries, _ = reply[1].([]any)
		}
		if cursor == "" {
			return leases, errors.New("redis: XAUTOCLAIM answered without a cursor")
		}
		claimed, err := s.leases(entries, sentAt)
		leases = append(leases, claimed...)
		s.mu.Lock()
		s.cursor = cursor
		s.mu.Unlock()
		if err != nil {
			return leases, err
		}
		if cursor == firstID { // once round
			if prune {
				tidying, cancel := context.WithTimeout(ctx, answerTime)
				_, _ = await(tidying, func() (any, error) { s.pruneConsumers(tidying); return nil, nil })
				cancel()
			}
			return leases, nil
		}
		if len(leases) >= limit || ctx.Err() != nil {
			break
		}
	}
	s.again(&s.expired)
	return leases, nil //nolint:nilerr // where the context has ended, what was leased by then is what counts
}

// again makes a search due at once.
func (s *Source) again(p *search) {
	s.mu.Lock()
	p.next = time.Time{}
	s.mu.Unlock()
}

func (s *Source) runClaim(ctx context.Context, script *redis.Script, args ...any) (reply []any, sentAt time.Time, err error) {
	ctx, cancel := detached(ctx, 0)
	defer cancel()
	args = append([]any{s.group, s.consumer}, args...)
	type answer struct {
		reply  []any
		sentAt time.Time
	}
	a, err := await(ctx, func() (a answer, err error) {
		err = s.withGroup(ctx, func() (err error) {
			a.sentAt = time.Now()
			a.reply, err = script.Run(ctx, s.client, []string{s.stream}, args...).Slice()
			return err
		})
		return a, err
	})
	return a.reply, a.sentAt, err
}

func (s *Source) leaseMillis() int64 { return s.lease.Milliseconds() }

// leases reads what a claiming script returned: id, fields and delivery count of each entry.
func (s *Source) leases(entries []any, sentAt time.Time) ([]*lease.Lease, error) {
	leases := make([]*lease.Lease, 0, len(entries))
	for _, e := range entries {
		entry, _ := e.([]any)
		if len(entry) != 3 {
			return leases, fmt.Errorf("redis: a claimed entry has %d parts, want 3", len(entry))
		}
		id, _ := entry[0].(string)
		fields, _ := entry[1].([]any)
		deliveries, _ := entry[2].(int64)
		if id == "" || len(fields)%2 != 0 {
			return leases, errors.New("redis: a claimed entry does not have the form of one")
		}
		values := make(map[string]any, len(fields)/2)
		for i := 0; i < len(fields); i += 2 {
			name, _ := fields[i].(string)
			values[name] = fields[i+1]
		}
		leases = append(leases, s.newLease(id, values, deliveries, sentAt))
	}
	return leases, nil
}

// newLease makes a lease of an entry. The payload is the field "data", or the only field, whatever its name.
func (s *Source) newLease(id string, values map[string]any, deliveries int64, sentAt time.Time) *lease.Lease {
	l := &lease.Lease{
		Message: lease.Message{ID: id, EnqueuedAt: enqueuedAt(id), Deliveries: deliveries},
		Receipt: strconv.FormatInt(deliveries, 10),
	}
	payload, found := values[dataField]
	if !found && len(values) == 1 {
		for _, payload = range values {
			found = true
		}
	}
	switch body, isText := payload.(string); {
	case found && isText:
		l.Body = []byte(body)
	default:
		l.Unreadable = fmt.Errorf("entry %s has the fields %s, and none of them is %q: %w",
			id, fieldNames(values), dataField, lease.ErrUnreadable)
	}
	if l.Unreadable != nil || len(values) > 1 {
		l.Properties = make(map[string]string, len(values))
		for name, value := range values {
			if text, isText := value.(string); isText && (l.Unreadable != nil || name != dataField) {
				l.Properties[name] = text
			}
		}
	}
	l.Granted(sentAt, s.lease)
	return l
}

const dataField = "data"

// enqueuedAt reads the time that Redis puts at the beginning of an entry's id. Producers may choose ids of their own, so
// it can be anything.
func enqueuedAt(id string) time.Time {
	ms, _, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || n < 1e9 || n > 1e14 { // ids such as 1-0, 2-0 are no times
		return time.Time{}
	}
	return time.UnixMilli(n)
}
