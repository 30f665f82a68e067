package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
)

// packOf packs messages that fit.
func packOf(t testing.TB, mode PayloadMode, attempt int, messages ...Message) *Pack {
	t.Helper()
	p := NewPack(mode, attempt)
	for i, m := range messages {
		if !p.Add(m) {
			t.Fatalf("message %d does not fit", i)
		}
	}
	if p.Len() != len(messages) {
		t.Fatalf("%d messages, want %d", p.Len(), len(messages))
	}
	return p
}

// sameSeen compares what two containers see, and does not look for the way from one large file to another.
var sameSeen = cmp.Options{cmp.AllowUnexported(seen{}), cmp.Comparer(bytes.Equal)}

// packJob makes the Job of a pack, and returns what its containers see.
func packJob(t testing.TB, p *Pack, messages ...Message) seen {
	t.Helper()
	ids := make([]string, len(messages))
	for i, m := range messages {
		ids[i] = m.ID
	}
	id := Identity{Source: testID.Source, Messages: NewMessageSet(ids...), Attempt: p.attempt}
	job, secret := newJob(t, testTemplate(t), Task{Identity: id, Content: p.Content(), Packed: true})
	checkSizes(t, job, secret)
	if !NeedsSecret(job) {
		t.Error("the Job does not say that it needs a Secret")
	}
	if got, err := IdentityOf(job); err != nil || got != id {
		t.Errorf("identity %+v, %v; want %+v", got, err, id)
	}
	all := see(t, job, secret)
	for _, container := range all[1:] {
		container.env["ARGS"] = all[0].env["ARGS"]
		if container.env["ARGS"] == "" {
			delete(container.env, "ARGS")
		}
		if diff := cmp.Diff(all[0], container, sameSeen); diff != "" {
			t.Errorf("one container is told something else than another:\n%s", diff)
		}
	}
	return all[0]
}

var at = time.Date(2026, 11, 24, 9, 30, 0, 120_000_000, time.FixedZone("CET", 3600))

// TestPackLines: the file is a format that programs rely on.
func TestPackLines(t *testing.T) {
	messages := []Message{
		{ID: "1-0", Body: []byte(`{"to": "größer", "html": "<b>&amp;</b>", "cost": "$(SECRET)"}`), EnqueuedAt: at, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{ID: "1-1", Body: []byte("two\nlines,\ta tab and \"quotes\" \\"), EnqueuedAt: at.Truncate(time.Second)},
		{ID: "1-2", Body: []byte("a\x00b\x1f\u2028\u007f")},
		{ID: "1-3", Body: []byte{0xff, 0x00, 0x80}, EnqueuedAt: at},
		{ID: "1-4"},
		{ID: "1-5", Body: []byte("x"), EnqueuedAt: at, Properties: map[string]string{"z": "<a href=\"&\">$(SECRET)", "größe": "\x00\xff\n", "": ""}},
		{ID: "1-6", Body: []byte{0xff}, Properties: map[string]string{}},
	}
	container := packJob(t, packOf(t, PayloadAuto, 3, messages...), messages...)
	want := strings.Join([]string{
		`{"id":"1-0","attempt":3,"enqueued_at":"2026-11-24T08:30:00.12Z","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",` +
			`"data":"{\"to\": \"größer\", \"html\": \"<b>&amp;</b>\", \"cost\": \"$(SECRET)\"}"}`,
		`{"id":"1-1","attempt":3,"enqueued_at":"2026-11-24T08:30:00Z","data":"two\nlines,\ta tab and \"quotes\" \\"}`,
		`{"id":"1-2","attempt":3,"data":"a\u0000b\u001f\u2028` + "\u007f" + `"}`,
		`{"id":"1-3","attempt":3,"enqueued_at":"2026-11-24T08:30:00.12Z","data_base64":"/wCA"}`,
		`{"id":"1-4","attempt":3,"data":""}`,
		`{"id":"1-5","attempt":3,"enqueued_at":"2026-11-24T08:30:00.12Z","data":"x",` +
			`"properties":{"":"","größe":"\u0000\ufffd\n","z":"<a href=\"&\">$(SECRET)"}}`,
		`{"id":"1-6","attempt":3,"data_base64":"/w=="}`,
		``,
	}, "\n")
	if diff := cmp.Diff(want, string(container.files["/var/run/lighterman/tasks.jsonl"])); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	wantEnv := map[string]string{
		"KEDA_TASK_DATA_FILE": "/var/run/lighterman/tasks.jsonl", "LIGHTERMAN_ATTEMPT": "3", "LIGHTERMAN_SOURCE": "x://h/resize", "LIGHTERMAN_TASK_COUNT": "7",
	}
	if diff := cmp.Diff(wantEnv, container.env); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

// TestPackArray: where it fits and every message is text, the messages are also a JSON array in a variable.
func TestPackArray(t *testing.T) {
	text := func(n int) Message { return Message{ID: "m", Body: bytes.Repeat([]byte("a"), n)} }
	tests := map[string]struct {
		mode     PayloadMode
		messages []Message
		want     string // the array; "-": none
		form     string
	}{
		"text": {PayloadAuto, []Message{{ID: "a", Body: []byte(`"$(HOME)" <größer>`)}, {ID: "b"}}, `["\"$(HOME)\" <größer>",""]`, "file, literal, volume, Secret"},
		"one":  {PayloadAuto, []Message{{ID: "a", Body: []byte("x")}}, `["x"]`, "file, literal, volume, Secret"},
		// An array has no NUL in it even if a message has.
		"NUL":                   {PayloadAuto, []Message{{ID: "a", Body: []byte("a\x00")}}, `["a\u0000"]`, "file, literal, volume, Secret"},
		"invalid UTF-8":         {PayloadAuto, []Message{{ID: "a", Body: []byte("\xff")}}, "-", asFile},
		"invalid UTF-8 at last": {PayloadAuto, []Message{text(1), text(1), {ID: "a", Body: []byte("\xff")}, text(1)}, "-", asFile},
		"file only":             {PayloadAsFile, []Message{text(1)}, "-", asFile},
		"small by one":          {PayloadAuto, []Message{text(4091)}, `["` + strings.Repeat("a", 4091) + `"]`, "file, literal, volume, Secret"},
		"small":                 {PayloadAuto, []Message{text(4092)}, `["` + strings.Repeat("a", 4092) + `"]`, "file, literal, volume, Secret"},
		"large":                 {PayloadAuto, []Message{text(4093)}, `["` + strings.Repeat("a", 4093) + `"]`, "file, secret variable, volume, Secret"},
		"largest by one":        {PayloadAuto, []Message{text(131_051)}, `["` + strings.Repeat("a", 131_051) + `"]`, "file, secret variable, volume, Secret"},
		"largest":               {PayloadAuto, []Message{text(131_052)}, `["` + strings.Repeat("a", 131_052) + `"]`, "file, secret variable, volume, Secret"},
		"largest of two": {
			PayloadAuto, []Message{text(131_048), text(1)}, `["` + strings.Repeat("a", 131_048) + `","a"]`, "file, secret variable, volume, Secret",
		},
		"too large":          {PayloadAuto, []Message{text(131_053)}, "-", asFile},
		"too large, of two":  {PayloadAuto, []Message{text(131_048), text(2)}, "-", asFile},
		"once too large":     {PayloadAuto, []Message{text(131_053), text(1), {ID: "a", Body: []byte("\xff")}}, "-", asFile},
		"too large, escaped": {PayloadAuto, []Message{{ID: "m", Body: bytes.Repeat([]byte("\n"), 65_527)}}, "-", asFile},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for i := range test.messages {
				test.messages[i].ID = fmt.Sprint("m", i)
			}
			container := packJob(t, packOf(t, test.mode, 1, test.messages...), test.messages...)
			got, ok := container.env[EnvPayload]
			if ok != (test.want != "-") || ok && got != test.want {
				t.Errorf("array %.80q (%d bytes, %v), want %.80q", got, len(got), ok, test.want)
			}
			if n := bytes.Count(container.files[PackFile], []byte("\n")); n != len(test.messages) {
				t.Errorf("%d lines for %d messages", n, len(test.messages))
			}
			job, secret := newJob(t, testTemplate(t), Task{Identity: testID, Content: packOf(t, test.mode, 1, test.messages...).Content(), Packed: true})
			if got := form(job, secret); got != test.form {
				t.Errorf("it comes as %q, want %q", got, test.form)
			}
		})
	}
}

// TestPackLimits: a pack takes exactly as much as a Job can carry, and is as before where it refuses a message.
func TestPackLimits(t *testing.T) {
	if MaxPackLines+maxEnvPayload > corev1.MaxSecretSize {
		t.Error("the lines of a pack and its array can be more than a Secret holds")
	}
	first := Message{ID: "m0", Body: []byte("first")}
	taken := packOf(t, PayloadAuto, 1, first).lines.Len()
	const frame = len(`{"id":"m1","attempt":1,"data":""}` + "\n")
	text := func(n int) Message { return Message{ID: "m1", Body: bytes.Repeat([]byte("a"), n)} }
	longIDs := make([]Message, 127)
	for i := range longIDs {
		longIDs[i].ID = fmt.Sprintf("%01023d", i) // with the space, 1 KiB
	}
	id := func(n int) Message { return Message{ID: strings.Repeat("z", n)} }
	tests := map[string]struct {
		before []Message
		add    Message
		fits   bool
	}{
		"lines, one message, exactly":        {nil, text(917_504 - frame), true},
		"lines, one message, too long":       {nil, text(917_504 - frame + 1), false},
		"lines, a second message, exactly":   {[]Message{first}, text(917_504 - frame - taken), true},
		"lines, a second message, too long":  {[]Message{first}, text(917_504 - frame - taken + 1), false},
		"lines, counted as they are written": {nil, Message{ID: "m1", Body: bytes.Repeat([]byte{0}, (917_504-frame)/6+1)}, false},
		"base64, exactly":                    {nil, Message{ID: "m1", Body: bytes.Repeat([]byte{0xff}, (917_504-frame-len("_base64"))/4*3)}, true},
		"base64, too long":                   {nil, Message{ID: "m1", Body: bytes.Repeat([]byte{0xff}, (917_504-frame-len("_base64"))/4*3+1)}, false},
		"ids, exactly":                       {longIDs, id(1024), true},
		"ids, too long":                      {longIDs, id(1025), false},
		"ids, one message":                   {nil, id(1025), true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := packOf(t, PayloadAuto, 1, test.before...)
			if got := p.Add(test.add); got != test.fits {
				t.Fatalf("it was taken: %v, want %v", got, test.fits)
			}
			messages := test.before[:len(test.before):len(test.before)]
			if test.fits {
				messages = append(messages, test.add)
			}
			// A pack that has refused a message takes a smaller one, and is what it would be without the other.
			last := Message{ID: "m2"}
			if !test.fits {
				if !p.Add(last) {
					t.Fatal("it takes no smaller one")
				}
				messages = append(messages, last)
			}
			want := packOf(t, PayloadAuto, 1, messages...)
			if p.Len() != want.Len() || p.ids != want.ids {
				t.Errorf("%d messages with %d bytes of ids, want %d with %d", p.Len(), p.ids, want.Len(), want.ids)
			}
			if diff := cmp.Diff(packJob(t, want, messages...), packJob(t, p, messages...), sameSeen); diff != "" {
				t.Errorf("what the container is given (-want +got):\n%.1000s", diff)
			}
		})
	}
	var ids []string
	for _, m := range longIDs {
		ids = append(ids, m.ID)
	}
	if n := len(NewMessageSet(append(ids, id(1024).ID)...)); n != maxPackIDs {
		t.Errorf("the ids that just fit come to %d bytes in the annotation, want %d", n, maxPackIDs)
	}
}

func TestTooLargeForPack(t *testing.T) {
	body := bytes.Repeat([]byte("secret"), 200_000)
	if NewPack(PayloadAuto, 1).Add(Message{ID: "m", Body: body}) {
		t.Fatal("it fits")
	}
	err := TooLargeForPack(body)
	const want = "payload refused: it has 1200000 bytes, and its line of JSON does not fit the 917504 that a pack has room for"
	if !errors.Is(err, ErrPayload) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// unpack reads a pack as a task would: by the documentation, and not with the types that wrote it. The messages' properties are still JSON, with how many
// are left out.
func unpack(t testing.TB, container seen) (messages []Message, properties, leftOut []string) {
	t.Helper()
	at := container.env[EnvPayloadFile]
	file, ok := container.files[at]
	if !ok {
		t.Fatalf("there is no file %q", at)
	}
	for line := range bytes.Lines(file) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("line %.200q: %v", line, err)
		}
		var one struct {
			ID          string
			TraceParent string
			EnqueuedAt  time.Time `json:"enqueued_at"`
			Data        *string
			DataBase64  []byte `json:"data_base64"`
			Properties  json.RawMessage
			LeftOut     json.Number `json:"properties_left_out"`
		}
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatalf("line %.200q: %v", line, err)
		}
		m := Message{ID: one.ID, Body: one.DataBase64, EnqueuedAt: one.EnqueuedAt, TraceParent: one.TraceParent}
		if one.Data != nil {
			m.Body = []byte(*one.Data)
		}
		if (one.Data == nil) == (one.DataBase64 == nil) {
			t.Errorf("line %.200q has neither data nor data_base64, or both", line)
		}
		messages, properties, leftOut = append(messages, m), append(properties, string(one.Properties)), append(leftOut, one.LeftOut.String())
	}
	return messages, properties, leftOut
}

// checkPack packs as many of the messages as fit and compares what a task reads.
func checkPack(t testing.TB, mode PayloadMode, messages []Message) {
	t.Helper()
	p := NewPack(mode, 1)
	var taken []Message
	for _, m := range messages {
		if p.Add(m) {
			taken = append(taken, m)
		}
	}
	if len(taken) == 0 {
		return
	}
	container := packJob(t, p, taken...)
	read, properties, leftOut := unpack(t, container)
	if diff := cmp.Diff(taken, read, cmp.Comparer(bytes.Equal), cmpopts.IgnoreFields(Message{}, "Properties")); diff != "" {
		t.Fatalf("what a task reads (-want +got):\n%.1000s", diff)
	}
	for i, m := range taken {
		checkProperties(t, properties[i], leftOut[i], m.Properties)
	}
	allText := true
	for _, m := range taken {
		allText = allText && utf8.Valid(m.Body)
	}
	array, ok := container.env[EnvPayload]
	if !ok {
		return
	}
	var texts []string
	if err := json.Unmarshal([]byte(array), &texts); err != nil || len(texts) != len(taken) || !allText || mode == PayloadAsFile {
		t.Fatalf("an array of %d elements for %d messages, all text %v, %s, %v", len(texts), len(taken), allText, mode, err)
	}
	for i, text := range texts {
		if text != string(taken[i].Body) {
			t.Errorf("element %d of the array is %.80q, want %.80q", i, text, taken[i].Body)
		}
	}
}

// TestPacksRoundTrip: packs of all sizes, of messages that are text, almost text, or none, from nothing up to more than fits.
func TestPacksRoundTrip(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 0))
		alphabet := []rune("abc \n\t\"\\$()<>&\x00\x1f\u007fäß\u2028漢🚢\ufffd")
		messages := make([]Message, random.IntN(40))
		for i := range messages {
			body := make([]byte, 0, 64)
			for range random.IntN(1 << random.IntN(16)) {
				body = utf8.AppendRune(body, alphabet[random.IntN(len(alphabet))])
			}
			if random.IntN(10) == 0 && seed%2 == 0 {
				body = append(body, 0xff, byte(random.IntN(256)))
			}
			messages[i] = Message{ID: fmt.Sprintf("%d-%d", 1000+i, random.IntN(10)), Body: body}
			if random.IntN(2) == 0 {
				messages[i].EnqueuedAt = time.Unix(random.Int64N(4e9), random.Int64N(1e9)).UTC()
				messages[i].TraceParent = fmt.Sprintf("00-%032x-%016x-01", random.Uint64(), random.Uint64())
			}
			if random.IntN(3) == 0 {
				messages[i].Properties = map[string]string{"tenant": "a", string(body[:min(len(body), 9)]): "b", "copy": string(body)}
			}
		}
		mode := []PayloadMode{PayloadAuto, PayloadAsFile}[random.IntN(4)/3]
		checkPack(t, mode, messages)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// FuzzPack: whatever the messages, a task reads what was packed.
func FuzzPack(f *testing.F) {
	f.Add([]byte(`{"a": "$(SECRET)"}`), []byte("a\x00b"), []byte("\xff\xfe"), 1, true)
	f.Add([]byte("\u2028</script>"), []byte(""), []byte("\"\\\n"), 300, false)
	f.Add([]byte("\xed\xa0\x80"), []byte("\ufffd"), []byte("🚢"), 20_000, false)
	f.Fuzz(func(t *testing.T, a, b, c []byte, times int, file bool) {
		mode := PayloadAuto
		if file {
			mode = PayloadAsFile
		}
		const most = 1 << 20
		long := bytes.Repeat(a, 1+max(times, 0)%max(most/max(len(a), 1), 1))
		properties := map[string]string{"short": string(b), string(c): string(a), "long": string(long)}
		checkPack(t, mode, []Message{{ID: "m1", Body: b}, {ID: "m2", Body: long}, {ID: "m3", Body: c}, {ID: "m4", Body: a, Properties: properties}})
		checkPack(t, mode, []Message{{ID: "m1", Body: long, Properties: properties}, {ID: "m2", Body: b, Properties: properties}})
	})
}
