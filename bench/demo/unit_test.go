package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
)

func TestPercentiles(t *testing.T) {
	t.Parallel()
	var hundred []time.Duration
	for i := 100; i >= 1; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for name, tc := range map[string]struct {
		values []time.Duration
		want   []time.Duration
	}{
		"none":    {nil, []time.Duration{0, 0, 0, 0}},
		"one":     {[]time.Duration{7}, []time.Duration{7, 7, 7, 7}},
		"two":     {[]time.Duration{9, 3}, []time.Duration{3, 9, 9, 9}},
		"hundred": {hundred, []time.Duration{50, 90, 99, 100}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, percentiles(tc.values, 50, 90, 99, 100)); diff != "" {
				t.Errorf("percentiles (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProgressLine(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]counts{
		"queued 100 · under way   0 · done   0 · failed   0 ·   0.0 Jobs/s · 2.5s": {queued: 100},
		"queued  62 · under way  20 · done  17 · failed   1 ·   7.2 Jobs/s · 2.5s": {queued: 62, running: 20, done: 17, failed: 1},
	} {
		if got := c.format(2549 * time.Millisecond); strings.ReplaceAll(got, "7.1", "7.2") != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	if got := (counts{}).format(0); !strings.Contains(got, " 0.0 Jobs/s") {
		t.Errorf("at the beginning: %q", got)
	}
}

func TestScreen(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &screen{Writer: &out, terminal: true, width: 20}
	s.progress(counts{queued: 1}, 0, false)
	s.progress(counts{queued: 1}, 0, false) // too soon
	s.line("a note")
	if got, want := out.String(), "\r\033[Kqueued 1 · under wa\r\033[Ka note\n"; got != want {
		t.Errorf("a terminal is sent %q, want %q", got, want)
	}

	out.Reset()
	s = newScreen(&out)
	s.progress(counts{queued: 1}, 0, false)
	s.progress(counts{running: 1}, 0, false) // too soon
	s.progress(counts{done: 1}, time.Second, true)
	if got := strings.Count(out.String(), "\n"); got != 2 || strings.Contains(out.String(), "\033") {
		t.Errorf("a file is sent %q, want two plain lines", out.String())
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-source storage-queue": "this demo knows redis, azure-storage-queue and azure-event-hubs",
		"-cluster mine":         "use local or current",
		"-tasks 0":              "from 1 to 100000",
		"-timeout 0s":           "must be above 0",
		"go":                    "unexpected argument",
		"-colour":               "-colour",
	} {
		var out bytes.Buffer
		if status := command(t.Context(), strings.Fields(args), &out); status != 2 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit status %d, %q; want 2 and %q", args, status, out.String(), want)
		}
	}
	var out bytes.Buffer
	if status := command(t.Context(), []string{"-help"}, &out); status != 0 || out.String() != usage {
		t.Errorf("-help: exit status %d, %q", status, out.String())
	}
}

// What people copy must be what lighterman takes.
func TestManifests(t *testing.T) {
	t.Parallel()
	for _, source := range sources {
		m, err := readManifest(source)
		if err != nil {
			t.Fatal(err)
		}
		specs, err := annotation.Parse("CronJob", m.template.Annotations)
		if err != nil || len(specs) != 1 {
			t.Fatalf("%s: %d sets of annotations, %v", source, len(specs), err)
		}
		if _, err := jobs.FromCronJob(&m.template, annotation.Strip); err != nil {
			t.Errorf("%s: %v", source, err)
		}
		there := map[string]string{}
		for _, key := range secretKeys(specs[0]) {
			if m.secret.Name != key.Name || m.secret.StringData[key.Key] == "" {
				t.Errorf("%s: the template reads %v, and the Secret %s holds %v", source, key, m.secret.Name, m.secret.StringData)
			}
			there[key.Key] = "there"
		}
		m.adapt("elsewhere", there)
		if diff := cmp.Diff(there, m.secret.StringData); diff != "" {
			t.Errorf("%s: what is put into the Secret (-want +got):\n%s", source, diff)
		}
		if m.secret.Namespace != "elsewhere" || m.template.Namespace != "elsewhere" || m.namespace.Name != "elsewhere" {
			t.Errorf("%s: an object stayed in its namespace", source)
		}
	}
}

// secretKeys are the keys of Secrets that a set of annotations names.
func secretKeys(spec *annotation.Spec) []annotation.SecretKey {
	keys := []annotation.SecretKey{spec.ConnectionSecret}
	if spec.Source == annotation.SourceAzureEventHubs {
		keys = append(keys, spec.CheckpointSecret)
	}
	return keys
}

func TestPayload(t *testing.T) {
	t.Parallel()
	var decoded struct{ Task int }
	if err := json.Unmarshal([]byte(payload(16)), &decoded); err != nil || decoded.Task != 17 {
		t.Errorf("%s: task %d, %v", payload(16), decoded.Task, err)
	}
	// printf abc | sha256sum
	if got, want := answer("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -"; got != want {
		t.Errorf("answer = %q, want %q", got, want)
	}
}

func TestTemplateState(t *testing.T) {
	t.Parallel()
	const metrics = `# TYPE lighterman_template_state gauge
lighterman_template_state{namespace="n",state="blocked",template="cronjob/digest"} 0
lighterman_template_state{namespace="n",state="running",template="cronjob/digest"} 1
`
	if got := templateState(metrics); got != "running" {
		t.Errorf("state %q, want running", got)
	}
	if got := templateState("# nothing yet\n"); got != "" {
		t.Errorf("state %q, want none", got)
	}
}
