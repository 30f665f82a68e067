package dispatcher

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

// reporter tells people of what they must mend, in one Event on the object and one line in the log, and of its being mended. It
// repeats itself only after a while: a problem that lasts is no stream.
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
	aboutStart    about = "start"
	aboutPoison   about = "poison"
	aboutLease    about = "lease"
	aboutMark     about = "mark"
)

// told is what was said last.
type told struct {
	key  string
	at   time.Time
	more int // how often it was not said since
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
	if last != nil && last.key == p.key {
		if time.Since(last.at) < again {
			last.more++
			return 0, false
		}
		more = last.more
	}
	r.told[uid][p.about] = &told{key: p.key, at: time.Now()}
	return more, true
}

// resolved says that a problem which was told is no more.
func (r *reporter) resolved(object *corev1.ObjectReference, what about) {
	r.mu.Lock()
	last := r.told[object.UID][what]
	delete(r.told[object.UID], what)
	r.mu.Unlock()
	if last == nil {
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
	delete(r.told, uid)
}

// poisoned tells of a message that was moved aside.
func (r *reporter) poisoned(object *corev1.ObjectReference, destination, messageID string, s settlement) {
	r.problem(object, problem{
		about:  aboutPoison,
		reason: "Poisoned",
		text:   fmt.Sprintf("message %s was moved to %q: %s", messageID, destination, s.reason),
	})
}

// aboutTemplate is about what a set of annotations asks for.
func aboutTemplate(set string) about { return about("template" + set) }

func templateProblem(set string, err error) problem {
	return problem{about: aboutTemplate(set), key: err.Error(), reason: "Misconfigured", text: err.Error()}
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

func rejectedProblem(err error) problem {
	return problem{
		about: aboutRejected, key: jobs.Class(err), reason: "JobRejected",
		text: fmt.Sprintf("%v; messages wait in the queue, and dispatch goes on once a Job is accepted", err),
	}
}

func creationProblem(err error) problem {
	return problem{
		about: aboutCreation, key: jobs.Class(err), reason: "JobCreationFailing",
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
	p := problem{about: aboutSource, key: lease.Class(err), reason: "SourceUnavailable"}
	entity := &annotation.Error{Key: spec.EntityKey(), Value: spec.Entity()}
	secret := &annotation.Error{Key: spec.Key(annotation.KeyConnectionSecret), Value: spec.ConnectionSecret.String()}
	switch {
	case errors.Is(err, lease.ErrNotFound):
		entity.Problem, entity.Remedy = "does not exist: "+err.Error(), "create it, or correct the annotation"
		p.text = entity.Error()
	case errors.Is(err, lease.ErrUnauthorized):
		secret.Problem, secret.Remedy = "does not open the source: "+err.Error(), "put a valid connection string there, with rights to receive, update, delete and add messages"
		p.text = secret.Error()
	case errors.Is(err, lease.ErrInvalid):
		secret.Problem, secret.Remedy = "and "+spec.EntityKey()+" do not make a usable source: "+err.Error(), "correct what the error names"
		p.text = secret.Error()
	default:
		p.text = fmt.Sprintf("%s=%q cannot be reached and is tried again: %v", spec.EntityKey(), spec.Entity(), err)
	}
	return p
}
