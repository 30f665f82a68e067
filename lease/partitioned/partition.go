package partitioned

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// mostRead is the most events to read at a time: what a link can be given credit for.
const mostRead = 5000

// partition is one partition as this source reads it. Two goroutines work on it: read reads, keep writes checkpoints and sees that the partition
// is still ours.
type partition struct {
	*Source
	id     string
	hungry chan struct{} // capacity 1: there may be room for more events
	due    chan struct{} // capacity 1: there is something to write
	store  chan struct{} // capacity 1: held by whoever reads or writes the checkpoint

	// The source's mutex guards the rest.
	window window
	// received is the sequence number of the last event that was read.
	received int64
	// base is the checkpoint as far as it has moved in the store, and version the store's version of it.
	base    Checkpoint
	version string
	// loaded says that base is known, and claimed that the checkpoint is ours to write.
	loaded, claimed bool
	// ownedAt is when it was last certain that the partition is ours.
	ownedAt time.Time
	// writtenAt is when a checkpoint was last sent.
	writtenAt time.Time
	// settledAt is when the first event was settled that no checkpoint has passed, and that one could; zero where there is none.
	settledAt time.Time
	// anew says that the log was made anew, so that the checkpoint is of another one.
	anew bool
	// stopReading ends the reading that is under way.
	stopReading context.CancelCauseFunc
	// readErr and storeErr are why the partition is not read, or its checkpoint not written; nil while all is well.
	readErr, storeErr error
}

func newPartition(s *Source, id string) *partition {
	return &partition{
		Source: s, id: id,
		hungry: make(chan struct{}, 1), due: make(chan struct{}, 1), store: make(chan struct{}, 1),
	}
}

// errRestart means that a partition is to be opened again, from where the checkpoint is.
var errRestart = errors.New("the partition is opened again")

// read reads the partition until ctx ends, over and over from where it was left.
func (p *partition) read(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		began := time.Now()
		err := p.readOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastDelay {
			retry = backoff{} // it went well for a while
		}
		if errors.Is(err, errRestart) {
			continue
		}
		p.mu.Lock()
		if p.readErr == nil {
			p.wakeAll()
		}
		p.readErr = fmt.Errorf("partition %s of %s: %w", p.id, p.cfg.Name, err)
		p.mu.Unlock()
		if !pause(ctx, retry.next(err)) {
			return
		}
	}
}

// readOnce opens the partition and reads it until something fails.
func (p *partition) readOnce(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p.mu.Lock()
	p.stopReading = stop
	p.mu.Unlock()

	start, err := p.begin(ctx)
	if err != nil {
		return reason(ctx, err)
	}
	reader, err := p.cfg.Log.Open(ctx, p.id, start, p.cfg.Level)
	if err != nil {
		return p.readFailed(ctx, err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		_ = reader.Close(closing) // it is left behind either way
	}()
	for {
		most, err := p.awaitRoom(ctx)
		if err != nil {
			return reason(ctx, err)
		}
		recovering := p.expectRecovery()
		events, err := reader.Read(ctx, most)
		if recovering != nil {
			recovering.Stop()
		}
		if err != nil {
			return p.readFailed(ctx, err)
		}
		if err := p.claim(ctx); err != nil {
			return reason(ctx, err)
		}
		p.add(events)
	}
}

// recovered is after how long a read that waits has not failed.
const recovered = 3 * time.Second

// expectRecovery forgets why the partition could not be read once the next read has waited for a while; nil where it could. The caller stops it.
func (p *partition) expectRecovery() *time.Timer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr == nil {
		return nil
	}
	return time.AfterFunc(recovered, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.readErr = nil
	})
}

// reason is why reading was stopped from outside, if it was, or else err.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		return cause
	}
	return err
}

func (p *partition) readFailed(ctx context.Context, err error) error {
	err = reason(ctx, err)
	if errors.Is(err, ErrOwned) {
		p.mu.Lock()
		p.lose()
		p.mu.Unlock()
	}
	return err
}

// begin says where to read from: after what was read last, or, if that is not known or not good any more, after the checkpoint.
func (p *partition) begin(ctx context.Context) (Start, error) {
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p.mu.Lock()
	failed, before := p.readErr != nil, p.received
	p.mu.Unlock()
	if failed {
		// A log that was made anew shows itself by this first of all.
		if err := p.survey(asking); err != nil {
			return Start{}, err
		}
	}
	ends, err := p.cfg.Log.Ends(asking, p.id)
	if err != nil {
		return Start{}, err
	}
	p.mu.Lock()
	if p.claimed && ends.Last < before {
		p.lose()
		p.anew = true
	}
	claimed, anew, received, created := p.claimed, p.anew, p.received, p.created
	p.mu.Unlock()
	if claimed {
		return Start{After: received}, nil
	}
	if err := p.lockStore(asking); err != nil {
		return Start{}, err
	}
	defer p.unlockStore()
	stored, err := p.load(asking, ends, anew, created)
	if err != nil {
		return Start{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.base, p.version, p.loaded, p.anew = stored.Checkpoint, stored.Version, true, false
	p.received = stored.Sequence
	if stored.Offset == NoOffset && !p.cfg.Start.At.IsZero() {
		return Start{At: p.cfg.Start.At}, nil
	}
	return Start{After: stored.Sequence}, nil
}

// load reads the checkpoint, or makes the one to begin with: where there is none, or where it is of another log. That one is written at once: had we
// begun at the latest event and crashed, it would be another one the next time.
func (p *partition) load(ctx context.Context, ends Ends, anew bool, created time.Time) (Stored, error) {
	stored, err := p.cfg.Checkpoints.Load(ctx, p.id)
	if err != nil {
		return Stored{}, err
	}
	first := Checkpoint{Sequence: ends.First - 1, Offset: NoOffset, Owner: p.cfg.Owner}
	switch {
	case stored.Version == "":
		if p.cfg.Start.Latest && !anew && ends.Last >= ends.First {
			first.Sequence, first.Offset = ends.Last, ends.LastOffset
		}
	case anew, created.After(stored.WrittenAt.Add(clockSkew)):
		p.notice(fmt.Errorf("partition %s of %s was made anew since its checkpoint at %d was written; it is read from its beginning: %w",
			p.id, p.cfg.Name, stored.Sequence, lease.ErrReset))
	case stored.Sequence > max(ends.Last, ends.First-1):
		p.notice(fmt.Errorf("partition %s of %s ends at %d, before its checkpoint at %d: it was made anew, or the checkpoint was changed; it is read "+
			"from its beginning: %w", p.id, p.cfg.Name, ends.Last, stored.Sequence, lease.ErrReset))
	default:
		if missing := ends.First - 1 - stored.Sequence; missing > 0 {
			p.notice(fmt.Errorf("%d events of partition %s of %s expired before they were dispatched, from %d on; let the log keep events for longer, or "+
				"dispatch faster: %w", missing, p.id, p.cfg.Name, stored.Sequence+1, lease.ErrReset))
		}
		return stored, nil
	}
	version, err := p.cfg.Checkpoints.Store(ctx, p.id, first, stored.Version)
	if errors.Is(err, ErrChanged) {
		return Stored{}, errRestart // somebody was faster
	}
	return Stored{Checkpoint: first, Version: version}, err
}

// clockSkew is by how much the clocks of the log and of the checkpoints may differ, with what the latter's is rounded by.
const clockSkew = 5 * time.Second

// notice has something told once. It takes the mutex.
func (p *partition) notice(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.notices) < len(p.order)+10 {
		p.notices = append(p.notices, err)
	}
}

// restart has the partition opened again, from the checkpoint, or from the beginning of what is another log by now. All its leases are lost. The
// caller holds the mutex.
func (p *partition) restart(anew bool) {
	p.lose()
	p.anew = p.anew || anew
	if p.stopReading != nil {
		p.stopReading(errRestart)
	}
}

// lose takes note that the partition is not ours any more. The caller holds the mutex.
func (p *partition) lose() {
	for _, e := range p.window.clear() {
		p.confirmed = append(p.confirmed, lease.Confirmation{ID: e.id, Undone: true})
	}
	p.loaded, p.claimed, p.settledAt, p.storeErr = false, false, time.Time{}, nil
	signal(p.confirming)
	p.wakeAll()
}

// awaitRoom waits until events may be read, and returns how many.
func (p *partition) awaitRoom(ctx context.Context) (int, error) {
	for {
		p.mu.Lock()
		n := p.room()
		p.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-p.hungry:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// leastShare is how many events a partition may read where that is more than its share of what was asked for: most of the events can be in one.
const leastShare = 16

// room is how many events to read: a share of those that were asked for. The caller holds the mutex.
func (p *partition) room() int {
	if p.window.heldBack() >= p.cfg.MaxHeldBack {
		return 0
	}
	share := max((p.appetite+len(p.order)-1)/len(p.order), min(p.appetite, leastShare))
	return min(share-p.window.ready(), mostRead)
}

// slab is how many entries are made at a time. As long as one of them is in the window, the others' memory is kept.
const slab = 64

// add takes on events that were read.
func (p *partition) add(events []Event) {
	made := make([]*entry, 0, len(events))
	var entries []entry
	for i := range events {
		if len(entries) == 0 {
			entries = make([]entry, min(slab, len(events)-i))
		}
		e, event := &entries[0], &events[i]
		entries = entries[1:]
		e.partition, e.sequence, e.offset, e.id = p, event.Sequence, event.Offset, MessageID(p.id, event.Sequence, event.EnqueuedAt)
		if event.EnqueuedAt.Before(p.cfg.Start.At) {
			e.status = settled
		} else {
			e.lease = &lease.Lease{Message: lease.Message{
				ID: e.id, Body: event.Body, EnqueuedAt: event.EnqueuedAt, Properties: event.Properties, Unreadable: event.Unreadable,
			}}
		}
		made = append(made, e)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readErr = nil
	if !p.claimed {
		return // it was lost meanwhile
	}
	for _, e := range made {
		if e.sequence <= p.received {
			continue // it was read before
		}
		p.received = e.sequence
		p.window.add(e)
		if e.status == settled {
			p.noteSettled()
		}
	}
	if p.window.ready() > 0 {
		p.wakeAll()
	}
}

// MessageID names an event of a log for ever: the sequence numbers of a log that was made anew begin again, hence the time.
func MessageID(partition string, sequence int64, enqueuedAt time.Time) string {
	b := make([]byte, 0, len(partition)+40)
	b = append(b, partition...)
	b = append(b, '/')
	b = strconv.AppendInt(b, sequence, 10)
	b = append(b, '/')
	b = strconv.AppendInt(b, enqueuedAt.UnixMilli(), 10)
	return string(b)
}
