package annotation

import "slices"

// Type is the form that the value of an annotation takes.
type Type string

// The types. Every one but TypeText can be judged without knowing the key.
const (
	// TypeWord is one of a few fixed words.
	TypeWord Type = "word"
	// TypeText is what the row's pattern admits.
	TypeText Type = "text"
	// TypeInteger is a whole number in decimal.
	TypeInteger Type = "integer"
	// TypeNumber is a decimal number that is not negative.
	TypeNumber Type = "number"
	// TypeDuration is a number with a unit, or several, as in 1h30m.
	TypeDuration Type = "duration"
	// TypeDurations is a shortest and a longest duration with two dots between them.
	TypeDurations Type = "durations"
	// TypeBool is true or false.
	TypeBool Type = "bool"
	// TypePosition is one of a few fixed words, or a point in time as in RFC 3339.
	TypePosition Type = "position"
	// TypeSecretKey is the name of a Secret and one of its keys, with a slash between them.
	TypeSecretKey Type = "secret-key"
)

// Off is the value that switches a limit off, for rows that have Row.MayBeOff set.
const Off = "off"

// Row is one line of the contract: what one annotation may say.
//
// A key has several rows where sources differ in what they admit. At most one row of a key applies to any one source.
type Row struct {
	// Key is what follows the prefix and a slash.
	Key string
	// Kinds are the kinds of object that the key is for.
	Kinds []string
	// Sources are those that the key is for. Empty: all.
	Sources []string

	Type Type
	// Values are the words of a TypeWord or a TypePosition.
	Values []string
	// Pattern is a regular expression (RE2) that the whole value must match; of rows with type TypeText only, since
	// Grammar gives it for all others.
	Pattern string
	// MinLength and MaxLength bound the number of bytes of a TypeText.
	MinLength, MaxLength int
	// Min and Max are the bounds, inclusive, of numbers and durations, written as a value would be.
	Min, Max string
	// MayBeOff says that the value can also be Off.
	MayBeOff bool

	Required bool
	// Default is used where the key is absent; empty where there is none. The name of another key in angle brackets
	// stands for its value.
	Default string
	// Shared says that named sets take the plain key where they have none of their own.
	Shared bool

	// Limited says that this version does not accept the key yet. Instead says what to do meanwhile.
	Limited bool
	Instead string

	// Doc is what the annotation means, in a sentence or two.
	Doc string
	// Example is a value that Parse accepts; empty where it accepts none.
	Example string

	// tidy makes a default of what was put together for it; nil where that is one.
	tidy func(string) string
	// entity marks the key that names the queue, hub or stream itself.
	entity bool
	// set writes the value to its field of Spec. Nil where this version accepts nothing but the default, so that there is no
	// field.
	set func(*Spec, value)
}

// appliesToSource reports whether the row is for source. Where the source is not known, every row is.
func (r *Row) appliesToSource(source string) bool {
	return len(r.Sources) == 0 || source == "" || slices.Contains(r.Sources, source)
}

const (
	// Azure's rules for the names of queues: https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata
	queueName = `[a-z0-9]+(-[a-z0-9]+)*`
	// Azure's rules for the names of event hubs: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
	hubName = `[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`
	// Redis takes any bytes as a key. White space around a name is always a mistake, and so are control characters in it.
	redisName = `[^\pC\s]([^\pC]*[^\pC\s])?`
	// A DNS subdomain: what Kubernetes demands of the names of Secrets and ServiceAccounts.
	objectName = `[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*`
)

// The words of the key start-position.
const (
	earliest = "earliest"
	latest   = "latest"
)

var (
	templates     = []string{KindCronJob, KindJob}
	storageQueue  = []string{SourceAzureStorageQueue}
	eventHubs     = []string{SourceAzureEventHubs}
	redisStreams  = []string{SourceRedisStreams}
	azure         = []string{SourceAzureStorageQueue, SourceAzureEventHubs}
	insteadSecret = "use " + KeyConnectionSecret + " instead"
)

// table is the contract. It is never written to.
var table = []Row{
	{
		Key: KeySource, Kinds: templates, Type: TypeWord,
		Values:   []string{SourceAzureStorageQueue, SourceAzureEventHubs, SourceRedisStreams},
		Required: true,
		Doc:      "What kind of source the messages come from.",
		Example:  SourceAzureStorageQueue,
		set:      func(s *Spec, v value) { s.Source = v.text },
	},
	{
		Key: KeyQueue, Kinds: templates, Sources: storageQueue, Type: TypeText,
		Pattern: queueName, MinLength: 3, MaxLength: 63,
		Required: true,
		Doc:      "The name of the queue. It must exist.",
		Example:  "tasks",
		entity:   true,
		set:      func(s *Spec, v value) { s.Queue = v.text },
	},
	{
		Key: KeyEventHub, Kinds: templates, Sources: eventHubs, Type: TypeText,
		Pattern: hubName, MinLength: 1, MaxLength: 256,
		Required: true,
		Doc:      "The name of the event hub. It must exist.",
		Example:  "tasks",
		entity:   true,
		set:      func(s *Spec, v value) { s.EventHub = v.text },
	},
	{
		Key: KeyStream, Kinds: templates, Sources: redisStreams, Type: TypeText,
		Pattern: redisName, MinLength: 1, MaxLength: 512,
		Required: true,
		Doc:      "The key of the stream.",
		Example:  "tasks",
		entity:   true,
		set:      func(s *Spec, v value) { s.Stream = v.text },
	},
	{
		Key: KeyConsumerGroup, Kinds: templates, Sources: eventHubs, Type: TypeText,
		Pattern: `\$Default|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`, MinLength: 1, MaxLength: 50,
		Default: "$Default",
		Doc: "The consumer group that this template reads as. It must exist. No two templates may share one, and no other program may read as it: " +
			"whoever else does is cut off.",
		Example: "lighterman",
		set:     func(s *Spec, v value) { s.ConsumerGroup = v.text },
	},
	{
		Key: KeyConsumerGroup, Kinds: templates, Sources: redisStreams, Type: TypeText,
		Pattern: redisName, MinLength: 1, MaxLength: 512,
		Default: "lighterman",
		Doc: "The consumer group that this template reads as; it is created at the beginning of the stream if it is missing. " +
			"No two templates may share one.",
		Example: "lighterman",
		set:     func(s *Spec, v value) { s.ConsumerGroup = v.text },
	},
	{
		Key: KeyConnectionSecret, Kinds: templates, Type: TypeSecretKey,
		Required: true,
		Doc: "The Secret that holds the connection string, and the key under which it does, as `name/key`. The Secret is in the " +
			"namespace of the annotated object.",
		Example: "task-queue/connection-string",
		set:     func(s *Spec, v value) { s.ConnectionSecret = v.secretKey },
	},
	{
		Key: KeyAccount, Kinds: templates, Sources: storageQueue, Type: TypeText,
		Pattern: `[a-z0-9]+`, MinLength: 3, MaxLength: 24,
		Limited: true, Instead: insteadSecret,
		Doc: "The storage account, where an identity is used rather than a connection string.",
	},
	{
		Key: KeyNamespace, Kinds: templates, Sources: eventHubs, Type: TypeText,
		Pattern: `[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+`, MinLength: 3, MaxLength: 253,
		Limited: true, Instead: insteadSecret,
		Doc: "The fully qualified Event Hubs namespace, where an identity is used rather than a connection string.",
	},
	{
		Key: KeyServiceAccount, Kinds: templates, Sources: azure, Type: TypeText,
		Pattern: objectName, MinLength: 1, MaxLength: 253,
		Limited: true, Instead: insteadSecret,
		Doc: "The ServiceAccount, in the namespace of the annotated object, as whose identity the source is read.",
	},
	{
		Key: KeyPoisonQueue, Kinds: templates, Sources: storageQueue, Type: TypeText,
		Pattern: queueName, MinLength: 3, MaxLength: 63,
		Default: "<queue>-poison",
		Doc: "The queue that a message is moved to after its last attempt, or when it cannot be carried. It is created when first " +
			"needed.",
		Example: "tasks-poison",
		set:     func(s *Spec, v value) { s.PoisonQueue = v.text },
	},
	{
		Key: KeyPoisonQueue, Kinds: templates, Sources: redisStreams, Type: TypeText,
		Pattern: redisName, MinLength: 1, MaxLength: 519,
		Default: "<stream>:poison",
		Doc: "The stream that a message is moved to after its last attempt, or when it cannot be carried. It is created when first " +
			"needed.",
		Example: "tasks:poison",
		set:     func(s *Spec, v value) { s.PoisonQueue = v.text },
	},
	{
		Key: KeyPoisonQueue, Kinds: templates, Sources: eventHubs, Type: TypeText,
		Pattern: queueName, MinLength: 3, MaxLength: 63,
		Default: "<" + KeyEventHub + ">-poison", tidy: tidyQueueName,
		Doc: "The Azure Storage queue, in the account of `checkpoint-secret`, that an event is copied to after its last attempt, or when it cannot be " +
			"carried. It is created when first needed. Characters of the event hub's name that a queue's cannot have become hyphens in the default.",
		Example: "tasks-poison",
		set:     func(s *Spec, v value) { s.PoisonQueue = v.text },
	},
	{
		Key: KeyPoisonEventHub, Kinds: templates, Sources: eventHubs, Type: TypeText,
		Pattern: hubName, MinLength: 1, MaxLength: 256,
		Doc:     "The event hub, in the same namespace, that such events are copied to instead of a queue. It must exist.",
		Example: "tasks-poison",
		set:     func(s *Spec, v value) { s.PoisonEventHub = v.text },
	},
	{
		Key: KeyCheckpointSecret, Kinds: templates, Sources: eventHubs, Type: TypeSecretKey,
		Required: true,
		Doc: "The Secret that holds the connection string of the storage account where checkpoints are kept, and the key under which it does, as " +
			"`name/key`. The Secret is in the namespace of the annotated object.",
		Example: "checkpoints/connection-string",
		set:     func(s *Spec, v value) { s.CheckpointSecret = v.secretKey },
	},
	{
		Key: KeyCheckpointContainer, Kinds: templates, Sources: eventHubs, Type: TypeText,
		Pattern: queueName, MinLength: 3, MaxLength: 63,
		Default: "lighterman-checkpoints",
		Doc:     "The blob container where checkpoints are kept, in the form of Azure's own libraries. It is created if it is missing.",
		Example: "lighterman-checkpoints",
		set:     func(s *Spec, v value) { s.CheckpointContainer = v.text },
	},
	{
		Key: KeyStartPosition, Kinds: templates, Sources: eventHubs, Type: TypePosition, Values: []string{earliest, latest},
		Default: earliest,
		Doc: "Where to begin in a partition that has no checkpoint: with its oldest event, after its newest, or with the events that were enqueued at a time " +
			"or later. Events before such a time are passed over whatever the checkpoint says.",
		Example: "2026-11-01T00:00:00Z",
		set: func(s *Spec, v value) {
			s.Start = StartPosition{Latest: v.text == latest, At: v.time}
		},
	},
	{
		Key: KeyMaxInFlight, Kinds: templates, Type: TypeInteger, Min: "1", Max: "1000000",
		Default: "100", Shared: true,
		Doc:     "How many Jobs of this source may run at once, however many messages each is given.",
		Example: "250",
		set:     func(s *Spec, v value) { s.MaxInFlight = v.integer },
	},
	{
		Key: KeyJobsPerSecond, Kinds: templates, Type: TypeNumber, Min: "0.001", Max: "100000", MayBeOff: true,
		Default: Off, Shared: true,
		Doc:     "How many Jobs are launched in a second at most; `0.5` is one every two seconds.",
		Example: "20",
		set:     func(s *Spec, v value) { s.JobsPerSecond = v.number },
	},
	{
		Key: KeyMaxPending, Kinds: templates, Type: TypeInteger, Min: "1", Max: "1000000", MayBeOff: true,
		Default: Off, Shared: true,
		Doc: "No further Job is launched while this many have no ready pod. It keeps a cluster autoscaler from being asked for " +
			"more than it can give.",
		Example: "50",
		set:     func(s *Spec, v value) { s.MaxPending = v.integer },
	},
	{
		Key: KeyStartTimeout, Kinds: templates, Type: TypeDuration, Min: "1s", Max: "168h", MayBeOff: true,
		Default: Off, Shared: true,
		Doc: "A Job whose pods have not started by then (no such image, nowhere to run, a missing ConfigMap) counts as a failed " +
			"attempt.",
		Example: "10m",
		set:     func(s *Spec, v value) { s.StartTimeout = v.duration },
	},
	{
		Key: KeyTasksPerJob, Kinds: templates, Type: TypeInteger, Min: "1", Max: "100000",
		Default: "1", Shared: true,
		Doc: "How many messages one Job is given at most. Several come together as a *pack*, in a file with a line of JSON for each. A pack " +
			"is also limited by what one Job can carry: about 900 KiB of JSON Lines, and 128 KiB of message ids. See [payload](payload.md).",
		Example: "500",
		set:     func(s *Spec, v value) { s.TasksPerJob = v.integer },
	},
	{
		Key: KeyBatchWait, Kinds: templates, Type: TypeDuration, Min: "0s", Max: "10m",
		Default: "1s", Shared: true,
		Doc: "How long a Job that is not full waits for more messages after its first, where `tasks-per-job` is more than 1. `0s` launches " +
			"it with what has come at once.",
		Example: "5s",
		set:     func(s *Spec, v value) { s.BatchWait = v.duration },
	},
	{
		Key: KeyPayload, Kinds: templates, Type: TypeWord, Values: []string{"auto", "env", "secret", "file"},
		Default: "auto", Shared: true,
		Doc: "How a message reaches its containers. `auto`: small text is written into the Job, as the value of `KEDA_TASK_DATA`; larger text " +
			"comes to the same variable from a Secret; what no variable can carry comes as a file. `env`: always written into the Job, in " +
			"base64 where it must be, with a Secret for nothing but large properties. `secret`: as `auto`, but text never stands in the Job. `file`: always a file. See [payload](payload.md).",
		Example: "file",
		set:     func(s *Spec, v value) { s.Payload = v.text },
	},
	{
		Key: KeyMessageEncoding, Kinds: templates, Type: TypeWord, Values: []string{"text", "base64"},
		Default: "text", Shared: true,
		Doc: "What producers do to a message before they store it. `text`: nothing, and containers are given its bytes as they are stored. " +
			"`base64`, which is what Azure Functions expects and writes: it is decoded first, and a message that is not base64 goes to the poison queue.",
		Example: "base64",
		set:     func(s *Spec, v value) { s.Base64 = v.text == "base64" },
	},
	{
		Key: KeyLeaseDuration, Kinds: templates, Type: TypeDuration, Min: "1s", Max: "168h",
		Default: "2m", Shared: true,
		Doc: "For how long a message is held at a time. The hold is renewed until the message is settled, however long its Job " +
			"runs; this is only how long a message stays hidden after a dispatcher has died. Less than `30s` leaves little time " +
			"for a source that answers slowly.",
		Example: "2m",
		set:     func(s *Spec, v value) { s.LeaseDuration = v.duration },
	},
	{
		Key: KeyMaxAttempts, Kinds: templates, Type: TypeInteger, Min: "1", Max: "1000",
		Default: "5", Shared: true,
		Doc:     "How many Jobs may fail on a message before it is moved to the poison queue.",
		Example: "3",
		set:     func(s *Spec, v value) { s.MaxAttempts = v.integer },
	},
	{
		Key: KeyRetryBackoff, Kinds: templates, Type: TypeDurations, Min: "0s", Max: "168h",
		Default: "10s..10m", Shared: true,
		Doc: "The delay before the second attempt, which doubles with each further one, and the longest it may become. Each delay " +
			"is cut by up to a fifth, so that messages which failed together do not come back together.",
		Example: "30s..1h",
		set:     func(s *Spec, v value) { s.RetryBackoff = v.backoff },
	},
	{
		Key: KeyPriority, Kinds: templates, Type: TypeInteger, Min: "-1000", Max: "1000",
		Default: "0", Shared: true,
		Doc:     "Who goes first when Jobs cannot be launched as fast as messages come: the higher number.",
		Example: "10",
		set:     func(s *Spec, v value) { s.Priority = v.integer },
	},
	{
		Key: KeyPaused, Kinds: templates, Type: TypeBool,
		Default: "false", Shared: true,
		Doc:     "`true` stops launching. Jobs that run are still followed to their end, and their messages settled.",
		Example: "true",
		set:     func(s *Spec, v value) { s.Paused = v.bool },
	},
}
