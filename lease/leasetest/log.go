package leasetest

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// Log is a partitioned log in memory, with the store of its checkpoints and a place for poisoned events: what package partitioned needs of an event hub. A
// reader takes a partition from readers of a lower or equal level, and checkpoints are written on condition, as on real servers.
type Log struct {
	name string

	mu          sync.Mutex
	createdAt   time.Time
	partitions  []*logPartition
	turn        int
	checkpoints map[string]partitioned.Stored
	versions    int
	writes      int
	poisoned    []partitioned.Copy
	fail        func(op, partition string) error
	changed     chan struct{} // closed and replaced whenever a reader may have something to do
}

type logPartition struct {
	id     string
	first  int64 // the sequence number of events[0]
	events []partitioned.Event
	reader *logReader // of the highest level
}

// NewLog makes an empty log.
func NewLog(name string, partitions int) *Log {
	l := &Log{
		name: name, createdAt: time.Now(), checkpoints: make(map[string]partitioned.Stored), changed: make(chan struct{}),
	}
	l.AddPartitions(partitions)
	return l
}

// Config is that of a source on the log.
func (l *Log) Config(leaseDuration time.Duration, level int64) partitioned.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.versions++ // so that no two owners have one name
	return partitioned.Config{
		Log: logHandle{l}, Checkpoints: logCheckpoints{l}, Poison: logPoison{l},
		Identity: "memory-log:///" + l.name, Name: strconv.Quote(l.name), LeaseDuration: leaseDuration, Level: level,
		Owner: fmt.Sprintf("owner-%d", l.versions),
	}
}

// AddPartitions makes further partitions.
func (l *Log) AddPartitions(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		l.partitions = append(l.partitions, &logPartition{id: strconv.Itoa(len(l.partitions))})
	}
}

// Recreate deletes the log and makes it anew, empty. Readers are cut off.
func (l *Log) Recreate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.createdAt = time.Now()
	for i, p := range l.partitions {
		p.detach(fmt.Errorf("the log is gone: %w", lease.ErrNotFound))
		l.partitions[i] = &logPartition{id: p.id}
	}
	l.wake()
}

// Detach cuts off the readers of all partitions with an error.
func (l *Log) Detach(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.partitions {
		p.detach(err)
	}
	l.wake()
}

func (p *logPartition) detach(err error) {
	if p.reader != nil {
		p.reader.err = err
		p.reader = nil
	}
}

// FailWith has every request ask fail first: describe, ends, open, read, load, store, copy.
func (l *Log) FailWith(fail func(op, partition string) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = fail
}

// Send adds events with these bodies, to the partitions in turn.
func (l *Log) Send(bodies ...string) {
	for _, body := range bodies {
		l.mu.Lock()
		p := l.partitions[l.turn%len(l.partitions)]
		l.turn++
		l.mu.Unlock()
		l.SendTo(p.id, partitioned.Event{Body: []byte(body)})
	}
}

// SendTo adds events to a partition, with their Body, Properties and Unreadable; the log sets the rest. It returns the events' ids.
func (l *Log) SendTo(partition string, events ...partitioned.Event) (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.find(partition)
	for _, e := range events {
		e.Sequence = p.first + int64(len(p.events))
		e.Offset = strconv.FormatInt(100*e.Sequence, 10)
		e.EnqueuedAt = time.Now()
		p.events = append(p.events, e)
		ids = append(ids, partitioned.MessageID(partition, e.Sequence, e.EnqueuedAt))
	}
	l.wake()
	return ids
}

// Seize has a reader of the highest level take a partition, or lets go of it again.
func (l *Log) Seize(partition string, on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.find(partition)
	p.detach(partitioned.ErrOwned)
	if on {
		p.reader = &logReader{l: l, partition: partition, level: math.MaxInt64}
	}
	l.wake()
}

// Truncate removes the events of a partition before a sequence number, as those are that have expired.
func (l *Log) Truncate(partition string, before int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.find(partition)
	n := min(max(before-p.first, 0), int64(len(p.events)))
	p.first, p.events = p.first+n, p.events[n:]
}

// Poisoned returns the events that were copied aside.
func (l *Log) Poisoned() []partitioned.Copy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.poisoned)
}

// Checkpoint returns the checkpoint of a partition, and how often any has been written.
func (l *Log) Checkpoint(partition string) (c partitioned.Stored, writes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkpoints[partition], l.writes
}

// SetCheckpoint writes the checkpoint of a partition as another program would, without condition.
func (l *Log) SetCheckpoint(partition string, c partitioned.Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(partition, c)
}

func (l *Log) write(partition string, c partitioned.Checkpoint) string {
	l.versions++
	l.writes++
	version := strconv.Itoa(l.versions)
	l.checkpoints[partition] = partitioned.Stored{Checkpoint: c, Version: version, WrittenAt: time.Now()}
	return version
}

func (l *Log) find(partition string) *logPartition {
	n, err := strconv.Atoi(partition)
	if err != nil || n < 0 || n >= len(l.partitions) {
		return nil
	}
	return l.partitions[n]
}

func (l *Log) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// begin is the start of every request. It returns with the mutex held, unless it fails.
func (l *Log) begin(ctx context.Context, op, partition string) error {
	l.mu.Lock()
	fail := l.fail
	l.mu.Unlock()
	if fail != nil {
		if err := fail(op, partition); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	return nil
}

// logHandle is a Log as a partitioned.Log.
type logHandle struct{ l *Log }

func (h logHandle) Describe(ctx context.Context) (partitioned.Description, error) {
	if err := h.l.begin(ctx, "describe", ""); err != nil {
		return partitioned.Description{}, err
	}
	defer h.l.mu.Unlock()
	d := partitioned.Description{CreatedAt: h.l.createdAt}
	for _, p := range h.l.partitions {
		d.Partitions = append(d.Partitions, p.id)
	}
	return d, nil
}

func (h logHandle) Ends(ctx context.Context, partition string) (partitioned.Ends, error) {
	if err := h.l.begin(ctx, "ends", partition); err != nil {
		return partitioned.Ends{}, err
	}
	defer h.l.mu.Unlock()
	p := h.l.find(partition)
	ends := partitioned.Ends{First: p.first, Last: p.first + int64(len(p.events)) - 1, LastOffset: partitioned.NoOffset}
	if n := len(p.events); n > 0 {
		ends.LastOffset, ends.LastAt = p.events[n-1].Offset, p.events[n-1].EnqueuedAt
	}
	return ends, nil
}

func (h logHandle) Open(ctx context.Context, partition string, from partitioned.Start, level int64) (partitioned.Reader, error) {
	if err := h.l.begin(ctx, "open", partition); err != nil {
		return nil, err
	}
	defer h.l.mu.Unlock()
	p := h.l.find(partition)
	if p.reader != nil && p.reader.level > level {
		return nil, partitioned.ErrOwned
	}
	p.detach(partitioned.ErrOwned)
	p.reader = &logReader{l: h.l, partition: partition, level: level, next: from.After + 1, at: from.At}
	h.l.wake()
	return p.reader, nil
}

func (h logHandle) Close() error { return nil }

type logReader struct {
	l         *Log
	partition string
	level     int64
	next      int64
	at        time.Time
	err       error
}

func (r *logReader) Read(ctx context.Context, most int) ([]partitioned.Event, error) {
	for {
		if err := r.l.begin(ctx, "read", r.partition); err != nil {
			return nil, err
		}
		changed := r.l.changed
		events, err := r.take(most), r.err
		r.l.mu.Unlock()
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *logReader) take(most int) (events []partitioned.Event) {
	if r.err != nil {
		return nil
	}
	p := r.l.find(r.partition)
	for r.next = max(r.next, p.first); r.next < p.first+int64(len(p.events)) && len(events) < most; r.next++ {
		e := p.events[r.next-p.first]
		if e.EnqueuedAt.Before(r.at) {
			continue
		}
		e.Body, e.Properties = slices.Clone(e.Body), maps.Clone(e.Properties)
		events = append(events, e)
	}
	return events
}

func (r *logReader) Close(context.Context) error {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if p := r.l.find(r.partition); p.reader == r {
		p.reader = nil
	}
	return nil
}

// logCheckpoints is a Log as partitioned.Checkpoints.
type logCheckpoints struct{ l *Log }

func (c logCheckpoints) Check(ctx context.Context) error { return ctx.Err() }

func (c logCheckpoints) Load(ctx context.Context, partition string) (partitioned.Stored, error) {
	if err := c.l.begin(ctx, "load", partition); err != nil {
		return partitioned.Stored{}, err
	}
	defer c.l.mu.Unlock()
	return c.l.checkpoints[partition], nil
}

func (c logCheckpoints) Store(ctx context.Context, partition string, to partitioned.Checkpoint, version string) (string, error) {
	if err := c.l.begin(ctx, "store", partition); err != nil {
		return "", err
	}
	defer c.l.mu.Unlock()
	if c.l.checkpoints[partition].Version != version {
		return "", partitioned.ErrChanged
	}
	return c.l.write(partition, to), nil
}

func (c logCheckpoints) Close() error { return nil }

// logPoison is a Log as a partitioned.Poison.
type logPoison struct{ l *Log }

func (p logPoison) Check(ctx context.Context) error { return ctx.Err() }

func (p logPoison) Copy(ctx context.Context, c partitioned.Copy) error {
	if err := p.l.begin(ctx, "copy", c.Partition); err != nil {
		return err
	}
	defer p.l.mu.Unlock()
	p.l.poisoned = append(p.l.poisoned, c)
	return nil
}

func (p logPoison) Close() error { return nil }
