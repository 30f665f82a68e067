// Package annotation is the contract with the user: which lighterman.dev/* annotations there are, what they may say, and
// what they mean. Table is its single truth; the parser below, the reference in docs/annotations.md and whatever else checks
// annotations are made from it.
//
// An object can name several sources. The plain keys (lighterman.dev/queue) are one set; each name before the prefix
// (thumbs.lighterman.dev/queue) makes a further one. Every set is dispatched by itself, with limits of its own, and becomes
// a Spec of its own. So that limits need not be repeated, a named set takes those keys it does not have from the plain
// ones, except the keys that say where messages come from and go to (Row.Shared tells them apart).
//
// Parse finds everything that is wrong with an object at once, since its reader is a person who would otherwise mend one
// mistake only to be told the next.
package annotation

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Prefix is the domain of all our annotations and labels.
const Prefix = "lighterman.dev"

// The kinds of object that carry annotations of ours, as they are named in their manifests.
const (
	KindCronJob = "CronJob"
	KindJob     = "Job"
)

// The values of the key source.
const (
	SourceAzureStorageQueue = "azure-storage-queue"
	SourceAzureEventHubs    = "azure-event-hubs"
	SourceRedisStreams      = "redis-streams"
)

// The keys, as they follow the prefix and a slash.
const (
	KeySource           = "source"
	KeyQueue            = "queue"
	KeyEventHub         = "event-hub"
	KeyStream           = "stream"
	KeyConsumerGroup    = "consumer-group"
	KeyConnectionSecret = "connection-secret"
	KeyAccount          = "account"
	KeyNamespace        = "namespace"
	KeyServiceAccount   = "service-account"
	KeyPoisonQueue      = "poison-queue"
	KeyPoisonEventHub   = "poison-event-hub"
	KeyStartPosition    = "start-position"

	KeyCheckpointSecret    = "checkpoint-secret"
	KeyCheckpointContainer = "checkpoint-container"

	KeyMaxInFlight     = "max-in-flight"
	KeyJobsPerSecond   = "jobs-per-second"
	KeyMaxPending      = "max-pending"
	KeyStartTimeout    = "start-timeout"
	KeyTasksPerJob     = "tasks-per-job"
	KeyBatchWait       = "batch-wait"
	KeyPayload         = "payload"
	KeyMessageEncoding = "message-encoding"
	KeyLeaseDuration   = "lease-duration"
	KeyMaxAttempts     = "max-attempts"
	KeyRetryBackoff    = "retry-backoff"
	KeyPriority        = "priority"
	KeyPaused          = "paused"
)

// Spec is what one set of annotations asks for: one source, and how its messages are dispatched. Defaults are filled in.
type Spec struct {
	// Set is the name before the prefix; empty for the plain keys.
	Set string
	// Source is one of the Source constants. It decides which of the next fields are set.
	Source        string
	Queue         string
	EventHub      string
	Stream        string
	ConsumerGroup string

	ConnectionSecret SecretKey
	// PoisonQueue is where poisoned messages go, but for those of an event hub that has a PoisonEventHub.
	PoisonQueue    string
	PoisonEventHub string

	// CheckpointSecret and CheckpointContainer are where the checkpoints of an event hub are kept, and Start is where to begin without one.
	CheckpointSecret    SecretKey
	CheckpointContainer string
	Start               StartPosition

	MaxInFlight int
	// JobsPerSecond is 0 where there is no limit, as is MaxPending.
	JobsPerSecond float64
	MaxPending    int
	// StartTimeout is 0 where it is off.
	StartTimeout time.Duration

	// TasksPerJob is how many messages one Job is given at most. Where it is more than 1, a Job that is not full waits for BatchWait.
	TasksPerJob int
	BatchWait   time.Duration
	// Payload is how a message reaches its containers: one of the words of the key payload.
	Payload string
	// Base64 says that producers encode messages so before they store them.
	Base64 bool

	LeaseDuration time.Duration
	MaxAttempts   int
	RetryBackoff  Backoff

	Priority int
	Paused   bool
}

// SecretKey names one key of a Secret in the namespace of the annotated object.
type SecretKey struct {
	Name, Key string
}

// String is the value of the annotation.
func (k SecretKey) String() string { return k.Name + "/" + k.Key }

// Backoff is the delay before a message is given another attempt: Min after the first failure, up to Max.
type Backoff struct {
	Min, Max time.Duration
}

// StartPosition is where to begin in a partition of an event hub that has no checkpoint. The zero value is its oldest event.
type StartPosition struct {
	// Latest is after the newest event.
	Latest bool
	// At is with the events that were enqueued at that time or later; zero where it is not a time.
	At time.Time
}

// Key is the full annotation key that stands for name (one of the Key constants) in this set, for messages to the user. It
// names the key where the user would write it, whether or not it is there.
func (s *Spec) Key(name string) string { return fullKey(s.Set, name) }

// EntityKey is the full key of the annotation that names the queue, hub or stream.
func (s *Spec) EntityKey() string {
	for i := range table {
		if table[i].entity && table[i].appliesToSource(s.Source) {
			return s.Key(table[i].Key)
		}
	}
	return s.Key(KeySource)
}

// Entity is the name of the queue, hub or stream.
func (s *Spec) Entity() string { return cmp.Or(s.Stream, s.EventHub, s.Queue) }

// Poison is the name of what poisoned messages are moved to.
func (s *Spec) Poison() string { return cmp.Or(s.PoisonEventHub, s.PoisonQueue) }

// IsOurs takes the key of an annotation or label apart: the set's name (empty for plain keys) and what follows the slash. ok is
// false where the key is not below our prefix.
func IsOurs(key string) (set, name string, ok bool) {
	domain, name, ok := strings.Cut(key, "/")
	if !ok {
		return "", "", false
	}
	if domain == Prefix {
		return "", name, true
	}
	set, ok = strings.CutSuffix(domain, "."+Prefix)
	if !ok {
		return "", "", false
	}
	return set, name, true
}

// Has reports whether any of the annotations is ours, so that the object is meant to be a template.
func Has(annotations map[string]string) bool {
	for key := range annotations {
		if _, _, ok := IsOurs(key); ok {
			return true
		}
	}
	return false
}

// Strip returns a copy of annotations without ours, nil where nothing is left. A Job made from a template gets what is left:
// with our keys on it, it would be a template itself.
func Strip(annotations map[string]string) map[string]string {
	var rest map[string]string
	for key, value := range annotations {
		if _, _, ok := IsOurs(key); ok {
			continue
		}
		if rest == nil {
			rest = make(map[string]string, len(annotations))
		}
		rest[key] = value
	}
	return rest
}

// Table returns the rows of the contract, in the order in which people read them.
func Table() []Row { return slices.Clone(table) }

func fullKey(set, name string) string {
	if set == "" {
		return Prefix + "/" + name
	}
	return set + "." + Prefix + "/" + name
}
