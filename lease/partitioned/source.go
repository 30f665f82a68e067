// Package partitioned leases the events of a partitioned log, such as an event hub, as if they were messages of a queue. It knows nothing of
// any SDK: a Log reads, Checkpoints keep, Poison copies aside.
//
// How a log becomes a queue with leases:
//
//	owner level     a reader with the level of our term of leadership takes a partition from every reader of a lower one
//	window          the events from the checkpoint on, in memory: handed out, given back, or settled, in any order
//	checkpoint      moves to the last event before which all are settled, in batches; it is written on the condition that nobody else has
//	lease           lasts while the partition is ours: to extend one is to see that the checkpoint is still the one that we wrote
//
// A log has no server that grants a lease for a time, so who owns a partition is decided by two parties. The log itself lets only the reader with the
// highest level read. And the checkpoint's version is the fence: before the first event is handed out, the new owner writes the checkpoint anew, and
// from then on nothing that a former owner writes is taken. That owner learns of it when it next extends a lease or moves the checkpoint, at the
// latest a quarter of a lease or a minute later, and all its leases are lost. An event on the link comes first: it proves that the log takes us for the owner, so
// that a former one, whom the log does not let read, does not claim the checkpoint back. (One that was paused between the two may, once. The leases of the
// other are lost then, and its Jobs are adopted; nothing else is.)
//
// To complete an event, or to poison it, is final only once the checkpoint has passed it. Source is a lease.Confirmer for that reason: until a
// settlement is confirmed, a crash has the event handed out again, and its Job must stay to tell that it was done. An event that takes long holds
// the checkpoint back. Others after it are handed out and settled all the same, until so many wait for it that reading on would cost more than it is
// worth; see Config.MaxHeldBack.
//
// To give an event back costs nothing but memory: it is handed out again from the window.
//
// A log that was deleted and made anew, a checkpoint beyond the end of its partition, and events that expired before they were read are noticed when
// a partition is opened, and when the backlog is read. The first two start the partition from its beginning: nothing in it can have been settled.
//
// Start reading at partition.go (how one partition is read), then checkpoint.go, receive.go and settle.go.
package partitioned

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// Config says what to lease from, and how. The fields without a default must be set.
type Config struct {
	Log         Log
	Checkpoints Checkpoints
	Poison      Poison
	// Identity is what Source.Identity returns.
	Identity string
	// Name names the log for people, as in `event hub "orders"`.
	Name string
	// Start is where to begin in a partition that has no checkpoint.
	Start StartPosition
	// LeaseDuration is how long an event is held without renewal.
	LeaseDuration time.Duration
	// Level is the owner level: that of a later owner must not be lower.
	Level int64
	// Owner names us in checkpoints. No other process may have the same.
	Owner string

	// MaxHeldBack is how many events of a partition may be settled and wait for one before them, or wait for another attempt, until no more are read. Default
	// 10,000.
	MaxHeldBack int
	// CheckpointInterval and CheckpointEvents say when a checkpoint is written: that long after an event was settled, or once so many are. Default a
	// second and 1,000.
	CheckpointInterval time.Duration
	CheckpointEvents   int
}

// StartPosition is where to begin where there is no checkpoint. The zero value is the oldest event there is.
type StartPosition struct {
	// Latest is after the newest event.
	Latest bool
	// At is with the events that were enqueued at that time or later. Those before are passed over, whatever the checkpoint says.
	At time.Time
}

const (
	defaultMaxHeldBack        = 10_000
	defaultCheckpointInterval = time.Second
	defaultCheckpointEvents   = 1000
	// surveyInterval is how often to look for new partitions, and whether the log was made anew.
	surveyInterval = 30 * time.Second
	// callTimeout bounds what is asked of the log and of the store in the background.
	callTimeout = 10 * time.Second
	// closeTime is how long it may take to end the reading of a partition.
	closeTime = 2 * time.Second
)

// Source leases the events of one log for one consumer group. It implements lease.Source and lease.Confirmer.
type Source struct {
	cfg Config

	// spawn starts a goroutine whose context ends with Close, which cancel does.
	spawn   func(work func(context.Context))
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu         sync.Mutex
	started    bool
	closed     bool
	partitions map[string]*partition
	order      []*partition // as the log lists them; only ever appended to
	turn       int          // whose turn it is to hand out first
	created    time.Time    // when the log was made
	surveyErr  error        // why the partitions are not known
	again      dueHeap      // events to hand out again
	expireAt   time.Time    // when to look for leases that have expired
	appetite   int          // how many events were asked for last
	changed    chan struct{}
	notices    []error // to be told once
	confirmed  []lease.Confirmation
	confirming chan struct{} // capacity 1: something is in confirmed
}

var (
	_ lease.Source    = (*Source)(nil)
	_ lease.Confirmer = (*Source)(nil)
)

// New makes a source. It does not connect; Check does.
func New(c Config) *Source {
	if c.MaxHeldBack == 0 {
		c.MaxHeldBack = defaultMaxHeldBack
	}
	if c.CheckpointInterval == 0 {
		c.CheckpointInterval = defaultCheckpointInterval
	}
	if c.CheckpointEvents == 0 {
		c.CheckpointEvents = defaultCheckpointEvents
	}
	s := &Source{
		cfg:        c,
		partitions: make(map[string]*partition),
		changed:    make(chan struct{}),
		confirming: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.spawn = func(work func(context.Context)) { s.workers.Go(func() { work(ctx) }) }
	return s
}

// Identity implements lease.Source.
func (s *Source) Identity() string { return s.cfg.Identity }

// Traits implements lease.Source.
func (s *Source) Traits() lease.Traits { return lease.Traits{Waits: true, Exclusive: true} }

// Check implements lease.Source. It takes no partition from anybody.
func (s *Source) Check(ctx context.Context) error {
	if _, err := s.cfg.Log.Describe(ctx); err != nil {
		return err
	}
	if err := s.cfg.Checkpoints.Check(ctx); err != nil {
		return err
	}
	return s.cfg.Poison.Check(ctx)
}

// Close implements lease.Source. It writes no checkpoint: whoever cares calls Flush before.
func (s *Source) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.workers.Wait()
	return errors.Join(s.cfg.Log.Close(), s.cfg.Checkpoints.Close(), s.cfg.Poison.Close())
}

// lost is the error of an operation on a lease that is not held any more.
func (s *Source) lost(l *lease.Lease) error {
	return fmt.Errorf("event %s of %s is no longer held by this lease: %w", l.ID, s.cfg.Name, lease.ErrLost)
}

// wakeAll has everybody who waits for a change look again. The caller holds the mutex.
func (s *Source) wakeAll() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for a while; it returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// backoff is a delay that doubles with each failure in a row.
type backoff struct{ failures int }

const (
	firstDelay = 200 * time.Millisecond
	lastDelay  = 15 * time.Second
)

// next returns the delay after one more failure, and no less than the server asked for.
func (b *backoff) next(err error) time.Duration {
	d := min(firstDelay<<min(b.failures, 10), lastDelay)
	b.failures++
	return max(d, lease.RetryAfter(err))
}
