package dispatcher

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

// reporter tells people of what they must mend, in one Event on the object and one line in the log, and of its being mended. It
// repeats itself only after a while, and takes nothing for mended that may be back in a moment: neither a problem that lasts nor one that comes
// and goes is a stream.
type reporter struct {
	events record.EventRecorder
	log    *slog.Logger

	mu   sync.Mutex
	told map[types.UID]map[about]*told
}

// about is what a problem is about. An object has one problem of each at a time.
type about string

const (
	aboutSource   about = "source"
	aboutRejected about = "rejection"
	aboutCreation about = "creation"
	aboutPayload  about = "payload"
	aboutForeign  about = "foreign"
	aboutMessage  about = "message"
	aboutStart    about = "start"
	aboutPoison   about = "poison"
	aboutLease    about = "lease"
	aboutMark     about = "mark"
	aboutAttempt  about = "attempt"
	aboutStalled  about = "stalled"
	aboutVerdict  about = "verdict"
	aboutSecret   about = "secret"
	aboutPart     about = "part"
	aboutReset    about = "reset"
	aboutHeldBack about = "held back"
)

// told is what was said last.
type told struct {
	key  string
	at   time.Time
	more int // how often it was not said since
	// over tells of its being mended, if it has not come back by then; nil while it lasts.
	over *time.Timer
}

// problem is what a person should know.
type problem struct {
	about about
	// key tells a new problem from one that was told already. Texts that name a message or a Job differ each time, and their
	// problems do not.
	key string
	// reason is the Event's, in CamelCase.
	reason string
	// text says what is wrong, where, and what to do.
	text string
}

// again is after how long a problem that lasts is told again.
const again = 10 * time.Minute

// steadyAfter is how long a problem must not have come back to count as mended.
const steadyAfter = time.Minute

func newReporter(events record.EventRecorder, log *slog.Logger) *reporter {
	return &reporter{events: events, log: log, told: make(map[types.UID]map[about]*told)}
}

func (r *reporter) problem(object *corev1.ObjectReference, p problem) {
	more, ok := r.due(object.UID, p)
	if !ok {
		return
	}
	if more > 0 {
		p.text = fmt.Sprintf("%s (and %d more of this kind since it was last told)", p.text, more)
	}
	r.log.Warn(p.text, "reason", p.reason, "kind", object.Kind, "namespace", object.Namespace, "name", object.Name)
	r.events.Event(object, corev1.EventTypeWarning, p.reason, p.text)
}

// due reports whether the problem should be told now, and how often it was not.
func (r *reporter) due(uid types.UID, p problem) (more int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[uid] == nil {
		r.told[uid] = make(map[about]*told)
	}
	last := r.told[uid][p.about]
	next := &told{key: p.key, at: time.Now()}
	r.told[uid][p.about] = next // a new one, so that a timer which has gone off already finds out
	if last == nil {
		return 0, true
	}
	last.stop()
	if last.key != p.key {
		return 0, true
	}
	if time.Since(last.at) < again {
		next.at, next.more = last.at, last.more+1
		return 0, false
	}
	return last.more, true
}

// resolved says that a problem which may have been told is no more. It is told once that has lasted.
func (r *reporter) resolved(object *corev1.ObjectReference, what about) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.told[object.UID][what]
	if last == nil || last.over != nil {
		return
	}
	last.over = time.AfterFunc(steadyAfter, func() { r.mended(object, what, last) })
}

// mended tells that a problem is no more, unless it has come back.
func (r *reporter) mended(object *corev1.ObjectReference, what about, last *told) {
	r.mu.Lock()
	current := r.told[object.UID][what] == last
	if current {
		delete(r.told[object.UID], what)
	}
	r.mu.Unlock()
	if !current {
		return
	}
	text := "what was told before is mended, and dispatch goes on"
	r.log.Info(text, "kind", object.Kind, "namespace", object.Namespace, "name", object.Name)
	r.events.Event(object, corev1.EventTypeNormal, "Resumed", text)
}

// forget drops what was told of an object that is gone.
func (r *reporter) forget(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.told[uid] {
		t.stop()
	}
	delete(r.told, uid)
}

// stop ends the telling: whoever leads from now on has the word.
func (r *reporter) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, object := range r.told {
		for _, t := range object {
			t.stop()
		}
	}
	clear(r.told)
}

func (t *told) stop() {
	if t.over != nil {
		t.over.Stop()
	}
}

// poisoned tells of a message that was moved aside.
func (r *reporter) poisoned(object *corev1.ObjectReference, destination, messageID string, s settlement) {
	r.problem(object, problem{
		about:  aboutFailure(aboutPoison, s.failure),
		reason: "Poisoned",
		text:   fmt.Sprintf("message %s was moved to %q: %s", messageID, destination, s.reason),
	})
}

// aboutFailure is about one kind of failure: messages fail for several reasons at a time, and none of them must hide another, or have it told
// again and again.
func aboutFailure(what about, failure string) about { return what + about(" "+failure) }

func attemptProblem(spec *annotation.Spec, t *task, s settlement) problem {
	return problem{
		about: aboutFailure(aboutAttempt, s.failure), reason: "AttemptFailed",
		text: fmt.Sprintf("Job %s, attempt %d of %d on %v, failed: %s; the next attempt comes in %v at the earliest",
			s.job, s.attempts, spec.MaxAttempts, t, s.reason, max(time.Until(s.notBefore), 0).Round(time.Second)),
	}
}

// partProblem tells of the messages of a pack that failed although its Job has succeeded.
func partProblem(spec *annotation.Spec, s settlement, failed, of int) problem {
	return problem{
		about: aboutFailure(aboutAttempt, s.failure), reason: "AttemptFailed",
		text: fmt.Sprintf("Job %s, attempt %d of %d on a pack, has succeeded, but %d of %d messages failed: %s",
			s.job, s.attempts, spec.MaxAttempts, failed, of, s.reason),
	}
}

func secretProblem(job string, err error) problem {
	return problem{
		about: aboutSecret, key: jobs.Class(err), reason: "PayloadSecretFailing",
		text: fmt.Sprintf("Job %s waits for the Secret with its payload, which cannot be created at the moment and is tried again: %v", job, err),
	}
}

// aboutTemplate is about what a set of annotations asks for.
func aboutTemplate(set string) about { return about("template" + set) }

func templateProblem(set string, err error) problem {
	return problem{about: aboutTemplate(set), key: templateKey(err), reason: "Misconfigured", text: err.Error()}
}

func uncheckedProblem(set string, err error) problem {
	return problem{
		about: aboutTemplate(set), key: "unchecked", reason: "CheckFailing",
		text: fmt.Sprintf("the template dispatches as before, but cannot be checked at the moment, which is tried again: %v", err),
	}
}

// templateKey tells one problem of a template from another. Only what its author wrote makes a text that stays the same for as long as the
// problem does: those of networks name ports, and those of quotas count.
func templateKey(err error) string {
	if one := (&annotation.Error{}); errors.As(err, &one) || errors.Is(err, jobs.ErrTemplate) || apierrors.IsInvalid(err) {
		return err.Error()
	}
	if source := (&sourceError{}); errors.As(err, &source) {
		return source.key
	}
	return apiKey(err)
}

// apiKey tells one refusal of the API server from another. With the right to create Jobs, a right on Secrets may still be missing.
func apiKey(err error) string {
	if status := apierrors.APIStatus(nil); errors.As(err, &status) && status.Status().Details != nil {
		return jobs.Class(err) + " " + status.Status().Details.Kind
	}
	return jobs.Class(err)
}

func payloadProblem(messageID string, err error) problem {
	return problem{
		about: aboutPayload, reason: "PayloadRefused",
		text: fmt.Sprintf("message %s goes to the poison queue without an attempt: %v", messageID, err),
	}
}

func foreignProblem(err error) problem {
	return problem{about: aboutForeign, reason: "NameTaken", text: err.Error() + "; its message waits in the queue until then"}
}

func messageProblem(t *task, err error) problem {
	return problem{
		about: aboutMessage, reason: "MessageRefused",
		text: fmt.Sprintf("%v: its Job cannot be created, while others can; it stays in the queue with no attempt used, and is tried less and less often, until what refuses it is changed or it is removed: %v", t, err),
	}
}

func rejectedProblem(err error) problem {
	return problem{
		about: aboutRejected, key: apiKey(err), reason: "JobRejected",
		text: fmt.Sprintf("%v; messages wait in the queue, and dispatch goes on once a Job is accepted", err),
	}
}

func creationProblem(err error) problem {
	return problem{
		about: aboutCreation, reason: "JobCreationFailing",
		text: fmt.Sprintf("Jobs cannot be created at the moment, and nothing is received until they can: %v", err),
	}
}

func leaseProblem(messageID string, err error) problem {
	return problem{
		about: aboutLease, key: lease.Class(err), reason: "LeaseLost",
		text: fmt.Sprintf("the lease of message %s ended early; its Job, if it runs, runs on, and the message is settled when it is delivered again: %v", messageID, err),
	}
}

func markProblem(err error) problem {
	return problem{
		about: aboutMark, key: jobs.Class(err), reason: "MarkingFailing",
		text: fmt.Sprintf("Jobs whose messages are settled cannot be marked so, and are not cleaned up until they are; check the right to patch Jobs: %v", err),
	}
}

// sourceProblem says what to do about a source that fails.
func sourceProblem(spec *annotation.Spec, err error) problem {
	// Failures that pass come as one kind after another, such as refused connections after time-outs, and are one problem.
	p := problem{about: aboutSource, key: "unreachable " + spec.Entity(), reason: "SourceUnavailable"}
	entity := &annotation.Error{Key: spec.EntityKey(), Value: spec.Entity()}
	secret := &annotation.Error{Key: spec.Key(annotation.KeyConnectionSecret), Value: spec.ConnectionSecret.String()}
	rights := "rights to receive, update, delete and add messages"
	switch {
	case errors.Is(err, lease.ErrCheckpointAccount):
		secret = &annotation.Error{Key: spec.Key(annotation.KeyCheckpointSecret), Value: spec.CheckpointSecret.String()}
		rights = "rights to read, write and create blobs, containers and queues"
		p.key += " checkpoints"
	case spec.Source == annotation.SourceAzureEventHubs:
		rights = "the right to listen, and with a poison event hub to send"
	}
	switch {
	case errors.Is(err, lease.ErrNotFound):
		entity.Problem, entity.Remedy = "does not exist: "+err.Error(), "create it, or correct the annotation"
		p.key, p.text = lease.Class(err)+" "+spec.Entity(), entity.Error()
	case errors.Is(err, lease.ErrUnauthorized):
		secret.Problem, secret.Remedy = "does not open the source: "+err.Error(), "put a valid connection string there, with "+rights
		p.key, p.text = lease.Class(err)+" "+spec.Entity()+" "+secret.Value, secret.Error()
	case errors.Is(err, lease.ErrInvalid):
		secret.Problem, secret.Remedy = "and "+spec.EntityKey()+" do not make a usable source: "+err.Error(), "correct what the error names"
		p.key, p.text = lease.Class(err)+" "+spec.Entity()+" "+secret.Value, secret.Error()
	default:
		p.text = fmt.Sprintf("%s=%q cannot be reached and is tried again: %v", spec.EntityKey(), spec.Entity(), err)
	}
	return p
}

// partitionProblem says what to do about a part of a source that fails while others do not.
func partitionProblem(spec *annotation.Spec, err error) problem {
	p := sourceProblem(spec, err)
	p.about, p.reason = aboutPart, "PartitionUnavailable"
	return p
}

// noticeProblem tells of something that has happened to a source, and is over.
func noticeProblem(err error) problem {
	return problem{about: aboutReset, key: lease.Class(err), reason: "SourceReset", text: err.Error()}
}

func heldBackProblem(b lease.Backlog) problem {
	text := fmt.Sprintf("%d messages are settled and wait for older ones that are not, such as %s, for %v by now: no checkpoint can pass those, and the Jobs "+
		"of all stay until then; look at the Job of that one, and give Jobs an activeDeadlineSeconds so that one that hangs fails",
		b.HeldBack, b.HeldBackBy, b.HeldBackFor.Round(time.Second))
	if b.HeldBackFull {
		text += "; so many wait that a partition is not read further"
	}
	return problem{about: aboutHeldBack, key: b.HeldBackBy, reason: "CheckpointHeldBack", text: text}
}
