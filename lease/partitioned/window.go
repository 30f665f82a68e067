package partitioned

import (
	"cmp"
	"slices"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// status is how far an event has come.
type status uint8

const (
	fresh   status = iota // read, and never handed out
	leased                // handed out
	waiting               // to be handed out again, now or later
	settled               // completed, or copied aside
	dropped               // not in the window any more
)

// entry is one event of a window.
type entry struct {
	partition *partition
	sequence  int64
	offset    string
	id        string
	// lease is the one that the event is held by, or was last; nil once it is settled, with its body.
	lease *lease.Lease
	// at is until when the lease lasts, by the promise that it was handed out with, or, while the event waits, when it is to be handed out again.
	at     time.Time
	status status
	// copied says that there is a copy where poisoned events go.
	copied bool
}

// window is the events of a partition from the checkpoint on, in order. Events are settled in any order; the checkpoint can move over those at the
// head that are settled without a gap.
type window struct {
	entries []*entry
	// handed is how many of the entries, from the head, have been handed out at least once.
	handed int
	// head is how many at the head are settled without a gap, and done how many are settled in all.
	head, done int
}

// add appends an event. Its sequence number must be higher than those before.
func (w *window) add(e *entry) {
	w.entries = append(w.entries, e)
	if e.status == settled {
		w.done++
		w.advance()
	}
}

// ready is how many events have never been handed out.
func (w *window) ready() int { return len(w.entries) - w.handed }

// next returns the first event that was never handed out, if there is one.
func (w *window) next() *entry {
	for w.handed < len(w.entries) {
		e := w.entries[w.handed]
		w.handed++
		if e.status == fresh {
			return e
		}
	}
	return nil
}

// find returns the event with that sequence number, if it is there.
func (w *window) find(sequence int64) *entry {
	i, ok := slices.BinarySearchFunc(w.entries, sequence, func(e *entry, n int64) int { return cmp.Compare(e.sequence, n) })
	if !ok {
		return nil
	}
	return w.entries[i]
}

// settle takes note that an event is done with.
func (w *window) settle(e *entry) {
	e.status, e.lease = settled, nil
	w.done++
	w.advance()
}

func (w *window) advance() {
	for w.head < len(w.entries) && w.entries[w.head].status == settled {
		w.head++
	}
	w.handed = max(w.handed, w.head) // what was passed over is never handed out
}

// last is the event that the checkpoint can move to; nil where it cannot move.
func (w *window) last() *entry {
	if w.head == 0 {
		return nil
	}
	return w.entries[w.head-1]
}

// heldBack is how many settled events wait for one before them.
func (w *window) heldBack() int { return w.done - w.head }

// oldest is the event that holds the checkpoint back; nil where none does.
func (w *window) oldest() *entry {
	if w.heldBack() == 0 {
		return nil
	}
	return w.entries[w.head]
}

// pass takes out the settled events up to a sequence number: the checkpoint has passed them.
func (w *window) pass(sequence int64) []*entry {
	n := 0
	for n < w.head && w.entries[n].sequence <= sequence {
		w.entries[n].status = dropped
		n++
	}
	passed := w.entries[:n:n]
	w.entries = w.entries[n:]
	w.handed = max(w.handed-n, 0)
	w.head -= n
	w.done -= n
	return passed
}

// clear drops everything, and returns what was settled and had not been passed.
func (w *window) clear() (undone []*entry) {
	for _, e := range w.entries {
		if e.status == settled {
			undone = append(undone, e)
		}
		e.status, e.lease = dropped, nil
	}
	*w = window{}
	return undone
}

// dueHeap orders events by when they are to be handed out again; for container/heap. Those that were dropped meanwhile are passed over.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(*entry)) }

func (h *dueHeap) Pop() any {
	old := *h
	last := len(old) - 1
	e := old[last]
	old[last] = nil
	*h = old[:last]
	return e
}
