package annotation_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
)

// bad holds values that each key must refuse; every row of the table is tried with its own and with those of all.
var bad = map[string][]string{
	annotation.KeySource:              {"kafka", "Redis-Streams"},
	annotation.KeyQueue:               {"ab", "-tasks", "tasks-", "a--b", "Tasks", "a_b", strings.Repeat("q", 64)},
	annotation.KeyEventHub:            {".hub", "a b"},
	annotation.KeyStream:              {" tasks", "tasks\n", "a\nb", strings.Repeat("s", 513)},
	annotation.KeyConsumerGroup:       {" group", "a\tb\n"},
	annotation.KeyConnectionSecret:    {"task-queue", "/key", "name/", "a/b/c", "Name/key", "name/a b", strings.Repeat("s", 254) + "/key"},
	annotation.KeyAccount:             {"ab", "Contoso"},
	annotation.KeyNamespace:           {"contoso"},
	annotation.KeyServiceAccount:      {"Reader"},
	annotation.KeyPoisonQueue:         {" poison"},
	annotation.KeyPoisonEventHub:      {".hub", "a b"},
	annotation.KeyStartPosition:       {"Latest", "now", "2026-11-01", "2026-13-01T00:00:00Z", "2026-11-01T00:00:00", "1762000000"},
	annotation.KeyCheckpointSecret:    {"checkpoints", "/key", "name/"},
	annotation.KeyCheckpointContainer: {"ab", "Checkpoints", "a--b", "$root"},
	annotation.KeyMaxInFlight:         {"0", "-1", "1.5", "1e3", "0x10", "1_000", "+1", "01", "1000001", "off"},
	annotation.KeyJobsPerSecond:       {"0", "-1", "1e3", "NaN", "Inf", ".5", "5.", "100001", "none"},
	annotation.KeyMaxPending:          {"0", "-1", "no limit"},
	annotation.KeyStartTimeout:        {"0s", "5", "999ms", "-5m", "1d", "169h", "Off "},
	annotation.KeyTasksPerJob:         {"0", "-1", "1.5", "100001", "all"},
	annotation.KeyBatchWait:           {"1", "-1s", "601s", "11m", "off"},
	annotation.KeyPayload:             {"inline", "Env", "auto,file"},
	annotation.KeyMessageEncoding:     {"utf-8", "Base64", "base64url"},
	annotation.KeyLeaseDuration:       {"0s", "120", "999ms", "169h", "2 minutes", "999999999999999h"},
	annotation.KeyMaxAttempts:         {"0", "1001", "five"},
	annotation.KeyRetryBackoff:        {"10s", "10s-10m", "10s..", "..10m", "10m..10s", "10s..169h", "10s...10m", "10s..1m..2m"},
	annotation.KeyPriority:            {"-1001", "1001", "high", "-0x1", "--1"},
	annotation.KeyPaused:              {"yes", "True", "1", "on"},
}

func TestEveryRow(t *testing.T) {
	t.Parallel()
	for _, row := range annotation.Table() {
		name := row.Key
		if len(row.Sources) > 0 {
			name += " of " + strings.Join(row.Sources, " and ")
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := queueTemplate(nil)
			if slices.Contains(row.Sources, annotation.SourceRedisStreams) {
				base = streamTemplate(nil)
			}
			if slices.Equal(row.Sources, []string{annotation.SourceAzureEventHubs}) {
				base = hubTemplate(nil)
			}
			reachable := len(row.Sources) == 0 || slices.Contains(row.Sources, base["lighterman.dev/source"])

			var good []string
			if !row.Limited {
				good = []string{row.Example}
				if row.Default != "" && !strings.Contains(row.Default, "<") {
					good = append(good, row.Default)
				}
			}
			for _, v := range good {
				matches(t, row, v)
				if _, err := annotation.Parse(annotation.KindCronJob, changed(maps.Clone(base), map[string]string{row.Key: v})); err != nil && reachable && row.Key != annotation.KeySource {
					t.Errorf("%q was refused: %v", v, err)
				}
			}
			if row.Limited && row.Default != "" {
				t.Errorf("default %q is not accepted", row.Default)
			}

			if len(bad[row.Key]) == 0 {
				t.Error("no bad values are known")
			}
			for _, v := range append(bad[row.Key], " ", row.Example+" ", "a\x00b") {
				_, err := annotation.Parse(annotation.KindCronJob, changed(maps.Clone(base), map[string]string{row.Key: v}))
				if err == nil {
					t.Errorf("%q was accepted", v)
					continue
				}
				if got := err.Error(); !strings.Contains(got, "lighterman.dev/"+row.Key) {
					t.Errorf("the error for %q does not name the key: %s", v, got)
				}
			}
		})
	}
}

func matches(t *testing.T, row annotation.Row, v string) {
	t.Helper()
	if !regexp.MustCompile(row.Grammar()).MatchString(v) {
		t.Errorf("%q does not match the row's own grammar %s", v, row.Grammar())
	}
}

// One key may have several rows, but any source and kind must find at most one of them.
func TestRowsDoNotOverlap(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, row := range annotation.Table() {
		sources := row.Sources
		if len(sources) == 0 {
			sources = []string{annotation.SourceAzureStorageQueue, annotation.SourceAzureEventHubs, annotation.SourceRedisStreams}
		}
		for _, kind := range row.Kinds {
			for _, source := range sources {
				id := strings.Join([]string{kind, source, row.Key}, " ")
				if seen[id] {
					t.Errorf("two rows for %s", id)
				}
				seen[id] = true
			}
		}
		if row.Doc == "" || !strings.HasSuffix(row.Doc, ".") {
			t.Errorf("%s: doc %q is not a sentence", row.Key, row.Doc)
		}
		if row.Limited && row.Instead == "" {
			t.Errorf("%s: nothing is said about what to do instead", row.Key)
		}
	}
}
