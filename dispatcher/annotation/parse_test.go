package annotation_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
)

// queueTemplate is the least that a template on a Storage Queue says, with changes: keys without a prefix are plain ones, and an
// empty value removes a key.
func queueTemplate(changes map[string]string) map[string]string {
	return changed(map[string]string{
		"lighterman.dev/source":            "azure-storage-queue",
		"lighterman.dev/queue":             "tasks",
		"lighterman.dev/connection-secret": "task-queue/connection-string",
	}, changes)
}

func streamTemplate(changes map[string]string) map[string]string {
	return changed(map[string]string{
		"lighterman.dev/source":            "redis-streams",
		"lighterman.dev/stream":            "jobs:new",
		"lighterman.dev/connection-secret": "redis/url",
	}, changes)
}

func hubTemplate(changes map[string]string) map[string]string {
	return changed(map[string]string{
		"lighterman.dev/source":            "azure-event-hubs",
		"lighterman.dev/event-hub":         "Orders.v1",
		"lighterman.dev/connection-secret": "hub/connection-string",
		"lighterman.dev/checkpoint-secret": "checkpoints/connection-string",
	}, changes)
}

func changed(base, changes map[string]string) map[string]string {
	for key, v := range changes {
		if !strings.Contains(key, "/") {
			key = "lighterman.dev/" + key
		}
		if v == "" {
			delete(base, key)
			continue
		}
		base[key] = v
	}
	return base
}

func queueSpec(change func(*annotation.Spec)) *annotation.Spec {
	s := &annotation.Spec{
		Source:           annotation.SourceAzureStorageQueue,
		Queue:            "tasks",
		ConnectionSecret: annotation.SecretKey{Name: "task-queue", Key: "connection-string"},
		PoisonQueue:      "tasks-poison",
		MaxInFlight:      100,
		TasksPerJob:      1,
		BatchWait:        time.Second,
		Payload:          "auto",
		LeaseDuration:    2 * time.Minute,
		MaxAttempts:      5,
		RetryBackoff:     annotation.Backoff{Min: 10 * time.Second, Max: 10 * time.Minute},
	}
	if change != nil {
		change(s)
	}
	return s
}

func streamSpec(change func(*annotation.Spec)) *annotation.Spec {
	return queueSpec(func(s *annotation.Spec) {
		s.Source, s.Queue, s.Stream, s.ConsumerGroup = annotation.SourceRedisStreams, "", "jobs:new", "lighterman"
		s.ConnectionSecret = annotation.SecretKey{Name: "redis", Key: "url"}
		s.PoisonQueue = "jobs:new:poison"
		if change != nil {
			change(s)
		}
	})
}

func hubSpec(change func(*annotation.Spec)) *annotation.Spec {
	return streamSpec(func(s *annotation.Spec) {
		s.Source, s.Stream, s.EventHub, s.ConsumerGroup = annotation.SourceAzureEventHubs, "", "Orders.v1", "$Default"
		s.ConnectionSecret = annotation.SecretKey{Name: "hub", Key: "connection-string"}
		s.CheckpointSecret = annotation.SecretKey{Name: "checkpoints", Key: "connection-string"}
		s.CheckpointContainer, s.PoisonQueue = "lighterman-checkpoints", "orders-v1-poison"
		if change != nil {
			change(s)
		}
	})
}

func TestParse(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        []*annotation.Spec
	}{
		"nothing of ours": {annotations: map[string]string{"example.com/queue": "tasks", "plain": "x"}},
		"defaults of a storage queue": {
			annotations: queueTemplate(map[string]string{"example.com/other": "kept out of it"}),
			want:        []*annotation.Spec{queueSpec(nil)},
		},
		"defaults of a stream": {
			annotations: streamTemplate(nil),
			want:        []*annotation.Spec{streamSpec(nil)},
		},
		"defaults of an event hub": {
			annotations: hubTemplate(nil),
			want:        []*annotation.Spec{hubSpec(nil)},
		},
		"an event hub": {
			annotations: hubTemplate(map[string]string{
				"consumer-group": "lighterman", "poison-event-hub": "Bad.v1", "checkpoint-container": "progress", "start-position": "2026-11-01T12:00:00+02:00",
			}),
			want: []*annotation.Spec{hubSpec(func(s *annotation.Spec) {
				s.ConsumerGroup, s.PoisonEventHub, s.PoisonQueue, s.CheckpointContainer = "lighterman", "Bad.v1", "", "progress"
				s.Start.At = time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
			})},
		},
		"an event hub from its end, with a long name": {
			annotations: hubTemplate(map[string]string{"start-position": "latest", "event-hub": "A_" + strings.Repeat("b", 80)}),
			want: []*annotation.Spec{hubSpec(func(s *annotation.Spec) {
				s.EventHub, s.PoisonQueue, s.Start.Latest = "A_"+strings.Repeat("b", 80), "a-"+strings.Repeat("b", 54)+"-poison", true
			})},
		},
		"everything said": {
			annotations: queueTemplate(map[string]string{
				"poison-queue": "bad-tasks", "max-in-flight": "7", "jobs-per-second": "0.5", "max-pending": "3",
				"start-timeout": "1m30s", "tasks-per-job": "1", "batch-wait": "0s", "payload": "secret",
				"message-encoding": "base64", "lease-duration": "90s", "max-attempts": "1", "retry-backoff": "0s..1.5h",
				"priority": "-10", "paused": "true",
			}),
			want: []*annotation.Spec{queueSpec(func(s *annotation.Spec) {
				s.PoisonQueue, s.MaxInFlight, s.JobsPerSecond, s.MaxPending = "bad-tasks", 7, 0.5, 3
				s.StartTimeout, s.LeaseDuration, s.MaxAttempts = 90*time.Second, 90*time.Second, 1
				s.RetryBackoff = annotation.Backoff{Max: 90 * time.Minute}
				s.BatchWait, s.Payload, s.Base64 = 0, "secret", true
				s.Priority, s.Paused = -10, true
			})},
		},
		"limits off": {
			annotations: queueTemplate(map[string]string{"jobs-per-second": "off", "max-pending": "off", "start-timeout": "off"}),
			want:        []*annotation.Spec{queueSpec(nil)},
		},
		"packs": {
			annotations: queueTemplate(map[string]string{"tasks-per-job": "100000", "batch-wait": "10m", "payload": "file", "max-attempts": "2"}),
			want: []*annotation.Spec{queueSpec(func(s *annotation.Spec) {
				s.TasksPerJob, s.BatchWait, s.Payload, s.MaxAttempts = 100_000, 10*time.Minute, "file", 2
			})},
		},
		"packs, the payload left to us": {
			annotations: streamTemplate(map[string]string{"tasks-per-job": "2", "payload": "auto", "message-encoding": "text"}),
			want:        []*annotation.Spec{streamSpec(func(s *annotation.Spec) { s.TasksPerJob = 2 })},
		},
		"single messages, whatever the payload": {
			annotations: queueTemplate(map[string]string{"tasks-per-job": "1", "payload": "env", "max-attempts": "1"}),
			want:        []*annotation.Spec{queueSpec(func(s *annotation.Spec) { s.Payload, s.MaxAttempts = "env", 1 })},
		},
		"a set without packs beside one with them": {
			annotations: queueTemplate(map[string]string{
				"tasks-per-job": "10", "message-encoding": "base64",
				"thumbs.lighterman.dev/source":            "azure-storage-queue",
				"thumbs.lighterman.dev/queue":             "thumbs",
				"thumbs.lighterman.dev/connection-secret": "task-queue/connection-string",
				"thumbs.lighterman.dev/tasks-per-job":     "1",
				"thumbs.lighterman.dev/payload":           "env",
				"thumbs.lighterman.dev/max-attempts":      "1",
			}),
			want: []*annotation.Spec{
				queueSpec(func(s *annotation.Spec) { s.TasksPerJob, s.Base64 = 10, true }),
				queueSpec(func(s *annotation.Spec) {
					s.Set, s.Queue, s.PoisonQueue, s.Payload, s.MaxAttempts, s.Base64 = "thumbs", "thumbs", "thumbs-poison", "env", 1, true
				}),
			},
		},
		"named sets take limits from the plain one, and nothing else": {
			annotations: queueTemplate(map[string]string{
				"max-in-flight": "10", "jobs-per-second": "5", "poison-queue": "bad-tasks",
				"thumbs.lighterman.dev/source":            "azure-storage-queue",
				"thumbs.lighterman.dev/queue":             "thumbs",
				"thumbs.lighterman.dev/connection-secret": "task-queue/connection-string",
				"thumbs.lighterman.dev/jobs-per-second":   "off",
				"a.lighterman.dev/source":                 "redis-streams",
				"a.lighterman.dev/stream":                 "jobs:new",
				"a.lighterman.dev/consumer-group":         "workers",
				"a.lighterman.dev/connection-secret":      "redis/url",
			}),
			want: []*annotation.Spec{
				queueSpec(func(s *annotation.Spec) { s.MaxInFlight, s.JobsPerSecond, s.PoisonQueue = 10, 5, "bad-tasks" }),
				streamSpec(func(s *annotation.Spec) {
					s.Set, s.ConsumerGroup, s.MaxInFlight, s.JobsPerSecond = "a", "workers", 10, 5
				}),
				queueSpec(func(s *annotation.Spec) {
					s.Set, s.Queue, s.PoisonQueue, s.MaxInFlight = "thumbs", "thumbs", "thumbs-poison", 10
				}),
			},
		},
		"plain keys that only serve named sets": {
			annotations: map[string]string{
				"lighterman.dev/paused":                   "true",
				"thumbs.lighterman.dev/source":            "azure-storage-queue",
				"thumbs.lighterman.dev/queue":             "tasks",
				"thumbs.lighterman.dev/connection-secret": "task-queue/connection-string",
			},
			want: []*annotation.Spec{queueSpec(func(s *annotation.Spec) { s.Set, s.Paused = "thumbs", true })},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, kind := range []string{annotation.KindCronJob, annotation.KindJob} {
				got, err := annotation.Parse(kind, tc.annotations)
				if err != nil {
					t.Fatalf("Parse(%s): %v", kind, err)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("Parse(%s) (-want +got):\n%s", kind, diff)
				}
			}
		})
	}
}

func TestParseMistakes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		kind        string
		annotations map[string]string
		want        []string
	}{
		"unknown key": {
			annotations: queueTemplate(map[string]string{"max-inflight": "3"}),
			want:        []string{`lighterman.dev/max-inflight="3" is not an annotation that is known; did you mean lighterman.dev/max-in-flight?`},
		},
		"unknown key in another spelling": {
			annotations: queueTemplate(map[string]string{"maxInFlight": "3"}),
			want:        []string{`lighterman.dev/maxInFlight="3" is not an annotation that is known; did you mean lighterman.dev/max-in-flight?`},
		},
		"unknown key like no other": {
			annotations: queueTemplate(map[string]string{"fence": "a/1", "thumbs.lighterman.dev/colour": "red"}),
			want: []string{
				`lighterman.dev/fence="a/1" is not an annotation that is known; remove it`,
				`thumbs.lighterman.dev/colour="red" is not an annotation that is known; remove it`,
				`thumbs.lighterman.dev/source is missing; add it, with one of the values azure-storage-queue, azure-event-hubs, redis-streams`,
			},
		},
		"no source": {
			annotations: queueTemplate(map[string]string{"source": ""}),
			want:        []string{`lighterman.dev/source is missing; add it, with one of the values azure-storage-queue, azure-event-hubs, redis-streams`},
		},
		"no source beside a named set": {
			annotations: queueTemplate(map[string]string{
				"source":                             "",
				"a.lighterman.dev/source":            "redis-streams",
				"a.lighterman.dev/stream":            "s",
				"a.lighterman.dev/connection-secret": "redis/url",
			}),
			want: []string{`lighterman.dev/source is missing; add it, with one of the values azure-storage-queue, azure-event-hubs, redis-streams`},
		},
		"unknown source": {
			annotations: queueTemplate(map[string]string{"source": "azure-storage-queues"}),
			want: []string{`lighterman.dev/source="azure-storage-queues" is none of the words azure-storage-queue, azure-event-hubs, redis-streams; ` +
				`did you mean "azure-storage-queue"?`},
		},
		"source like no other": {
			annotations: queueTemplate(map[string]string{"source": "sqs"}),
			want: []string{`lighterman.dev/source="sqs" is none of the words azure-storage-queue, azure-event-hubs, redis-streams; ` +
				`write one of them`},
		},
		"event hub without checkpoints": {
			annotations: map[string]string{
				"lighterman.dev/source": "azure-event-hubs", "lighterman.dev/event-hub": "tasks",
				"lighterman.dev/connection-secret": "hub/connection-string",
			},
			want: []string{`lighterman.dev/checkpoint-secret is missing; add it, with a value such as "checkpoints/connection-string"`},
		},
		"event hub poisoned to itself": {
			annotations: hubTemplate(map[string]string{"poison-event-hub": "Orders.v1"}),
			want: []string{`lighterman.dev/poison-event-hub="Orders.v1" names the very source that bad messages are to be moved out of; ` +
				`write another name, or leave it out`},
		},
		"two places for poison": {
			annotations: hubTemplate(map[string]string{"poison-event-hub": "bad", "poison-queue": "bad"}),
			want: []string{`lighterman.dev/poison-queue="bad" does not go with lighterman.dev/poison-event-hub: an event is copied to one place; ` +
				`remove one of the two`},
		},
		"nothing but a source": {
			annotations: map[string]string{"thumbs.lighterman.dev/source": "azure-storage-queue"},
			want: []string{
				`thumbs.lighterman.dev/connection-secret is missing; add it, with a value such as "task-queue/connection-string"`,
				`thumbs.lighterman.dev/queue is missing; add it, with a value such as "tasks"`,
			},
		},
		"key of another source": {
			annotations: queueTemplate(map[string]string{"consumer-group": "g", "stream": "tasks"}),
			want: []string{
				`lighterman.dev/consumer-group="g" does not apply to source azure-storage-queue; remove it`,
				`lighterman.dev/stream="tasks" does not apply to source azure-storage-queue; use lighterman.dev/queue instead`,
			},
		},
		"identity": {
			annotations: queueTemplate(map[string]string{"connection-secret": "", "account": "contoso", "service-account": "reader"}),
			want: []string{
				`lighterman.dev/account="contoso" is not supported by this version yet; use connection-secret instead`,
				`lighterman.dev/connection-secret is missing; add it, with a value such as "task-queue/connection-string"`,
				`lighterman.dev/service-account="reader" is not supported by this version yet; use connection-secret instead`,
			},
		},
		"all mistakes at once": {
			annotations: queueTemplate(map[string]string{"queue": "Tasks", "max-in-flight": "ten", "paused": "True", "lease-duration": "2 m"}),
			want: []string{
				`lighterman.dev/lease-duration="2 m" is not a duration such as 30s, 2m or 1h30m; write a value from 1s to 168h, such as "2m"`,
				`lighterman.dev/max-in-flight="ten" is not a whole number; write a value from 1 to 1000000, such as "250"`,
				`lighterman.dev/paused="True" is neither true nor false; write "true"`,
				`lighterman.dev/queue="Tasks" does not match [a-z0-9]+(-[a-z0-9]+)*; write "tasks"`,
			},
		},
		"a connection string where its Secret belongs": {
			annotations: queueTemplate(map[string]string{"connection-secret": "AccountName=a;AccountKey=c2VjcmV0"}),
			want: []string{`lighterman.dev/connection-secret has a value that is not shown, since it looks like a connection string: ` +
				`it is not of the form name/key, which names a Secret and a key in it; write a value such as "task-queue/connection-string"`},
		},
		"a default that does not fit": {
			annotations: queueTemplate(map[string]string{"queue": strings.Repeat("q", 57)}),
			want: []string{`lighterman.dev/poison-queue is missing, and its default "` + strings.Repeat("q", 57) + `-poison" ` +
				`must have 3 to 63 characters, and has 64; set lighterman.dev/poison-queue`},
		},
		"poison into the source": {
			annotations: streamTemplate(map[string]string{"poison-queue": "jobs:new"}),
			want: []string{`lighterman.dev/poison-queue="jobs:new" names the very source that bad messages are to be moved out of; ` +
				`write another name, or leave it out`},
		},
		"packs in the environment": {
			annotations: queueTemplate(map[string]string{"tasks-per-job": "500", "payload": "env"}),
			want: []string{`lighterman.dev/payload="env" does not go with tasks-per-job 500: several messages always come as a file, ` +
				`with a line of JSON for each; leave it out, or write "auto" or "file"`},
		},
		"packs with too few attempts": {
			annotations: queueTemplate(map[string]string{"tasks-per-job": "2", "max-attempts": "1"}),
			want: []string{`lighterman.dev/max-attempts="1" is too few for tasks-per-job 2: what failed together is tried again with fewer, ` +
				`and in the end alone, so that one bad message cannot poison its neighbours; ` +
				`write "2" or more, or set lighterman.dev/tasks-per-job to "1"`},
		},
		"packs by the plain set in a named one": {
			// The plain set itself is in order: its own payload is none of the named set's.
			annotations: map[string]string{
				"lighterman.dev/tasks-per-job": "20", "lighterman.dev/payload": "secret", "lighterman.dev/max-attempts": "1",
				"thumbs.lighterman.dev/source":            "azure-storage-queue",
				"thumbs.lighterman.dev/queue":             "thumbs",
				"thumbs.lighterman.dev/connection-secret": "task-queue/connection-string",
				"tiles.lighterman.dev/source":             "azure-storage-queue",
				"tiles.lighterman.dev/queue":              "tiles",
				"tiles.lighterman.dev/connection-secret":  "task-queue/connection-string",
				"tiles.lighterman.dev/payload":            "auto",
				"tiles.lighterman.dev/max-attempts":       "3",
			},
			want: []string{
				`thumbs.lighterman.dev/max-attempts="1" is too few for tasks-per-job 20: what failed together is tried again with fewer, ` +
					`and in the end alone, so that one bad message cannot poison its neighbours; ` +
					`write "2" or more, or set thumbs.lighterman.dev/tasks-per-job to "1"`,
				`thumbs.lighterman.dev/payload="secret" does not go with tasks-per-job 20: several messages always come as a file, ` +
					`with a line of JSON for each; leave it out, or write "auto" or "file"`,
			},
		},
		"a wrong payload is one mistake, not two": {
			annotations: queueTemplate(map[string]string{"tasks-per-job": "20", "payload": "Env", "max-attempts": "0"}),
			want: []string{
				`lighterman.dev/max-attempts="0" is out of range: from 1 to 1000; write a value from 1 to 1000, such as "3"`,
				`lighterman.dev/payload="Env" is none of the words auto, env, secret, file; write "env"`,
			},
		},
		"backoff the wrong way round": {
			annotations: queueTemplate(map[string]string{"retry-backoff": "10m..10s"}),
			want: []string{`lighterman.dev/retry-backoff="10m..10s" begins with the longer of its durations; ` +
				`write the shorter first, both from 0s to 168h, such as "30s..1h"`},
		},
		"a number beyond all numbers": {
			annotations: queueTemplate(map[string]string{"max-pending": "99999999999999999999", "jobs-per-second": "0"}),
			want: []string{
				`lighterman.dev/jobs-per-second="0" is out of range: from 0.001 to 100000; write a value from 0.001 to 100000, or "off", such as "20"`,
				`lighterman.dev/max-pending="99999999999999999999" is out of range: from 1 to 1000000; write a value from 1 to 1000000, or "off", such as "50"`,
			},
		},
		"a long value": {
			annotations: queueTemplate(map[string]string{"paused": strings.Repeat("é", 100)}),
			want:        []string{`lighterman.dev/paused="` + strings.Repeat("é", 40) + `…" is neither true nor false; write "true" or "false"`},
		},
		"set name": {
			annotations: queueTemplate(map[string]string{"a.b.lighterman.dev/paused": "true"}),
			want: []string{`a.b.lighterman.dev/paused="true" has a set name that is not a DNS label; ` +
				`write a name of small letters, digits and hyphens before .lighterman.dev, such as "thumbs.lighterman.dev/paused"`},
		},
		"kind of object": {
			kind:        "Deployment",
			annotations: map[string]string{"lighterman.dev/max-in-flight": "3"},
			want:        []string{`lighterman.dev/max-in-flight="3" does not apply to a Deployment; remove it`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind := tc.kind
			if kind == "" {
				kind = annotation.KindCronJob
			}
			specs, err := annotation.Parse(kind, tc.annotations)
			if specs != nil {
				t.Errorf("Parse returned %d Specs beside its error", len(specs))
			}
			if diff := cmp.Diff(tc.want, lines(t, err)); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

func lines(t *testing.T, err error) []string {
	t.Helper()
	var errs annotation.Errors
	if !errors.As(err, &errs) {
		t.Fatalf("Parse returned %v, which is no annotation.Errors", err)
	}
	lines := make([]string, len(errs))
	for i, one := range errs {
		lines[i] = one.Error()
	}
	return lines
}

func TestErrorsUnwrap(t *testing.T) {
	t.Parallel()
	_, err := annotation.Parse(annotation.KindJob, queueTemplate(map[string]string{"paused": "maybe"}))
	var one *annotation.Error
	if !errors.As(err, &one) || one.Key != "lighterman.dev/paused" || one.Value != "maybe" {
		t.Errorf("errors.As found %+v in %v", one, err)
	}
	if got := err.Error(); got != one.Error() {
		t.Errorf("a single mistake reads %q, want %q", got, one.Error())
	}
}

func TestIsOurs(t *testing.T) {
	t.Parallel()
	for key, want := range map[string][2]string{
		"lighterman.dev/queue":          {"", "queue"},
		"thumbs.lighterman.dev/queue":   {"thumbs", "queue"},
		"a.b.lighterman.dev/queue":      {"a.b", "queue"},
		"lighterman.dev":                {},
		"queue":                         {},
		"notlighterman.dev/queue":       {},
		"lighterman.dev.example/queue":  {},
		"example.com/lighterman.dev":    {},
		"kueue.x-k8s.io/queue-name":     {},
		"app.kubernetes.io/managed-by":  {},
		"lighterman.devil/paused":       {},
		"x.lighterman.dev.invalid/what": {},
	} {
		set, name, ok := annotation.IsOurs(key)
		if got := [2]string{set, name}; ok != (want != [2]string{}) || ok && got != want {
			t.Errorf("IsOurs(%q) = %q, %q, %v; want %q", key, set, name, ok, want)
		}
	}
}

func TestStrip(t *testing.T) {
	t.Parallel()
	all := queueTemplate(map[string]string{"thumbs.lighterman.dev/queue": "x", "example.com/team": "a", "example.com/plain": "b"})
	before := maps.Clone(all)
	if diff := cmp.Diff(map[string]string{"example.com/team": "a", "example.com/plain": "b"}, annotation.Strip(all)); diff != "" {
		t.Errorf("Strip (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, all); diff != "" {
		t.Errorf("Strip changed its argument (-want +got):\n%s", diff)
	}
	if got := annotation.Strip(queueTemplate(nil)); got != nil {
		t.Errorf("Strip of nothing else = %v, want nil", got)
	}
	if !annotation.Has(all) || annotation.Has(annotation.Strip(all)) {
		t.Error("Has does not tell annotations of ours from others")
	}
}

func TestSpecNamesItsKeys(t *testing.T) {
	t.Parallel()
	queue := queueSpec(func(s *annotation.Spec) { s.Set = "thumbs" })
	if got, want := queue.EntityKey()+"="+queue.Entity(), "thumbs.lighterman.dev/queue=tasks"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	stream := streamSpec(nil)
	if got, want := stream.EntityKey()+"="+stream.Entity(), "lighterman.dev/stream=jobs:new"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := queue.Key(annotation.KeyConnectionSecret), "thumbs.lighterman.dev/connection-secret"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, row := range annotation.Table() {
		f.Add(annotation.KindCronJob, "lighterman.dev/"+row.Key, row.Example, "thumbs.lighterman.dev/"+row.Key, row.Default)
	}
	f.Add("Deployment", "a.b.lighterman.dev/source", "redis-streams", "lighterman.dev/", "\x00\xff")
	f.Fuzz(func(t *testing.T, kind, key1, value1, key2, value2 string) {
		for _, base := range []map[string]string{{}, queueTemplate(nil), streamTemplate(nil)} {
			base[key1], base[key2] = value1, value2
			specs, err := annotation.Parse(kind, base)
			again, errAgain := annotation.Parse(kind, maps.Clone(base))
			if diff := cmp.Diff(specs, again); diff != "" {
				t.Errorf("Parse is not deterministic (-first +second):\n%s", diff)
			}
			if (err == nil) != (errAgain == nil) || err != nil && err.Error() != errAgain.Error() {
				t.Errorf("Parse is not deterministic: %v, then %v", err, errAgain)
			}
			if err == nil {
				if annotation.Has(base) != (len(specs) > 0) {
					t.Errorf("%d Specs of %v", len(specs), slices.Sorted(maps.Keys(base)))
				}
				continue
			}
			var errs annotation.Errors
			if !errors.As(err, &errs) || len(errs) == 0 || specs != nil {
				t.Fatalf("%d Specs, and %T: %v", len(specs), err, err)
			}
			for _, one := range errs {
				if _, _, ok := annotation.IsOurs(one.Key); !ok || one.Problem == "" || one.Remedy == "" {
					t.Errorf("mistake does not say what to change: %+v", one)
				}
			}
		}
	})
}
