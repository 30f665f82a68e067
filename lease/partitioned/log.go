package partitioned

import (
	"context"
	"errors"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

var (
	// ErrOwned means that a reader with a higher level has the partition.
	ErrOwned = errors.New("another reader has the partition")
	// ErrChanged means that a checkpoint is not the one that was read: somebody else has written it since.
	ErrChanged = errors.New("the checkpoint was changed by somebody else")
)

// Log is a partitioned log, as one consumer group sees it: an event hub. Its methods are safe for concurrent use. They report errors in terms of
// package lease.
type Log interface {
	// Describe tells which partitions there are.
	Describe(ctx context.Context) (Description, error)
	// Ends tells where a partition begins and ends now.
	Ends(ctx context.Context, partition string) (Ends, error)
	// Open makes a reader of a partition. It takes the partition from readers of a lower or equal level. That another reader has a higher one can be
	// told by Open, or later by Read, as ErrOwned.
	Open(ctx context.Context, partition string, from Start, level int64) (Reader, error)
	// Close ends all connections.
	Close() error
}

// Description is what a log says of itself.
type Description struct {
	// CreatedAt is when the log was made: one that was deleted and made anew has another.
	CreatedAt  time.Time
	Partitions []string
}

// Ends is where a partition begins and ends.
type Ends struct {
	// First is the sequence number of the oldest event that is still there, and Last that of the newest there ever was. An empty partition has a
	// Last before its First.
	First, Last int64
	// LastOffset and LastAt are the newest event's.
	LastOffset string
	LastAt     time.Time
}

// Start says where to begin reading: after a sequence number, or, where At is set, with the events that were enqueued at that time or later.
type Start struct {
	After int64
	At    time.Time
}

// Reader reads one partition in order. It is used by one goroutine.
type Reader interface {
	// Read waits for an event, and returns it with those that have arrived besides, most in all at the most.
	Read(ctx context.Context, most int) ([]Event, error)
	Close(ctx context.Context) error
}

// Event is one event as it was read.
type Event struct {
	// Sequence rises by one from event to event in a partition, but for gaps where a log compacts.
	Sequence int64
	// Offset is the position for readers that go by offset.
	Offset     string
	EnqueuedAt time.Time
	Body       []byte
	Properties map[string]string
	// Unreadable is set, and Body is nil, where the event has no body of bytes; see lease.Message.
	Unreadable error
}

// Checkpoint says that all events of a partition are settled up to one.
type Checkpoint struct {
	// Sequence and Offset are those of the last settled event. Where none is settled, Sequence is one less than the first event's, and Offset is
	// NoOffset.
	Sequence int64
	Offset   string
	// Owner is whoever wrote it; empty where that was another program.
	Owner string
}

// NoOffset is before every event.
const NoOffset = "-1"

// Stored is a checkpoint as it is in the store.
type Stored struct {
	Checkpoint
	// Version changes with each write; empty where there is no checkpoint.
	Version string
	// WrittenAt is when, by the store's clock.
	WrittenAt time.Time
}

// Checkpoints is where checkpoints are kept. Its methods are safe for concurrent use.
type Checkpoints interface {
	// Check verifies that checkpoints can be kept, and creates what is missing for that.
	Check(ctx context.Context) error
	// Load reads the checkpoint of a partition. That there is none is no error.
	Load(ctx context.Context, partition string) (Stored, error)
	// Store writes the checkpoint of a partition if it still has that version, where an empty one means that there is none, or fails with
	// ErrChanged. It returns the new version.
	Store(ctx context.Context, partition string, c Checkpoint, version string) (newVersion string, err error)
	Close() error
}

// Poison is where events are moved that are not to be tried again.
type Poison interface {
	// Check verifies what can be verified without writing.
	Check(ctx context.Context) error
	// Copy writes one copy of an event, creating what is missing for that. It returns once that is confirmed.
	Copy(ctx context.Context, c Copy) error
	Close() error
}

// Copy is an event to be copied aside.
type Copy struct {
	lease.Poisoned
	Partition string
	Sequence  int64
	Offset    string
}
