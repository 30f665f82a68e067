package lease

import (
	"context"
	"errors"
	"time"
)

// The ways in which a source can fail, for errors.Is. A source wraps its SDK's errors in these where they apply; what is
// none of them is taken as passing: worth a retry.
var (
	// ErrLost means that the hold has ended: it expired, somebody else has the message, or the message is gone.
	ErrLost = errors.New("lease lost")
	// ErrNotFound means that the queue, stream or hub does not exist.
	ErrNotFound = errors.New("source not found")
	// ErrUnauthorized means that the source refuses the credentials, or what they may do.
	ErrUnauthorized = errors.New("source refuses the credentials")
	// ErrThrottled means that the source asks for fewer requests; see RetryAfter.
	ErrThrottled = errors.New("source throttles")
	// ErrInvalid means that the configuration of the source is unusable as it stands: a connection string that does not
	// parse, a key that holds something else than a stream.
	ErrInvalid = errors.New("source configuration invalid")
	// ErrCheckpointAccount comes with another of these, or alone, where it is not the source that fails, but where its checkpoints are kept.
	ErrCheckpointAccount = errors.New("storage account for checkpoints")
	// ErrReset means that messages which the source should have are not there any more: it was made anew, or they expired. It has gone on without them.
	ErrReset = errors.New("source was reset")
	// ErrUnreadable means that a message is there, but not in a form that this source can hand out; see
	// Message.Unreadable.
	ErrUnreadable = errors.New("message unreadable")
)

// Class names the kind of failure for metrics and logs, as one of a few fixed words: lost, not_found, unauthorized,
// throttled, invalid, reset, unreadable, canceled, timeout, other.
func Class(err error) string {
	for _, c := range []struct {
		is   error
		name string
	}{
		{ErrLost, "lost"},
		{ErrNotFound, "not_found"},
		{ErrUnauthorized, "unauthorized"},
		{ErrThrottled, "throttled"},
		{ErrInvalid, "invalid"},
		{ErrReset, "reset"},
		{ErrUnreadable, "unreadable"},
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "timeout"},
	} {
		if errors.Is(err, c.is) {
			return c.name
		}
	}
	return "other"
}

// RetryAfter is how long the source asks to wait before the next request; zero where the error does not say. A source
// says so by an error with a method RetryAfter() time.Duration. Of several errors that are joined, the longest counts.
func RetryAfter(err error) time.Duration {
	switch e := err.(type) { //nolint:errorlint // it is the chain that is walked, and all of it
	case interface{ RetryAfter() time.Duration }:
		return e.RetryAfter()
	case interface{ Unwrap() error }:
		return RetryAfter(e.Unwrap())
	case interface{ Unwrap() []error }:
		var longest time.Duration
		for _, one := range e.Unwrap() {
			longest = max(longest, RetryAfter(one))
		}
		return longest
	}
	return 0
}

// Traits declare what a source can do, so that no caller asks for a source's name.
type Traits struct {
	// MaxBatch is the most messages that one Receive hands out, whatever it is asked for. Zero: no limit.
	MaxBatch int
	// Waits says that Receive on an empty source waits for a message for a while (at most a second) rather than to
	// return at once, so that nobody need pause between calls.
	Waits bool
	// MaxDelay is the longest delay that Requeue keeps; a longer one is cut to it. Zero: no limit.
	MaxDelay time.Duration
	// CreatesMissing says that a queue which does not exist is made on first use, as streams are in Redis, and so
	// never reported as ErrNotFound.
	CreatesMissing bool
	// Exclusive says that one source has all messages, or a partition of them, to itself. Another one that receives takes them over, and the
	// leases of the first are lost.
	Exclusive bool
}

// Return is one message to give back.
type Return struct {
	Lease *Lease
	// Delay is how long the message stays hidden. Zero: it can be received again at once.
	Delay time.Duration
}

// Poisoned is one message to move aside.
type Poisoned struct {
	Lease *Lease
	// Reason says in a sentence why, for the person who looks into the poison queue.
	Reason string
	// Attempts is how many Jobs failed on the message.
	Attempts int
	// Job is the name of the last Job, if any ran.
	Job string
}

// Backlog is how much is waiting in a source.
type Backlog struct {
	// Messages is all that the source holds and has not completed: visible, leased and delayed.
	Messages int64
	// Leased is how many of them are handed out or delayed. -1 where the source cannot tell.
	Leased int64
	// Unconfirmed is how many are settled, and not counted in Messages, whose settlement is not final yet; see Confirmer.
	Unconfirmed int64
	// HeldBack is how many of those wait for older messages that are not settled. HeldBackBy names the message that has others wait for longest, for
	// HeldBackFor as far as that was looked at.
	HeldBack    int64
	HeldBackBy  string
	HeldBackFor time.Duration
	// HeldBackFull says that so many wait that a part of the source is not read further.
	HeldBackFull bool
	// Problem is why a part of the source does not do its work, while others do; nil where all is well.
	Problem error
	// Notices are things that happened to the source which a person should know of. Each is told once.
	Notices []error
}

// Source is a queue, event hub or stream that messages come from. All methods are safe for concurrent use; what they need
// they were given when the source was made, the lease duration among it.
//
// The batch methods (Extend, Complete, Requeue, Poison) return nil when all went well, else one entry per argument, nil
// where that one went well. An operation on a lease that is no longer ours fails with ErrLost and changes nothing. They
// take a batch of any size and split it as the server needs. Completing, requeueing and poisoning spend the lease:
// whatever is tried with it afterwards fails with ErrLost. So does a second try after the first one's answer got lost,
// although the message was settled: to settle twice is harmless, and to be told of a loss does not undo anything.
//
// What exactly is promised is written down as tests in package leasetest.
type Source interface {
	// Identity names the source for ever, across restarts and credentials: a URL without secrets. Two sources with the
	// same identity share their messages.
	Identity() string
	Traits() Traits
	// Check verifies that the source exists and that the credentials are good for it, and does so without leasing a
	// message. It may create what CreatesMissing promises.
	Check(ctx context.Context) error
	// Receive leases at most limit messages, those that there are: it never waits for a batch to fill. Leases can come
	// together with an error, when a part of the batch failed; they are held all the same. When ctx ends, Receive
	// returns soon, with what it has leased by then, or with the context's error where that is nothing.
	Receive(ctx context.Context, limit int) ([]*Lease, error)
	Extend(ctx context.Context, leases []*Lease) []error
	Complete(ctx context.Context, leases []*Lease) []error
	Requeue(ctx context.Context, returns []Return) []error
	// Poison copies each message to the poison queue, creating that if it is missing, and removes the original only
	// after the copy was confirmed.
	Poison(ctx context.Context, poisoned []Poisoned) []error
	// Backlog counts what is waiting. The numbers may be estimates, but Messages is never 0 while there is a message.
	Backlog(ctx context.Context) (Backlog, error)
	// Close frees connections. Leases stay as they are, to expire.
	Close() error
}

// Confirmer is implemented by a Source whose Complete and Poison are not final when they return: until they are confirmed, a crash, or another source
// that takes the messages over, has them handed out again. What tells that a message was worked on must be kept until then.
type Confirmer interface {
	// Confirmed waits until settlements have become final, or have been undone, and returns those. Each is returned once.
	Confirmed(ctx context.Context) ([]Confirmation, error)
	// Flush makes final at once what can be. What it could not is as if it had not been called.
	Flush(ctx context.Context) error
	// Final reports whether the message with this id is known to have been settled for good, by whomever: it is never handed out again.
	Final(id string) bool
}

// Confirmation is what became of one settlement.
type Confirmation struct {
	// ID is the message's.
	ID string
	// Undone says that the settlement did not become final: the message is handed out again, to us or to another.
	Undone bool
}
