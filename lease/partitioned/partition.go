package partitioned

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
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
	// received is the sequence number of the last event that was read, or of the checkpoint.
	received int64
	// waiting is how many events of the window are to be handed out again.
	waiting int
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
	// anew says that the log was made anew, so that the checkpoint is of another one; createdAt is when the log was made that was opened last.
	anew      bool
	createdAt time.Time
	// late says that the partition was added while others were read: its first events are new, too. What was there when a partition that has no checkpoint
	// was first looked at is in seen.
	late bool
	seen *Ends
	// beyondSince is since when the partition is said to end before what we know of; zero while it is not. What the log says of itself can be a while old.
	beyondSince time.Time
	// heldBy is the event that holds others back, since heldSince.
	heldBy    string
	heldSince time.Time
	// stop ends both goroutines.
	stop context.CancelFunc
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
	failed := p.readErr
	if failed == nil {
		return nil
	}
	return time.AfterFunc(recovered, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.readErr == failed { //nolint:errorlint // it is this very one
			p.readErr = nil
		}
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

// begin says where to read from: after what was read last, or, if that is not known, after the checkpoint.
func (p *partition) begin(ctx context.Context) (Start, error) {
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p.mu.Lock()
	look := p.readErr != nil || p.anew
	p.mu.Unlock()
	if look {
		// A log that was made anew shows itself by this first of all.
		if err := p.survey(asking); err != nil {
			return Start{}, err
		}
	}
	p.mu.Lock()
	claimed, received := p.claimed, p.received
	p.mu.Unlock()
	if claimed {
		return Start{After: received}, nil
	}
	if err := p.look(asking); err != nil {
		return Start{}, err
	}
	if err := p.lockStore(asking); err != nil {
		return Start{}, err
	}
	defer p.unlockStore()
	p.mu.Lock()
	anew, created := p.anew, p.created
	p.mu.Unlock()
	stored, err := p.load(asking, anew, created)
	if err != nil {
		return Start{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return Start{}, errRestart // it was found to have been made anew meanwhile
	}
	p.base, p.version, p.loaded, p.anew, p.createdAt = stored.Checkpoint, stored.Version, true, false, created
	p.received, p.beyondSince, p.seen = stored.Sequence, time.Time{}, nil
	if stored.Offset == NoOffset && !p.cfg.Start.At.IsZero() {
		return Start{At: p.cfg.Start.At}, nil
	}
	return Start{After: stored.Sequence}, nil
}

// look remembers where a partition ended when it was first looked at, where that is where to begin.
func (p *partition) look(ctx context.Context) error {
	p.mu.Lock()
	known := p.seen != nil || !p.cfg.Start.Latest || p.late
	p.mu.Unlock()
	if known {
		return nil
	}
	ends, err := p.cfg.Log.Ends(ctx, p.id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.seen = &ends
	p.mu.Unlock()
	return nil
}

// load reads the checkpoint, or makes the one to begin with: where there is none, or where it is of another log. Where there is none, it is written at
// once: had we begun at the latest event and crashed, it would be another one the next time. Whatever else there is stays until an event has proved that
// the partition is ours (see claim).
func (p *partition) load(ctx context.Context, anew bool, created time.Time) (Stored, error) {
	stored, err := p.cfg.Checkpoints.Load(ctx, p.id)
	if err != nil {
		return Stored{}, err
	}
	// Asked afterwards: the checkpoint may move while we ask, and must not seem to be beyond the end.
	ends, err := p.cfg.Log.Ends(ctx, p.id)
	if err != nil {
		return Stored{}, err
	}
	first := Stored{Checkpoint: Checkpoint{Sequence: ends.First - 1, Offset: NoOffset, Owner: p.cfg.Owner}, Version: stored.Version}
	switch {
	case stored.Version == "":
		if p.seen != nil && !anew && p.seen.Last >= p.seen.First {
			first.Sequence, first.Offset = p.seen.Last, p.seen.LastOffset
		}
		first.Version, err = p.cfg.Checkpoints.Store(ctx, p.id, first.Checkpoint, "")
		if errors.Is(err, ErrChanged) {
			err = errRestart // somebody was faster
		}
		return first, err
	case anew && p.ours(stored), created.After(stored.WrittenAt.Add(clockSkew)):
		p.notice(fmt.Errorf("partition %s of %s was made anew since its checkpoint at %d was written; it is read from its beginning: %w",
			p.id, p.cfg.Name, stored.Sequence, lease.ErrReset))
		return first, nil
	case stored.Sequence > max(ends.Last, ends.First-1):
		what := fmt.Sprintf("it ends at %d, before its checkpoint at %d: it was made anew, or the checkpoint was changed", ends.Last, stored.Sequence)
		if !p.certainlyBeyond() {
			return Stored{}, fmt.Errorf("%s; should it stay so for %v, it is read from its beginning", what, staleness)
		}
		p.notice(fmt.Errorf("partition %s of %s is read from its beginning, since %s: %w", p.id, p.cfg.Name, what, lease.ErrReset))
		return first, nil
	}
	if missing := ends.First - 1 - stored.Sequence; missing > 0 {
		p.notice(p.expired(missing, stored.Sequence+1))
	}
	return stored, nil
}

// staleness is for how long a partition must be said to end before what we know of it until we believe it: what a log says of itself can be older than what
// was read of it.
const staleness = time.Minute

// certainlyBeyond takes note that the partition is said to end before what we know of, and reports whether it has been for long. It takes the mutex.
func (p *partition) certainlyBeyond() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beyond()
}

// beyond is certainlyBeyond. The caller holds the mutex.
func (p *partition) beyond() bool {
	if p.beyondSince.IsZero() {
		p.beyondSince = time.Now()
	}
	return time.Since(p.beyondSince) >= staleness
}

func (p *partition) expired(n, from int64) error {
	return fmt.Errorf("%d events of partition %s of %s expired before they were dispatched, from %d on; let the log keep events for longer, or dispatch faster: %w",
		n, p.id, p.cfg.Name, from, lease.ErrReset)
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
	p.again = slices.DeleteFunc(p.again, func(e *entry) bool { return e.status == dropped })
	heap.Init(&p.again)
	p.loaded, p.claimed, p.waiting, p.settledAt, p.storeErr = false, false, 0, time.Time{}, nil
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
	if p.window.heldBack()+p.waiting >= p.cfg.MaxHeldBack {
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
