package leasetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// MemoryConfig says how a Memory behaves. The zero value is a queue named "memory" with leases of 30 seconds, whose
// Receive returns at once.
type MemoryConfig struct {
	Name          string
	LeaseDuration time.Duration
	// Traits, as a caller is to see them. MaxBatch and MaxDelay are kept; with Waits, Receive waits for a message
	// for a while.
	Traits lease.Traits
	// Wait is how long that is. Default half a second.
	Wait time.Duration
}

// Memory is a queue in memory, and a lease.Source of it. Handle makes further sources on the same queue, as other
// processes would have.
type Memory struct {
	queue    *memoryQueue
	duration time.Duration
	traits   lease.Traits
	wait     time.Duration
}

// PoisonedMessage is one message in the poison queue of a Memory.
type PoisonedMessage struct {
	Message  lease.Message
	Reason   string
	Attempts int
	Job      string
}

type memoryQueue struct {
	name string

	mu       sync.Mutex
	messages []*memoryMessage // in the order they were sent; those that left stay until compact
	byID     map[string]*memoryMessage
	poisoned []PoisonedMessage
	lastID   int64
	receipts int64
	changed  chan struct{} // closed and replaced whenever a message may have become visible
}

type memoryMessage struct {
	lease.Message
	visibleAt time.Time
	leased    bool   // handed out, or given back with a delay; false once it was never received or is due again
	receipt   string // the only one that is good
	gone      bool
}

// memoryWait is how long Receive waits for a message where nothing else is said.
const memoryWait = 500 * time.Millisecond

// NewMemory makes an empty queue.
func NewMemory(c MemoryConfig) *Memory {
	if c.Name == "" {
		c.Name = "memory"
	}
	if c.LeaseDuration == 0 {
		c.LeaseDuration = 30 * time.Second
	}
	if c.Wait == 0 {
		c.Wait = memoryWait
	}
	return &Memory{
		queue:    &memoryQueue{name: c.Name, byID: map[string]*memoryMessage{}, changed: make(chan struct{})},
		duration: c.LeaseDuration,
		traits:   c.Traits,
		wait:     c.Wait,
	}
}

// Handle makes another source on the same queue, with leases of its own duration.
func (m *Memory) Handle(leaseDuration time.Duration) *Memory {
	return &Memory{queue: m.queue, duration: leaseDuration, traits: m.traits, wait: m.wait}
}

// Send puts messages with these bodies into the queue and returns their ids.
func (m *Memory) Send(bodies ...string) []string {
	messages := make([]lease.Message, len(bodies))
	for i, body := range bodies {
		messages[i].Body = []byte(body)
	}
	return m.SendMessages(messages...)
}

// SendMessages puts messages into the queue, with their Body, Properties and Unreadable; the queue sets the rest.
func (m *Memory) SendMessages(messages ...lease.Message) []string {
	q := m.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	ids := make([]string, 0, len(messages))
	for _, msg := range messages {
		q.lastID++
		msg.ID = "m" + strconv.FormatInt(q.lastID, 10)
		msg.Body = bytes.Clone(msg.Body)
		msg.Properties = maps.Clone(msg.Properties)
		msg.EnqueuedAt = now
		msg.Deliveries = 0
		stored := &memoryMessage{Message: msg, visibleAt: now}
		q.messages = append(q.messages, stored)
		q.byID[msg.ID] = stored
		ids = append(ids, msg.ID)
	}
	q.wake()
	return ids
}

// Poisoned returns what is in the poison queue, oldest first.
func (m *Memory) Poisoned() []PoisonedMessage {
	m.queue.mu.Lock()
	defer m.queue.mu.Unlock()
	return append([]PoisonedMessage(nil), m.queue.poisoned...)
}

// Len is how many messages the queue holds, leased ones included.
func (m *Memory) Len() int {
	m.queue.mu.Lock()
	defer m.queue.mu.Unlock()
	return len(m.queue.byID)
}

// Identity implements lease.Source.
func (m *Memory) Identity() string { return "memory:///" + url.PathEscape(m.queue.name) }

// Traits implements lease.Source.
func (m *Memory) Traits() lease.Traits { return m.traits }

// Check implements lease.Source: there is nothing that could be wrong.
func (m *Memory) Check(ctx context.Context) error { return ctx.Err() }

// Receive implements lease.Source.
func (m *Memory) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	if m.traits.MaxBatch > 0 {
		limit = min(limit, m.traits.MaxBatch)
	}
	var giveUp <-chan time.Time
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		leases, changed, next := m.take(limit)
		if len(leases) > 0 || !m.traits.Waits || limit <= 0 {
			return leases, nil
		}
		if giveUp == nil {
			giveUp = time.After(m.wait)
		}
		var due <-chan time.Time
		if !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
		case <-giveUp:
			return nil, nil
		case <-changed:
		case <-due:
		}
	}
}

// take leases what is visible now. Where there is nothing, it says what to wait for: a change, or a time.
func (m *Memory) take(limit int) (leases []*lease.Lease, changed <-chan struct{}, next time.Time) {
	q := m.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for _, msg := range q.messages {
		if len(leases) >= limit {
			break
		}
		if msg.gone {
			continue
		}
		if now.Before(msg.visibleAt) {
			if next.IsZero() || msg.visibleAt.Before(next) {
				next = msg.visibleAt
			}
			continue
		}
		msg.Deliveries++
		msg.leased = true
		msg.visibleAt = now.Add(m.duration)
		msg.receipt = q.newReceipt()
		l := &lease.Lease{Message: msg.Message, Receipt: msg.receipt}
		l.Granted(now, m.duration)
		leases = append(leases, l)
	}
	return leases, q.changed, next
}

// Extend implements lease.Source. Like Storage Queue, it changes the receipt.
func (m *Memory) Extend(ctx context.Context, leases []*lease.Lease) []error {
	return each(ctx, leases, func(l *lease.Lease) error {
		return m.queue.with(l, func(msg *memoryMessage) {
			now := time.Now()
			msg.visibleAt = now.Add(m.duration)
			msg.receipt = m.queue.newReceipt()
			l.Receipt = msg.receipt
			l.Granted(now, m.duration)
		})
	})
}

// Complete implements lease.Source.
func (m *Memory) Complete(ctx context.Context, leases []*lease.Lease) []error {
	return each(ctx, leases, func(l *lease.Lease) error {
		return m.queue.with(l, m.queue.remove)
	})
}

// Requeue implements lease.Source.
func (m *Memory) Requeue(ctx context.Context, returns []lease.Return) []error {
	return each(ctx, returns, func(r lease.Return) error {
		delay := max(r.Delay, 0)
		if m.traits.MaxDelay > 0 {
			delay = min(delay, m.traits.MaxDelay)
		}
		return m.queue.with(r.Lease, func(msg *memoryMessage) {
			msg.visibleAt = time.Now().Add(delay)
			msg.leased = delay > 0
			msg.receipt = ""
			m.queue.wake()
		})
	})
}

// Poison implements lease.Source.
func (m *Memory) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	return each(ctx, poisoned, func(p lease.Poisoned) error {
		return m.queue.with(p.Lease, func(msg *memoryMessage) {
			m.queue.poisoned = append(m.queue.poisoned, PoisonedMessage{
				Message: msg.Message, Reason: p.Reason, Attempts: p.Attempts, Job: p.Job,
			})
			m.queue.remove(msg)
		})
	})
}

// Backlog implements lease.Source.
func (m *Memory) Backlog(ctx context.Context) (lease.Backlog, error) {
	if err := ctx.Err(); err != nil {
		return lease.Backlog{}, err
	}
	q := m.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	b := lease.Backlog{Messages: int64(len(q.byID))}
	now := time.Now()
	for _, msg := range q.byID {
		if msg.leased && now.Before(msg.visibleAt) {
			b.Leased++
		}
	}
	return b, nil
}

// Close implements lease.Source.
func (m *Memory) Close() error { return nil }

// with calls do with the message that the lease holds, under the queue's lock.
func (q *memoryQueue) with(l *lease.Lease, do func(msg *memoryMessage)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	msg := q.byID[l.ID]
	if msg == nil {
		return fmt.Errorf("message %s: gone: %w", l.ID, lease.ErrLost)
	}
	if msg.receipt == "" || msg.receipt != l.Receipt {
		return fmt.Errorf("message %s: stale receipt: %w", l.ID, lease.ErrLost)
	}
	do(msg)
	return nil
}

// remove takes a message out. The list is compacted only now and then, so that a removal costs next to nothing.
func (q *memoryQueue) remove(msg *memoryMessage) {
	msg.gone = true
	delete(q.byID, msg.ID)
	if len(q.messages) > 2*len(q.byID) {
		q.messages = slices.DeleteFunc(q.messages, func(m *memoryMessage) bool { return m.gone })
	}
}

func (q *memoryQueue) newReceipt() string {
	q.receipts++
	return "r" + strconv.FormatInt(q.receipts, 10)
}

// wake tells waiting receivers to look again.
func (q *memoryQueue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// each applies an operation to each argument; nil when all went well, as lease.Source asks for.
func each[T any](ctx context.Context, args []T, op func(T) error) []error {
	var errs []error
	for i, arg := range args {
		err := ctx.Err()
		if err == nil {
			err = op(arg)
		}
		if err != nil {
			if errs == nil {
				errs = make([]error, len(args))
			}
			errs[i] = err
		}
	}
	return errs
}
