package payload

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/jobs"
)

const (
	examples = "../../examples/payload/"
	document = "../../docs/payload.md"
)

// reader is one of the programs that docs/payload.md shows.
type reader struct {
	command []string
	// rawLines says that it hands on the lines of a pack as they are.
	rawLines bool
}

// readers are all programs, ready to run.
func readers(t *testing.T) map[string]reader {
	t.Helper()
	folder, err := filepath.Abs(examples)
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "read_task")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./go")
	build.Dir = folder // it is part of the product's module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the Go reader: %v\n%s", err, out)
	}
	return map[string]reader{
		"python": {command: []string{"python3", "-B", filepath.Join(folder, "read_task.py")}},
		"bash":   {command: []string{"bash", filepath.Join(folder, "read_task.sh")}, rawLines: true},
		"go":     {command: []string{binary}},
	}
}

// ran is what came of a reader.
type ran struct {
	out    string
	status int
	// report is what it wrote as its termination message.
	report string
}

// run starts a reader with what a container has; its files are in a folder, for want of a container.
func (r reader) run(t *testing.T, c container, arguments ...string) ran {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "termination-log")
	env := []string{"PATH=" + os.Getenv("PATH"), "TERMINATION_LOG=" + log}
	for name, value := range c.env {
		if name == jobs.EnvPayloadFile {
			file := filepath.Join(dir, path.Base(value))
			if err := os.WriteFile(file, c.files[value], 0o444); err != nil {
				t.Fatal(err)
			}
			value = file
		}
		env = append(env, name+"="+value)
	}
	cmd := exec.CommandContext(t.Context(), r.command[0], slices.Concat(r.command[1:], arguments)...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, &stdout, &stderr
	var ended *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	if stderr.Len() > 0 {
		t.Logf("%.500s", &stderr)
	}
	report, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return ran{stdout.String(), cmd.ProcessState.ExitCode(), string(report)}
}

// sums is what a reader prints of messages.
func sums(messages ...jobs.Message) string {
	var b strings.Builder
	for _, m := range messages {
		fmt.Fprintf(&b, "%s %x\n", m.ID, sha256.Sum256(m.Body))
	}
	return b.String()
}

// lines is what the messages of a pack are to a reader that does not look into its lines.
func lines(c container) []jobs.Message {
	var messages []jobs.Message
	for line := range bytes.Lines(c.files[c.env[jobs.EnvPayloadFile]]) {
		var one struct{ ID string }
		if json.Unmarshal(line, &one) == nil {
			messages = append(messages, jobs.Message{ID: one.ID, Body: bytes.TrimSuffix(line, []byte("\n"))})
		}
	}
	return messages
}

// bodies are payloads that a careless program would change: the shell's, JSON's, Python's and Kubernetes' own special characters, line ends and
// white space at either end, what looks like an option, and bytes that are no text.
var bodies = map[string]string{
	"empty":             "",
	"text":              `{"to": "größer 漢字 🚢", "cost": "$5"}`,
	"references":        "$(SECRET_X) $$(SECRET_X) $SECRET_X ${SECRET_X} `id` $(id) $",
	"quotes":            `'single' "double" \back\\slash \n %s %d`,
	"white space":       "\n\n  \ttext, and lines\r\nat either end \t\n\n",
	"an option":         "-n",
	"another":           "-e \\x41",
	"NUL":               "a\x00b\x00",
	"only NUL":          "\x00",
	"invalid UTF-8":     "a\xff\xfe\x80",
	"a surrogate":       "\xed\xa0\x80",
	"line separators":   "a\u2028b\u2029c\u0085d\vf\fg",
	"control":           "\x01\x02\x1b[31m\x7f",
	"marks":             "\ufeff\ufffd",
	"JSON in JSON":      `{"data": "{\"data\": \"\\u0000\"}", "html": "</script>&amp;"}`,
	"larger":            strings.Repeat("größer$(HOME)\n", 1000),
	"longest variable":  strings.Repeat("x", 131_056),
	"too long for one":  strings.Repeat("x", 131_057),
	"longest in base64": strings.Repeat("\xff", 98_292),
	"largest":           strings.Repeat("\x00\xff", 512<<10),
}

// TestReaders: each program reads each payload in each mode, byte for byte.
func TestReaders(t *testing.T) {
	template := newTemplate(t)
	for language, r := range readers(t) {
		for name, body := range bodies {
			m := jobs.Message{ID: "1764000000000-0", Body: []byte(body)}
			for _, mode := range modes {
				c, err := single(t, template, mode, m)
				if errors.Is(err, jobs.ErrPayload) && mode == jobs.PayloadEnv && len(body) > 98_292 {
					continue // as documented
				}
				if err != nil {
					t.Fatal(err)
				}
				// The template's variable would be a second long one; how they get along is not what is tested here.
				delete(c.env, "ARGUMENT")
				t.Run(strings.Join([]string{language, name, string(mode)}, ", "), func(t *testing.T) {
					t.Parallel()
					if diff := cmp.Diff(ran{out: sums(m)}, r.run(t, c), cmp.AllowUnexported(ran{})); diff != "" {
						t.Errorf("what it read (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// TestReadersOfPacks: each program reads packs with an array and without one.
func TestReadersOfPacks(t *testing.T) {
	var all, texts []jobs.Message
	names := make([]string, 0, len(bodies))
	for name := range bodies {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		m := jobs.Message{
			ID: fmt.Sprintf("%d-0", 1_764_000_000_000+i), Body: []byte(bodies[name]), EnqueuedAt: time.Unix(1_764_000_000, int64(i)),
			TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		}
		switch name {
		case "largest", "longest variable", "too long for one", "longest in base64":
			continue // packs of their own
		case "text", "references", "quotes", "white space", "line separators", "control", "empty":
			texts = append(texts, m)
		}
		all = append(all, m)
	}
	template := newTemplate(t)
	packs := map[string][]jobs.Message{
		"all": all, "text": texts, "one": texts[:1], "one of bytes": {{ID: "1-0", Body: []byte("\xff")}},
		"long lines": {{ID: "1-0", Body: bytes.Repeat([]byte("x"), 300_000)}, {ID: "1-1", Body: bytes.Repeat([]byte("\xff"), 300_000)}, {ID: "1-2"}},
	}
	for language, r := range readers(t) {
		for name, messages := range packs {
			c := packed(t, template, jobs.PayloadAuto, messages...)
			delete(c.env, "ARGUMENT")
			want := sums(messages...)
			if r.rawLines {
				want = sums(lines(c)...)
			}
			t.Run(language+", "+name, func(t *testing.T) {
				t.Parallel()
				if diff := cmp.Diff(ran{out: want}, r.run(t, c), cmp.AllowUnexported(ran{})); diff != "" {
					t.Errorf("what it read (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestReadersReport: of a pack, a program names what failed, and ends well; of one message, or where the names do not fit, it fails itself.
func TestReadersReport(t *testing.T) {
	good, bad := jobs.Message{ID: "1-0", Body: []byte("good")}, jobs.Message{ID: "1-1", Body: []byte("fail")}
	last := jobs.Message{ID: "1-2", Body: []byte("also good")}
	var many []jobs.Message
	for i := range 300 {
		many = append(many, jobs.Message{ID: fmt.Sprintf("%d-%d", 1_764_000_000_000, i), Body: []byte("fail")})
	}
	template := newTemplate(t)
	// A program that fails where the readers in Python and Go do by themselves, and prints what the reader would.
	shell := []string{"bash", "-c", `set -e; task=$(cat); [[ $task != fail && $task != *'"data":"fail"'* ]]
		sum=$(printf %s "$task" | sha256sum); printf '%s %s\n' "$LIGHTERMAN_MESSAGE_ID" "${sum%% *}"`}
	for language, r := range readers(t) {
		var arguments []string
		if r.rawLines {
			arguments = shell
		}
		t.Run(language+", one message", func(t *testing.T) {
			for _, mode := range modes {
				c, err := single(t, template, mode, bad)
				if err != nil {
					t.Fatal(err)
				}
				if got := r.run(t, c, arguments...); got.status == 0 || got.out != "" || got.report != "" {
					t.Errorf("%s: %+v, want that it fails", mode, got)
				}
			}
		})
		t.Run(language+", one of a pack", func(t *testing.T) {
			c := packed(t, template, jobs.PayloadAuto, good, bad, last)
			read := []jobs.Message{good, last}
			if r.rawLines {
				read = slices.Delete(lines(c), 1, 2)
			}
			want := ran{out: sums(read...), report: `{"failed": ["1-1"]}`}
			got := r.run(t, c, arguments...)
			got.report = strings.ReplaceAll(got.report, ":[", ": [") // as Go writes it
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(ran{})); diff != "" {
				t.Errorf("what came of it (-want +got):\n%s", diff)
			}
		})
		t.Run(language+", more of a pack than fit", func(t *testing.T) {
			if got := r.run(t, packed(t, template, jobs.PayloadAuto, many...), arguments...); got.status == 0 || got.report != "" {
				t.Errorf("%+v, want that it fails", got)
			}
		})
		t.Run(language+", all of a pack", func(t *testing.T) {
			few := many[:100]
			got := r.run(t, packed(t, template, jobs.PayloadAuto, few...), arguments...)
			var report struct{ Failed []string }
			if err := json.Unmarshal([]byte(got.report), &report); err != nil || len(report.Failed) != len(few) || got.status != 0 || got.out != "" {
				t.Errorf("%+v, %v; want a report of %d", got, err, len(few))
			}
		})
	}
}

// TestDocument: docs/payload.md shows the programs as they are.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for language, file := range map[string]string{"python": "read_task.py", "bash": "read_task.sh", "go": "go/main.go"} {
		program, err := os.ReadFile(examples + file)
		if err != nil {
			t.Fatal(err)
		}
		_, block, found := strings.Cut(string(text), "```"+language+"\n")
		block, _, closed := strings.Cut(block, "```\n")
		if !found || !closed {
			t.Errorf("%s has no block of %s", document, language)
			continue
		}
		if diff := cmp.Diff(string(program), block); diff != "" {
			t.Errorf("%s does not show %s as it is (-file +document):\n%s", document, file, diff)
		}
	}
}
