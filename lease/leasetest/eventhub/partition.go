package eventhub

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// record is a stored event: the message as it goes to receivers, annotations included.
type record struct {
	data   []byte
	offset int64
	at     int64 // enqueued, in milliseconds
}

// partition is a log of events, and who reads it.
//
// Its lock is held for moments only, and while it is held no lock of a connection is taken: those come first.
type partition struct {
	hub *hub
	id  string

	maxEvents, maxBytes int

	mu sync.Mutex
	// records[head:] are the events with the sequence numbers from first on.
	records []record
	head    int
	first   int64
	bytes   int   // of records[head:]
	offset  int64 // of the next event
	last    record
	gone    bool // the hub was deleted

	receivers []*link
	// waiting are receivers that have credit and have seen every event. Whoever appends wakes them.
	waiting []*link
}

func newPartition(h *hub, id int, o *Options) *partition {
	return &partition{hub: h, id: strconv.Itoa(id), maxEvents: o.MaxEvents, maxBytes: o.MaxBytes, last: record{offset: -1}}
}

// next is the sequence number that the next event gets. The caller holds the lock.
func (p *partition) next() int64 { return p.first + int64(len(p.records)-p.head) }

// append stores events, and wakes the receivers that wait for them.
func (p *partition) append(messages []message) {
	now := time.Now().UnixMilli()
	total := 0
	for i := range messages {
		total += messages[i].size()
	}
	// One piece of memory for all: it is freed with the last of them.
	buf := make([]byte, 0, total)

	p.mu.Lock()
	now = max(now, p.last.at) // time in a partition does not go backwards
	for i := range messages {
		at := len(buf)
		buf = messages[i].encode(buf, p.next(), p.offset, now)
		r := record{data: buf[at:len(buf):len(buf)], offset: p.offset, at: now}
		p.records = append(p.records, r)
		p.bytes += len(r.data)
		p.offset += int64(len(r.data))
		p.last = record{offset: r.offset, at: r.at}
	}
	for len(p.records)-p.head > p.maxEvents || (p.bytes > p.maxBytes && len(p.records)-p.head > 1) {
		p.drop()
	}
	p.compact()
	p.wake()
	p.mu.Unlock()
}

// drop removes the oldest event.
func (p *partition) drop() {
	p.bytes -= len(p.records[p.head].data)
	p.records[p.head] = record{}
	p.head++
	p.first++
}

// compact gives back the room of removed events, once it is half of all.
func (p *partition) compact() {
	if p.head > 64 && p.head*2 > len(p.records) {
		n := copy(p.records, p.records[p.head:])
		clear(p.records[n:])
		p.records, p.head = p.records[:n], 0
	}
}

// wake lets the receivers that wait look again. The caller holds the lock.
func (p *partition) wake() {
	for i, l := range p.waiting {
		l.waiting = false
		l.conn.ready(l)
		p.waiting[i] = nil
	}
	p.waiting = p.waiting[:0]
}

// read appends up to n events from the cursor on, or has the receiver wait if there are none. The cursor must not be ahead of
// what was dropped: read moves it on.
func (p *partition) read(l *link, n, maxBytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.revoked {
		return
	}
	l.cursor = max(l.cursor, p.first)
	size := 0
	for l.cursor < p.next() && n > 0 && size < maxBytes {
		r := &p.records[p.head+int(l.cursor-p.first)]
		l.batch = append(l.batch, r.data)
		size += len(r.data)
		l.cursor++
		n--
	}
	if len(l.batch) == 0 && !l.waiting {
		l.waiting = true
		p.waiting = append(p.waiting, l)
	}
}

// truncate drops what is before a sequence number.
func (p *partition) truncate(before int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.first < before && p.head < len(p.records) {
		p.drop()
	}
	p.compact()
}

// snapshot returns the stored messages.
func (p *partition) snapshot() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([][]byte, 0, len(p.records)-p.head)
	for _, r := range p.records[p.head:] {
		out = append(out, r.data)
	}
	return out
}

// PartitionProperties are what there is to know about a partition.
type PartitionProperties struct {
	// First and Last are sequence numbers. In an empty partition, First is Last + 1.
	First, Last int64
	// LastOffset is that of the last event that was stored, even if it is gone; -1 if there never was one.
	LastOffset   string
	LastEnqueued time.Time
	Empty        bool
}

func (p *partition) properties() PartitionProperties {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PartitionProperties{
		First: p.first, Last: p.next() - 1, LastOffset: strconv.FormatInt(p.last.offset, 10),
		LastEnqueued: time.UnixMilli(p.last.at).UTC(), Empty: p.head == len(p.records),
	}
}

// seek turns a position into a cursor. The caller holds the lock.
func (p *partition) seek(pos position, strict bool) (int64, *fault) {
	records := p.records[p.head:]
	// find returns the sequence number of the first event whose key is at (if inclusive) or after the wanted one.
	find := func(key func(record) int64) int64 {
		i, found := slices.BinarySearchFunc(records, pos.value, func(r record, v int64) int { return cmp.Compare(key(r), v) })
		if found && !pos.inclusive {
			for i < len(records) && key(records[i]) == pos.value {
				i++
			}
		}
		return p.first + int64(i)
	}
	beyond := func(last int64) *fault {
		if strict && pos.value > last {
			return &fault{condOutOfRange, "there is no event " + strconv.FormatInt(pos.value, 10) + " yet: the last one is " + strconv.FormatInt(last, 10)}
		}
		return nil
	}
	switch pos.kind {
	case fromLatest:
		return p.next(), nil
	case fromOffset:
		return find(func(r record) int64 { return r.offset }), beyond(p.last.offset)
	case fromTime:
		return find(func(r record) int64 { return r.at }), nil
	case fromSequence:
		if pos.inclusive {
			return pos.value, beyond(p.next() - 1)
		}
		return pos.value + 1, beyond(p.next() - 1)
	}
	return p.first, nil
}
