package eventhub

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// faults are what the broker was told to do wrong. The zero value does nothing wrong.
type faults struct {
	nullRefusals atomic.Bool
	hang         atomic.Bool
	refuseClaims atomic.Bool
	slow         atomic.Int64 // a duration
	busyUntil    atomic.Pointer[time.Time]
	rejectSends  atomic.Pointer[string]

	mu       sync.Mutex
	refusals map[entity]string
}

func (f *faults) busy() *fault {
	if until := f.busyUntil.Load(); until != nil && time.Now().Before(*until) {
		return &fault{condBusy, "the broker was told to be busy"}
	}
	return nil
}

func (f *faults) refusal(e entity) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r, condition := range f.refusals {
		if r.matches(e.hub, e.group, e.partition) {
			return &fault{condition, "the broker was told to refuse receivers"}
		}
	}
	return nil
}

// matches compares with what is named; an empty name is any.
func (e entity) matches(hub, group, partition string) bool {
	is := func(want, got string) bool { return want == "" || strings.EqualFold(want, got) }
	return is(e.hub, hub) && is(e.group, group) && is(e.partition, partition)
}

// receivers returns those that match.
func (b *Broker) receivers(e entity) []*link {
	b.mu.Lock()
	hubs := make([]*hub, 0, len(b.hubs))
	for _, h := range b.hubs {
		hubs = append(hubs, h)
	}
	b.mu.Unlock()
	var links []*link
	for _, h := range hubs {
		for _, p := range h.all("") {
			p.mu.Lock()
			for _, l := range p.receivers {
				if e.matches(h.name, l.group, p.id) {
					links = append(links, l)
				}
			}
			p.mu.Unlock()
		}
	}
	return links
}

// Receivers tells how many receivers are attached. An empty hub, group or partition is any.
func (b *Broker) Receivers(hub, group, partition string) int {
	return len(b.receivers(entity{hub, group, partition}))
}

// Detach detaches receivers with a condition, such as amqp:link:detach-forced, and returns how many. An empty hub, group or
// partition is any.
func (b *Broker) Detach(hub, group, partition, condition string) int {
	n := 0
	for _, l := range b.receivers(entity{hub, group, partition}) {
		if l.revoke(&fault{condition, "the broker was told to detach the receiver"}) {
			n++
		}
	}
	return n
}

// Steal detaches receivers as if others with a higher epoch had come, and returns how many.
func (b *Broker) Steal(hub, group, partition string) int {
	return b.Detach(hub, group, partition, condStolen)
}

// DetachSenders detaches the senders to a hub, or to one of its partitions, with a condition, and returns how many.
func (b *Broker) DetachSenders(hub, partition, condition string) int {
	h, err := b.hub(hub)
	if err != nil {
		return 0
	}
	return h.detachSenders(partition, &fault{condition, "the broker was told to detach the sender"})
}

func (h *hub) detachSenders(partition string, f *fault) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for l, p := range h.senders {
		if partition == "" || p == partition {
			delete(h.senders, l)
			l.conn.inbox.post(command{l, f})
			n++
		}
	}
	return n
}

// RefuseReceivers refuses whoever attaches to receive, with a condition; an empty condition ends that. An empty hub, group or
// partition is any.
func (b *Broker) RefuseReceivers(hub, group, partition, condition string) {
	f, e := &b.faults, entity{hub, group, partition}
	f.mu.Lock()
	defer f.mu.Unlock()
	if condition == "" {
		delete(f.refusals, e)
		return
	}
	if f.refusals == nil {
		f.refusals = map[entity]string{}
	}
	f.refusals[e] = condition
}

// NullAttachRefusals chooses how links are refused from now on; see Options.
func (b *Broker) NullAttachRefusals(on bool) { b.faults.nullRefusals.Store(on) }

// DropConnections closes all connections without a word, and returns how many.
func (b *Broker) DropConnections() int { return b.drop(-1) }

// DropConnection closes one connection, whichever, and tells whether there was one.
func (b *Broker) DropConnection() bool { return b.drop(1) > 0 }

func (b *Broker) drop(n int) int {
	b.mu.Lock()
	conns := b.connections()
	b.mu.Unlock()
	if n >= 0 && n < len(conns) {
		conns = conns[:n]
	}
	for _, c := range conns {
		c.abort()
	}
	return len(conns)
}

// CloseConnections closes all connections in good order, with a condition such as amqp:connection:forced, and returns how many.
func (b *Broker) CloseConnections(condition string) int {
	b.mu.Lock()
	conns := b.connections()
	b.mu.Unlock()
	for _, c := range conns {
		c.inbox.post(command{fault: &fault{condition, "the broker was told to close the connection"}})
	}
	return len(conns)
}

// Throttle answers com.microsoft:server-busy to whoever attaches, sends or asks for properties, for a time. Zero ends it.
func (b *Broker) Throttle(d time.Duration) {
	until := time.Now().Add(d)
	b.faults.busyUntil.Store(&until)
}

// Slow delays each write to a peer, be it one answer or a batch of events. Zero ends it.
func (b *Broker) Slow(d time.Duration) { b.faults.slow.Store(int64(d)) }

// HangManagement leaves requests for properties unanswered. Those stay so when it ends.
func (b *Broker) HangManagement(on bool) { b.faults.hang.Store(on) }

// RefuseClaims answers 401 to every claim. Links with an earlier claim stay.
func (b *Broker) RefuseClaims(on bool) { b.faults.refuseClaims.Store(on) }

// RejectSends rejects what is sent, with a condition. An empty condition ends that.
func (b *Broker) RejectSends(condition string) {
	if condition == "" {
		b.faults.rejectSends.Store(nil)
		return
	}
	b.faults.rejectSends.Store(&condition)
}
