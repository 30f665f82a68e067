package payload

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"github.com/lighterman-dev/lighterman/jobs"
)

// checkSingle hands over one message in a mode, and checks that its container finds what was sent, and that nothing else is touched.
func checkSingle(t testing.TB, template *jobs.Template, mode jobs.PayloadMode, m jobs.Message) {
	t.Helper()
	c, err := single(t, template, mode, m)
	if errors.Is(err, jobs.ErrPayload) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	text, inEnv := c.env[jobs.EnvPayload]
	file, inFile := c.env[jobs.EnvPayloadFile]
	got := []byte(text)
	switch {
	case inEnv == inFile:
		t.Fatalf("%s: the payload is in both of variable and file, or in neither", mode)
	case inFile:
		got = c.files[file]
	case c.env[jobs.EnvPayloadEncoding] == "base64":
		if got, err = base64.StdEncoding.DecodeString(text); err != nil {
			t.Fatal(err)
		}
	}
	if string(got) != string(m.Body) {
		t.Errorf("%s: the container finds %.200q, and %.200q was sent", mode, got, m.Body)
	}
	if id := c.env[jobs.EnvMessageID]; id != m.ID {
		t.Errorf("%s: the id is %.200q, want %.200q", mode, id, m.ID)
	}
	if parent := c.env[jobs.EnvTraceParent]; parent != m.TraceParent {
		t.Errorf("%s: the traceparent is %.200q, want %.200q", mode, parent, m.TraceParent)
	}
	checkOwn(t, c)
}

// checkOwn checks what the template itself says: its secrets are in place, and its references to the payload give the payload, unexpanded.
func checkOwn(t testing.TB, c container) {
	t.Helper()
	text, inEnv := c.env[jobs.EnvPayload]
	if !inEnv {
		text = "$(KEDA_TASK_DATA)" // a reference to nothing stays as it is
	}
	for what, got := range map[string][2]string{
		"the argument": {c.command[1], text},
		"the variable that refers to the payload": {c.env["ARGUMENT"], "<" + text + ">"},
		"the secret of envFrom":                   {c.env["SECRET_X"], fromSecret},
		"the container's secret":                  {c.env["SECRET_Y"], ownSecret},
		"the variable that refers to a secret":    {c.env["OF_A_SECRET"], "<" + ownSecret + ">"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %.200q, want %.200q", what, got[0], got[1])
		}
	}
}

// checkArray hands over a pack, and checks that its array, where it has one, holds what was sent.
func checkArray(t testing.TB, template *jobs.Template, messages ...jobs.Message) {
	t.Helper()
	c := packed(t, template, jobs.PayloadAuto, messages...)
	checkOwn(t, c)
	array, ok := c.env[jobs.EnvPayload]
	if !ok {
		return
	}
	var texts []string
	if err := json.Unmarshal([]byte(array), &texts); err != nil || len(texts) != len(messages) {
		t.Fatalf("array %.200q of %d elements for %d messages: %v", array, len(texts), len(messages), err)
	}
	for i, m := range messages {
		if texts[i] != string(m.Body) {
			t.Errorf("element %d of the array is %.200q, want %.200q", i, texts[i], m.Body)
		}
	}
}

// TestOracle: unescaped, these payloads would not arrive. Should Kubernetes come to expand them no more, the tests here would prove nothing.
func TestOracle(t *testing.T) {
	lookUp := expansion.MappingFuncFor(map[string]string{"SECRET_X": fromSecret})
	for payload, want := range map[string]string{
		"$(SECRET_X)":    fromSecret,
		"a $(SECRET_X)b": "a " + fromSecret + "b",
		"$$(SECRET_X)":   "$(SECRET_X)",
		"$$":             "$",
		"$$$(SECRET_X)":  "$" + fromSecret,
	} {
		if got := expansion.Expand(payload, lookUp); got != want {
			t.Errorf("Kubernetes makes %q of %q, want %q", got, payload, want)
		}
	}
}

// TestExpansion: strings of all that means anything to the kubelet, in all orders.
func TestExpansion(t *testing.T) {
	template := newTemplate(t)
	parts := []string{
		"$", "$$", "$(", ")", "(", "$(SECRET_X)", "$(SECRET_Y)", "$(KEDA_TASK_DATA)", "$(KUBERNETES_SERVICE_HOST)", "$(LIGHTERMAN_SOURCE)", "$()",
		"SECRET_X", "{", "}", "\\", "\n", " ", "é", "🚢", "\ufffd",
	}
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		for range random.IntN(9) {
			b.WriteString(parts[random.IntN(len(parts))])
		}
		return b.String()
	}
	for range 3000 {
		m := jobs.Message{ID: "1-0" + strings.Join(strings.Fields(text()), ""), Body: []byte(text()), TraceParent: text()}
		for _, mode := range modes {
			checkSingle(t, template, mode, m)
		}
		checkArray(t, template, m, jobs.Message{ID: "2-0", Body: []byte(text())})
		if t.Failed() {
			break
		}
	}
	// So long that it comes from a Secret, whose values the kubelet does not expand.
	long := jobs.Message{ID: "1-0", Body: []byte(strings.Repeat("$(SECRET_X) $$ $", 500))}
	for _, mode := range modes {
		checkSingle(t, template, mode, long)
	}
	checkArray(t, template, long, long)
}

// FuzzExpansion: no message changes on its way through the kubelet, or finds out what else the container is told.
func FuzzExpansion(f *testing.F) {
	f.Add("$(SECRET_X)", "00-$(SECRET_Y)")
	f.Add("$$(SECRET_X) $$$(SECRET_Y)", "$")
	f.Add("$($(SECRET_X))", "$(KEDA_TASK_DATA)")
	f.Add("a\x00b\xff", "é")
	f.Add(strings.Repeat("$", 5000), "")
	template := newTemplate(f)
	f.Fuzz(func(t *testing.T, payload, other string) {
		if !utf8.ValidString(other) || strings.ContainsRune(other, 0) {
			other = "" // sources and the dispatcher let through neither
		}
		m := jobs.Message{ID: "1-0" + strings.Join(strings.Fields(other), ""), Body: []byte(payload), TraceParent: other}
		for _, mode := range modes {
			checkSingle(t, template, mode, m)
		}
		checkArray(t, template, m, jobs.Message{ID: "2-0", Body: []byte(other + payload)})
	})
}
