package dispatcher

import (
	"fmt"
	"time"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// state is how far a task has come. A task moves forward only, but for a failed Job's next attempt.
type state int

const (
	received  state = iota // leased, and not looked at yet
	queued                 // waits to be launched
	packed                 // rides in a pack, whose own state says more
	launching              // its Job is being created
	running                // its Job exists and has not finished
	judging                // its Job has succeeded, and is asked which messages of the pack failed
	settling               // it is decided what becomes of the message, and that is being done
	resting                // its message is back in the source, and what we know of it stands nowhere else
	ended                  // it is no task of ours any more
)

// task is one message on its way, or a pack of them while they have one Job. The lane's mutex guards it.
type task struct {
	// messages is the message's id, or those of a pack.
	messages jobs.MessageSet
	attempt  int
	state    state
	// members are the messages of a pack, which are tasks of their own; left is how many of them have not gone their own way yet.
	members []*task
	left    int
	// pack is what the message rides in, until it is settled.
	pack *task
	// size is how many bytes the message has.
	size int
	// pool is where it waits for others to be packed with, while state is queued.
	pool *pool
	// alone says that it must not be packed with others: what the API server refused may be this message.
	alone bool
	// needsSecret says that the Job's pods wait for a Secret with the payload; provided says that it is known to be there, and starved that it is
	// known not to be: then the Job takes up no slot, or the message that it waits for might never be received.
	needsSecret, provided, starved bool
	// starvedSince is when the first message of a starved Job had come.
	starvedSince time.Time
	// namespace is where its Job is, once state is running.
	namespace string
	// lease is nil while the message is not ours: a Job that a former leader launched, or whose lease was lost. A pack has none.
	lease *lease.Lease
	// slot says that the task takes up one of the slots.
	slot bool
	// pending says that the Job has no ready pod yet, or is being created.
	pending bool
	// recordLost says that a Job of the message was deleted, so that what became of it is known here only.
	recordLost bool
	// putOff is how often the message was given back because its own Job could not be created.
	putOff int
	// failed says that the Job of this attempt has run and failed, so that the next launch is another attempt.
	failed bool
	// late says that the Job had finished before the message came again.
	late bool
	// started is the attempt whose pods have been seen to start.
	started int
	// startable is when the pods of the Job could start; zero while nobody waits for that.
	startable time.Time
	// pendingSince is since when the pods of the Job could have started and have not; zero where they could not, or have.
	pendingSince time.Time

	receivedAt time.Time
	launchedAt time.Time
	finishedAt time.Time

	settlement settlement // once state is settling
}

// key is that of the task in lane.tasks.
func (t *task) key() string { return string(t.messages) }

// String names the task for people.
func (t *task) String() string {
	if t.members != nil {
		return fmt.Sprintf("a pack of %d messages", len(t.members))
	}
	return "message " + t.key()
}

// outcome is what becomes of a message. The values are the words of the metrics and of the label that marks settled Jobs.
type outcome string

const (
	completed outcome = "completed"
	requeued  outcome = "requeued" // after a failed attempt
	poisoned  outcome = "poisoned"
	returned  outcome = "returned" // given back without an attempt
	gone      outcome = "gone"     // settled by somebody who could not note it; only on Jobs
)

// settlement is how a task ends.
type settlement struct {
	outcome outcome
	// notBefore is when a requeued or returned message may be tried again; zero: at once.
	notBefore time.Time
	// reason says why, for poisoned and requeued messages.
	reason string
	// failure is the kind of failure that a Job had, as one of a few words; empty where no Job failed.
	failure string
	// job is the name of the Job that decided it, if one did.
	job string
	// attempts is how many Jobs failed on the message.
	attempts int
	// handOver says that the Job runs on, and that the message is given back for the next leader to find it sooner.
	handOver bool
	// failures counts the tries to settle that failed.
	failures int
}

// decide says what a finished Job means for its message, or for one of its messages.
func decide(spec *annotation.Spec, messageID string, attempt int, job string, status jobs.Status) settlement {
	if status.Phase == jobs.Succeeded {
		return settlement{outcome: completed, job: job}
	}
	s := settlement{outcome: requeued, job: job, attempts: attempt, reason: failureText(status), failure: metrics.FailureReason(status.Reason)}
	if attempt >= spec.MaxAttempts {
		s.outcome = poisoned
		s.reason = fmt.Sprintf("attempt %d of %d failed: %s", attempt, spec.MaxAttempts, s.reason)
		return s
	}
	s.notBefore = status.FinishedAt.Add(retryDelay(spec.RetryBackoff, attempt, messageID))
	return s
}

func failureText(status jobs.Status) string {
	if status.Message == "" {
		return status.Reason
	}
	return status.Reason + ": " + status.Message
}

// reasonDeleted is the reason of a failed attempt whose Job somebody deleted while it ran.
const reasonDeleted = "Deleted"
