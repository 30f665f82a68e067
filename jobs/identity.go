// Package jobs turns a template and a message into a Kubernetes Job, creates it so that it exists once however often it is
// tried, and follows it to its end. It knows nothing of how messages are held.
//
// The Job is the only record there is. Its name is a pure function of the source, the message and the attempt, so that
// two dispatchers which want to run the same attempt ask for the same object, and the API server lets one of them have
// it. The name is a digest, and anybody may create an object with any name: so the whole identity stands in annotations
// as well, and only a Job that carries it is taken for ours.
package jobs

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the dispatcher writes on the Jobs that it creates.
const (
	// LabelTemplate marks a Job, and its pods, as ours, and names the template it was made from.
	LabelTemplate = "lighterman.dev/template"
	// LabelSettled is put on a Job once its message is settled; the value is the outcome. From then on the Job is only
	// history.
	LabelSettled = "lighterman.dev/settled"

	// AnnotationSource is the identity of the source that the message came from.
	AnnotationSource = "lighterman.dev/source-identity"
	// AnnotationMessageID is the message's id in its source.
	AnnotationMessageID = "lighterman.dev/message-id"
	// AnnotationMessageIDs are the ids of all messages of a pack, in order, with a space between them.
	AnnotationMessageIDs = "lighterman.dev/message-ids"
	// AnnotationPayload is PayloadInSecret where the Job's pods wait for a Secret with the payload, of the Job's name and owned by it.
	AnnotationPayload = "lighterman.dev/payload"
	// AnnotationAttempt is the number of the attempt, from 1.
	AnnotationAttempt = "lighterman.dev/attempt"
	// AnnotationTemplate is the kind and name of the template, as in "CronJob/resize".
	AnnotationTemplate = "lighterman.dev/template"
	// AnnotationEnqueuedAt is when the message came into its source, in RFC 3339.
	AnnotationEnqueuedAt = "lighterman.dev/enqueued-at"
	// AnnotationEnded says why the dispatcher itself ended the Job, when it did: a reason, or "reason: message".
	AnnotationEnded = "lighterman.dev/ended"
	// AnnotationFence is the leader lock under which the Job was created, and its term: namespace/name/leaseTransitions. Where the
	// fence is installed (package dispatcher/fence), the API server refuses a Job whose term is over.
	AnnotationFence = "lighterman.dev/fence"
)

// Identity is what a Job stands for: one attempt on one message, or on a pack of them.
type Identity struct {
	// Source is the identity of the source (see lease.Source).
	Source string
	// Messages are the ids of the messages in the source.
	Messages MessageSet
	// Attempt counts from 1.
	Attempt int
}

// MessageSet is the ids of one message or of several: sorted, with a space between them, so that equal sets are equal strings. An id has no white
// space in it.
type MessageSet string

// NewMessageSet makes the set of some ids.
func NewMessageSet(ids ...string) MessageSet {
	if len(ids) == 1 {
		return MessageSet(ids[0])
	}
	return MessageSet(strings.Join(slices.Compact(slices.Sorted(slices.Values(ids))), " "))
}

// All goes through the ids, in order.
func (m MessageSet) All() iter.Seq[string] { return strings.SplitSeq(string(m), " ") }

// Len is how many ids there are.
func (m MessageSet) Len() int { return strings.Count(string(m), " ") + 1 }

// maxStem keeps a Job's name within 63 characters, which the Job controller needs for the labels of its pods, and leaves
// room for the digest and any attempt.
const maxStem = 32

// Name is the Job's name: the last part of the source's identity, for people, and a digest of source and message ids with
// the attempt, for uniqueness.
func (id Identity) Name() string {
	digest := sha256.Sum256([]byte(id.Source + "\x00" + string(id.Messages)))
	sum := strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(digest[:]))[:20]
	return stem(id.Source) + "-" + sum + "-" + strconv.Itoa(id.Attempt)
}

// stem makes a readable beginning for a name of the last path segment of a source's identity. It is an RFC 1123 label by
// itself.
func stem(source string) string {
	source, _, _ = strings.Cut(source, "?")
	source = source[strings.LastIndexByte(source, '/')+1:]
	var b strings.Builder
	for _, r := range strings.ToLower(source) {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			r = '-'
		}
		if b.Len() == maxStem {
			break
		}
		b.WriteRune(r)
	}
	if s := strings.Trim(b.String(), "-"); s != "" {
		return s
	}
	return "task"
}

// Packed reports whether a Job was given a pack, be it of one message.
func Packed(job *batchv1.Job) bool { return job.Annotations[AnnotationMessageIDs] != "" }

// PackLen is how many messages a Job was given, as its annotation says: IdentityOf proves that, and takes longer.
func PackLen(job *batchv1.Job) int { return MessageSet(job.Annotations[AnnotationMessageIDs]).Len() }

// IdentityOf reads a Job's identity. It fails on a Job that is not ours or that somebody has tampered with.
func IdentityOf(job *batchv1.Job) (Identity, error) {
	attempt, err := strconv.Atoi(job.Annotations[AnnotationAttempt])
	id := Identity{
		Source:   job.Annotations[AnnotationSource],
		Messages: MessageSet(job.Annotations[AnnotationMessageID]),
		Attempt:  attempt,
	}
	if pack := job.Annotations[AnnotationMessageIDs]; pack != "" && id.Messages == "" {
		id.Messages = MessageSet(pack)
	}
	if err != nil || id.Source == "" || id.Messages == "" || attempt < 1 {
		return Identity{}, fmt.Errorf("job %s/%s does not carry the identity of a task in the annotations %s, %s and %s",
			job.Namespace, job.Name, AnnotationSource, AnnotationMessageID, AnnotationAttempt)
	}
	if name := id.Name(); name != job.Name {
		return Identity{}, fmt.Errorf("job %s/%s carries the identity of another Job, %s", job.Namespace, job.Name, name)
	}
	return id, nil
}

// Selector selects all Jobs of ours.
func Selector() string { return LabelTemplate }

// NotSelector selects the Jobs that are not ours, among which templates are.
func NotSelector() string { return "!" + LabelTemplate }

// labelValue makes a label's value of a name: an object's name can be longer than a label's value may be.
func labelValue(name string) string {
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-._")
	}
	return name
}

// Ref names a template.
type Ref struct {
	// Kind is CronJob or Job.
	Kind string
	// Namespace and Name are the object's.
	Namespace, Name string
}

func (r Ref) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// annotation is the form of AnnotationTemplate.
func (r Ref) annotation() string { return r.Kind + "/" + r.Name }

// RefOf names an object as a template.
func RefOf(kind string, obj metav1.Object) Ref {
	return Ref{Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName()}
}
