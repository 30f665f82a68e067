package leasetest

import (
	"context"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// T is what a check needs of a test. It is not *testing.T, so that the suite itself can be tested: a check must fail
// against a source that breaks the promise.
type T interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Queue is one queue of its own, empty at first, as a test sees it from all sides.
type Queue struct {
	// Source makes a source on the queue with leases of this duration; several of them are like several processes.
	// The test closes them. Where sources are exclusive, each takes over from those before.
	Source func(t T, leaseDuration time.Duration) lease.Source
	// Send puts messages into the queue as a producer would.
	Send func(t T, bodies ...string)
	// Poisoned returns the bodies in the poison queue.
	Poisoned func(t T) []string

	// BrokenPoison makes a source on the same queue that cannot write to its poison queue.
	BrokenPoison func(t T, leaseDuration time.Duration) lease.Source
	// SendUnreadable puts a message into the queue that the source cannot hand out.
	SendUnreadable func(t T)
	// Restart stops the server and starts it again.
	Restart func(t T)
}

// Harness is a kind of source, ready to be checked.
type Harness struct {
	// Lease is the shortest lease duration that serves for tests.
	Lease time.Duration
	// NewQueue makes an empty queue. The checks run in parallel, each on a queue of its own.
	NewQueue func(t T) Queue
	// NewRestartable makes an empty queue on a server of its own, with Restart.
	NewRestartable func(t T) Queue
	// Missing makes a source on a queue that does not exist.
	Missing func(t T) lease.Source
	// WrongCredentials makes a source whose credentials are refused, and tells the secret that no error may contain.
	WrongCredentials func(t T) (source lease.Source, secret string)
	// Binary says that a body may be any bytes, and not only what XML can carry.
	Binary bool
	// MaxBody is the longest body that a message can have. Zero: no limit that matters.
	MaxBody int
	// ReceiptsChange says that Extend changes what proves a lease, so that an extension whose answer gets lost loses the
	// lease.
	ReceiptsChange bool
	// NotApplicable gives, by name of a check, the reason why it makes no sense for this kind of source.
	NotApplicable map[string]string
}

// Check is one promise of lease.Source, with the test that it is kept.
type Check struct {
	Name string
	Run  func(t T, h Harness)
}

// Checks are all checks, in the order in which the documentation of lease.Source makes the promises.
func Checks() []Check {
	return []Check{
		{"IdentityIsStable", checkIdentity},
		{"MissingQueue", checkMissingQueue},
		{"WrongCredentials", checkWrongCredentials},
		{"EmptyQueue", checkEmptyQueue},
		{"BatchSizeNeverExceeded", checkBatchSize},
		{"BodyRoundTrip", checkBodyRoundTrip},
		{"Unreadable", checkUnreadable},
		{"ExclusiveLeases", checkExclusiveLeases},
		{"Extension", checkExtension},
		{"ExtensionKeepsBody", checkExtensionKeepsBody},
		{"Completion", checkCompletion},
		{"RequeueAtOnce", checkRequeueAtOnce},
		{"RequeueWithDelay", checkRequeueWithDelay},
		{"RedeliveryAfterExpiry", checkRedelivery},
		{"StaleLeaseIsLost", checkStaleLease},
		{"SameProcessRedelivery", checkSameProcess},
		{"SpentLeaseIsLost", checkSpentLease},
		{"PartialFailure", checkPartialFailure},
		{"PoisonMove", checkPoisonMove},
		{"PoisonConfirmedFirst", checkPoisonConfirmedFirst},
		{"Backlog", checkBacklog},
		{"Cancellation", checkCancellation},
		{"ConcurrentUse", checkConcurrentUse},
		{"Takeover", checkTakeover},
		{"Confirmation", checkConfirmation},
		{"UndoneByTakeover", checkUndone},
		{"ServerRestart", checkServerRestart},
	}
}

// Run checks everything that lease.Source promises, as parallel subtests named after the checks.
func Run(t *testing.T, h Harness) {
	t.Helper()
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if reason, ok := h.NotApplicable[c.Name]; ok {
				t.Skip("does not apply: " + reason)
			}
			t.Parallel()
			c.Run(t, h)
		})
	}
}

const (
	// patience is how much longer than it should something may take before the check gives up on it. Generous: a
	// loaded machine must not fail a check.
	patience = 10 * time.Second
	// pause is the time between two looks.
	pause = 20 * time.Millisecond
)

// tick waits a moment between two looks; it ends the check when the test is over.
func tick(t T) {
	t.Helper()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatalf("the test ended: %v", t.Context().Err())
	}
}

// eventually looks until condition is nil.
func eventually(t T, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", patience, err)
		}
		tick(t)
	}
}

// receive collects n leases, however many calls that takes.
func receive(t T, s lease.Source, n int, within time.Duration) []*lease.Lease {
	t.Helper()
	var leases []*lease.Lease
	deadline := time.Now().Add(within)
	for {
		got, err := s.Receive(t.Context(), n-len(leases))
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		if leases = append(leases, got...); len(leases) > n {
			t.Fatalf("Receive handed out %d messages in all, asked for %d", len(leases), n)
		}
		if len(leases) == n {
			return leases
		}
		if time.Now().After(deadline) {
			t.Fatalf("received %d messages within %s, want %d", len(leases), within, n)
		}
		if !s.Traits().Waits {
			tick(t)
		}
	}
}

// nothing makes sure that a source has nothing to hand out for a while.
func nothing(t T, s lease.Source, during time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(during); time.Now().Before(deadline); {
		got, err := s.Receive(t.Context(), 10)
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		if len(got) > 0 {
			t.Fatalf("received message %s (delivery %d), want none", got[0].ID, got[0].Deliveries)
		}
		if !s.Traits().Waits {
			tick(t)
		}
	}
}

// gone makes sure that the queue holds nothing more, leased or not.
func gone(t T, s lease.Source) {
	t.Helper()
	backlog(t, s, 0)
}

// backlog waits until the queue holds n messages; it may need a moment to count.
func backlog(t T, s lease.Source, n int64) lease.Backlog {
	t.Helper()
	var b lease.Backlog
	eventually(t, func() error {
		var err error
		if b, err = s.Backlog(t.Context()); err != nil {
			return err
		}
		if b.Messages != n {
			return unexpected("Backlog().Messages", b.Messages, n)
		}
		return nil
	})
	return b
}
