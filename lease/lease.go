// Package lease knows how a message is held: what a source hands out, for how long the hold is trusted, how it is
// renewed, and what a source must be able to do. It knows nothing of Kubernetes.
//
// The life of a lease:
//
//	Receive ──▶ Lease ──▶ held by a Keeper, which calls Extend until the lease is released
//	                        │
//	                        ├─▶ Complete   the message is done and leaves the source
//	                        ├─▶ Requeue    the message is given back, after a delay
//	                        ├─▶ Poison     the message is moved aside for a person to look at
//	                        └─▶ lost       somebody else may hold it now: nothing may be done with it
//
// A lease is trusted for less time than the server granted (see Lease.Granted): a request sent at the last moment must
// still arrive while the server agrees that the message is ours.
package lease

import (
	"sync"
	"time"
)

// Message is one message as its source handed it out. It does not change afterwards.
type Message struct {
	// ID names the message in its source, and stays the same over redeliveries.
	ID string
	// Body is the payload, byte for byte as it was stored.
	Body []byte
	// EnqueuedAt is when the source took the message in, by the source's clock. Zero where the source does not tell.
	EnqueuedAt time.Time
	// Deliveries counts how often the message was handed out, this time included. It says nothing about attempts:
	// a crash of a dispatcher redelivers without anything having run.
	Deliveries int64
	// Properties are what the producer attached beside the body; nil where the source or the message has none.
	Properties map[string]string
	// Unreadable is set, and Body is nil, where the message is there but not in a form that this source can hand out.
	// Such a message is leased like any other, so that it can be poisoned.
	Unreadable error
}

// Lease is the time-limited, exclusive hold on one message. A source makes it; the fields are the source's to write.
//
// At most one operation (Extend, Complete, Requeue, Poison) may be under way for a lease at any time, since an operation
// can change the receipt. The Keeper sees to that.
type Lease struct {
	Message
	// Receipt is what the source needs to prove the hold, such as a pop receipt. Opaque outside the source; only
	// the operation that is under way reads or writes it.
	Receipt string

	mu       sync.Mutex
	deadline time.Time
	renewAt  time.Time
}

// Granted records that the server granted the hold for d, by a request that was sent at sentAt. The deadline counts from
// when the request was sent, not from when its answer arrived, and keeps an eighth of d in hand.
func (l *Lease) Granted(sentAt time.Time, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = sentAt.Add(d - d/8)
	l.renewAt = sentAt.Add(d / 3)
}

// Deadline is until when the lease is trusted. Past it, nothing may be launched or settled with it.
func (l *Lease) Deadline() time.Time {
	_, deadline := l.schedule()
	return deadline
}

// Valid reports whether the lease is trusted now.
func (l *Lease) Valid() bool { return time.Now().Before(l.Deadline()) }

// forfeit ends the trust at once: the source said that the hold is over.
func (l *Lease) forfeit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = time.Time{}
}

// schedule says when the lease is due for renewal and until when it is trusted.
func (l *Lease) schedule() (renewAt, deadline time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// The monotonic clock stands still while a machine is suspended. The two are never read in the very same moment. Where there is no deadline, both
	// differences are the least Duration there is.
	now := time.Now()
	if wall := l.deadline.Round(0).Sub(now.Round(0)); wall+time.Second < l.deadline.Sub(now) {
		return l.renewAt, now.Add(wall)
	}
	return l.renewAt, l.deadline
}
