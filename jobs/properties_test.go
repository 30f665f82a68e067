package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// arrived is what a text becomes in JSON.
func arrived(text string) string { return string([]rune(text)) }

// checkProperties checks what a task is told of its message's properties: JSON, and how many are left out; either is empty where it is absent.
func checkProperties(t testing.TB, text, leftOut string, sent map[string]string) {
	t.Helper()
	missing := 0
	if leftOut != "" {
		var err error
		if missing, err = strconv.Atoi(leftOut); err != nil || missing < 1 {
			t.Fatalf("%q are left out", leftOut)
		}
	}
	if len(sent) == missing {
		if text != "" {
			t.Fatalf("properties %.200q, and none are to be there", text)
		}
		return
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("properties %.200q: %v", text, err)
	}
	byName := map[string][]string{}
	smallestOut, largestIn := -1, 0
	for name, value := range sent {
		byName[arrived(name)] = append(byName[arrived(name)], arrived(value))
		if _, ok := got[arrived(name)]; ok {
			largestIn = max(largestIn, len(name)+len(value))
		} else if smallestOut < 0 || len(name)+len(value) < smallestOut {
			smallestOut = len(name) + len(value)
		}
	}
	for name, value := range got {
		if !slices.Contains(byName[name], value) {
			t.Errorf("property %.80q is %.80q, want one of %.200q", name, value, byName[name])
		}
	}
	distinct := len(byName) == len(sent) // names can become the same once they are text
	if distinct && (len(got)+missing != len(sent) || smallestOut >= 0 && smallestOut < largestIn) {
		t.Errorf("%d properties are there and %d left out of %d; the largest that is there has %d bytes, the smallest that is not has %d",
			len(got), missing, len(sent), largestIn, smallestOut)
	}
	if slices.ContainsFunc([]byte(text), func(b byte) bool { return b < ' ' }) {
		t.Errorf("properties %.200q cannot be in an environment", text)
	}
}

// checkSizes checks that Kubernetes and Linux take what a Job and its Secret carry.
func checkSizes(t testing.TB, job *batchv1.Job, secret *corev1.Secret) {
	t.Helper()
	inSecret, literals := 0, 0
	length := map[string]int{}
	if secret != nil {
		for key, data := range secret.Data {
			inSecret += len(data)
			length[key] = len(data)
		}
	}
	for _, c := range slices.Concat(job.Spec.Template.Spec.InitContainers, job.Spec.Template.Spec.Containers) {
		for _, v := range c.Env {
			value := len(strings.ReplaceAll(v.Value, "$$", "$"))
			if v.ValueFrom != nil {
				value = length[v.ValueFrom.SecretKeyRef.Key]
			}
			if len(v.Name)+value+len("=\x00") > 131_072 {
				t.Errorf("%s has %d bytes", v.Name, value)
			}
			switch v.Name {
			case EnvPayload, EnvProperties:
				literals += len(v.Value)
			}
		}
	}
	if inSecret > corev1.MaxSecretSize || literals > 1<<20 {
		t.Errorf("%d bytes in the Secret and %d as literals", inSecret, literals)
	}
}

// jsonOf is a property, alone, that makes JSON of so many bytes.
func jsonOf(of string, n int) map[string]string {
	return map[string]string{"k": strings.Repeat(of, n-len(`{"k":""}`))}
}

// TestProperties: what a task finds, in each mode.
func TestProperties(t *testing.T) {
	inJob := map[PayloadMode]string{
		PayloadAuto: "literal, literal properties", PayloadEnv: "literal, literal properties",
		PayloadSecret: "secret variable, secret properties, Secret", PayloadAsFile: "file, secret properties, volume, Secret",
	}
	inSecret := map[PayloadMode]string{
		PayloadAuto: "literal, secret properties, Secret", PayloadEnv: "literal, secret properties, Secret",
		PayloadSecret: inJob[PayloadSecret], PayloadAsFile: inJob[PayloadAsFile],
	}
	none := map[PayloadMode]string{PayloadAuto: literal, PayloadEnv: literal, PayloadSecret: fromSecret, PayloadAsFile: asFile}
	tests := map[string]struct {
		properties map[string]string
		want       string
		form       map[PayloadMode]string
	}{
		"none":             {nil, "", none},
		"no fields":        {map[string]string{}, "", none},
		"sorted":           {map[string]string{"b": "2", "a": "1", "B": ""}, `{"B":"","a":"1","b":"2"}`, inJob},
		"no name":          {map[string]string{"": "x"}, `{"":"x"}`, inJob},
		"dollars":          {map[string]string{"$(A)": "$(SECRET) $$ $"}, `{"$(A)":"$(SECRET) $$ $"}`, inJob},
		"HTML":             {map[string]string{"<&>": "</script>"}, `{"<&>":"</script>"}`, inJob},
		"quotes and lines": {map[string]string{`"\`: "a\r\n\t'`"}, `{"\"\\":"a\r\n\t'` + "`" + `"}`, inJob},
		"NUL":              {map[string]string{"a\x00": "\x00"}, `{"a\u0000":"\u0000"}`, inJob},
		"invalid UTF-8":    {map[string]string{"\xff": "a\xff\xfe"}, `{"\ufffd":"a\ufffd\ufffd"}`, inJob},
		"letters":          {map[string]string{"größe": "漢🚢"}, `{"größe":"漢🚢"}`, inJob},
		"large":            {jsonOf("$", 5000), `{"k":"` + strings.Repeat("$", 4992) + `"}`, inSecret},
		"large in all, not in any": {
			map[string]string{"a": strings.Repeat("a", 3000), "b": strings.Repeat("b", 3000)},
			`{"a":"` + strings.Repeat("a", 3000) + `","b":"` + strings.Repeat("b", 3000) + `"}`, inSecret,
		},
	}
	template := testTemplate(t)
	for name, test := range tests {
		for _, mode := range modes {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				sent := maps.Clone(test.properties)
				if got := arriveWith(t, template, mode, []byte("x"), test.properties); got != test.form[mode] {
					t.Errorf("they come as %q, want %q", got, test.form[mode])
				}
				c := content(t, mode, []byte("x"))
				c.AddProperties(mode, test.properties)
				job, secret := newJob(t, template, Task{Identity: testID, Content: c})
				for _, container := range see(t, job, secret) {
					got, ok := container.env["LIGHTERMAN_PROPERTIES"]
					if _, leftOut := container.env["LIGHTERMAN_PROPERTIES_LEFT_OUT"]; got != test.want || ok != (test.want != "") || leftOut {
						t.Errorf("LIGHTERMAN_PROPERTIES is %.200q, %v, want %.200q; left out: %v", got, ok, test.want, leftOut)
					}
				}
				if diff := cmp.Diff(sent, test.properties); diff != "" {
					t.Errorf("the message itself was changed:\n%s", diff)
				}
			})
		}
	}
}

// TestPropertiesLimits: each limit, a byte below, exactly and a byte above it.
func TestPropertiesLimits(t *testing.T) {
	const (
		inJob    = "literal, literal properties"
		inSecret = "literal, secret properties, Secret"
		both     = "secret variable, secret properties, Secret"
		filed    = "file, secret properties, volume, Secret"
		mixed    = "file, literal properties, volume, Secret"
		base64   = "literal, base64, literal properties"
	)
	tests := map[string]struct {
		mode       PayloadMode
		payload    string
		of         string // repeated in the one property
		below      int    // bytes of JSON
		containers int    // 1 where it is 0
		want       [3]string
	}{
		"small, auto":                    {PayloadAuto, "x", "a", 4095, 0, [3]string{inJob, inJob, inSecret}},
		"small, env":                     {PayloadEnv, "x", "a", 4095, 0, [3]string{inJob, inJob, inSecret}},
		"small, counted before escaping": {PayloadAuto, "x", "$", 4095, 0, [3]string{inJob, inJob, inSecret}},
		"secret has no such limit":       {PayloadSecret, "x", "a", 4095, 0, [3]string{both, both, both}},
		"environment, auto":              {PayloadAuto, "x", "a", 131_048, 0, [3]string{inSecret, inSecret, literal}},
		"environment, env":               {PayloadEnv, "x", "$", 131_048, 0, [3]string{inSecret, inSecret, literal}},
		"environment, secret":            {PayloadSecret, "x", "a", 131_048, 0, [3]string{both, both, fromSecret}},
		"environment, file":              {PayloadAsFile, "x", "a", 131_048, 0, [3]string{filed, filed, asFile}},
		"beside the longest variable": {
			PayloadAuto, strings.Repeat("p", 131_056), "a", 131_048, 0, [3]string{both, both, fromSecret},
		},
		"beside the longest variable, env": {
			PayloadEnv, strings.Repeat("p", 131_056), "a", 131_048, 0, [3]string{inSecret, inSecret, literal},
		},
		"Secret":                  {PayloadSecret, strings.Repeat("p", 1<<20-100_000), "a", 99_999, 0, [3]string{filed, filed, asFile}},
		"Secret, file":            {PayloadAsFile, strings.Repeat("p", 1<<20-9), "a", 8, 0, [3]string{filed, filed, asFile}},
		"Secret, auto":            {PayloadAuto, strings.Repeat("p", 1<<20-5000), "a", 4999, 0, [3]string{filed, filed, asFile}},
		"full Secret, auto":       {PayloadAuto, strings.Repeat("p", 1<<20), "a", 4095, 0, [3]string{mixed, mixed, asFile}},
		"base64":                  {PayloadEnv, strings.Repeat("\xff", 98_292), "a", 4095, 0, [3]string{base64, base64, "literal, base64, secret properties, Secret"}},
		"16 containers":           {PayloadEnv, strings.Repeat("p", 65_536-4000), "a", 3999, 16, [3]string{inJob, inJob, inSecret}},
		"16 containers, escaped":  {PayloadEnv, strings.Repeat("$", 32_768-4000), "$", 4003, 16, [3]string{inJob, inJob, inSecret}},
		"16 containers, full":     {PayloadEnv, strings.Repeat("p", 65_536), "a", 8, 16, [3]string{inSecret, inSecret, inSecret}},
		"16 containers, too long": {PayloadEnv, strings.Repeat("p", 65_536), "a", 131_048, 16, [3]string{inSecret, inSecret, literal}},
		"256 containers, beside a full Secret": { // with the 27 bytes of KEDA_TASK_DATA_FILE
			PayloadAuto, strings.Repeat("p", 1<<20), "a", 4068, 256, [3]string{mixed, mixed, asFile},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			template := manyContainers(t, max(test.containers, 1))
			for i, want := range test.want {
				properties := jsonOf(test.of, test.below+i)
				if got := arriveWith(t, template, test.mode, []byte(test.payload), properties); got != want {
					t.Errorf("%d bytes come as %q, want %q", test.below+i, got, want)
				}
			}
		})
	}
}

// TestPropertiesDoNotRefuse: a payload that is refused is so by itself, and told to be.
func TestPropertiesDoNotRefuse(t *testing.T) {
	template := manyContainers(t, 16)
	payload := []byte(strings.Repeat("p", 65_537))
	alone := arrive(t, template, PayloadEnv, payload)
	if with := arriveWith(t, template, PayloadEnv, payload, jsonOf("a", 4000)); with != alone || !strings.Contains(alone, "1048592 bytes") {
		t.Errorf("with properties: %s; without: %s", with, alone)
	}
}

// TestPropertiesLeftOut: the largest go first, the others stay as they are, and how many have gone is told.
func TestPropertiesLeftOut(t *testing.T) {
	long := func(n int) string { return strings.Repeat("v", n) }
	many := map[string]string{}
	for i := range 10_000 {
		many[fmt.Sprintf("%04d", i)] = long(9)
	}
	few := maps.Clone(many)
	for i := 6897; i < 10_000; i++ { // 19 bytes each, with the comma
		delete(few, fmt.Sprintf("%04d", i))
	}
	tests := map[string]struct {
		properties map[string]string
		want       map[string]string
		leftOut    string
	}{
		"the largest":       {map[string]string{"tenant": "a", "blob": long(200_000), "z": "b"}, map[string]string{"tenant": "a", "z": "b"}, "1"},
		"names count":       {map[string]string{"tenant": "a", long(200_000): ""}, map[string]string{"tenant": "a"}, "1"},
		"one of two":        {map[string]string{"a": long(70_000), "b": long(70_001)}, map[string]string{"a": long(70_000)}, "1"},
		"by name":           {map[string]string{"b": long(70_000), "a": long(70_000)}, map[string]string{"a": long(70_000)}, "1"},
		"no more than must": {map[string]string{"a": long(60_000), "b": long(60_000), "c": long(60_000), "d": ""}, map[string]string{"a": long(60_000), "b": long(60_000), "d": ""}, "1"},
		"all":               {map[string]string{"a": long(131_049), "b": long(200_000)}, nil, "2"},
		"as JSON counts":    {map[string]string{"a": "x", "n": strings.Repeat("\x00", 30_000)}, map[string]string{"a": "x"}, "1"},
		"many":              {many, few, strconv.Itoa(10_000 - len(few))},
	}
	for name, test := range tests {
		for _, mode := range modes {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				c := content(t, mode, []byte("x"))
				c.AddProperties(mode, test.properties)
				job, secret := newJob(t, testTemplate(t), Task{Identity: testID, Content: c})
				env := see(t, job, secret)[0].env
				var got map[string]string
				if text, ok := env[EnvProperties]; ok {
					if err := json.Unmarshal([]byte(text), &got); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(test.want, got); diff != "" || env[EnvPropertiesLeftOut] != test.leftOut {
					t.Errorf("%s are left out, want %s; properties (-want +got):\n%.1000s", env[EnvPropertiesLeftOut], test.leftOut, diff)
				}
				checkProperties(t, env[EnvProperties], env[EnvPropertiesLeftOut], test.properties)
			})
		}
	}
}

// TestPropertiesAreProvidedAgain: whoever finds a Job without its Secret makes one of the message alone (see dispatcher), and it must have what the Job
// refers to.
func TestPropertiesAreProvidedAgain(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 4097, 131_056, 131_057, 1<<20 - 131_049, 1<<20 - 4097, 1<<20 - 4096, 1<<20 - 8, 1 << 20} {
		for _, m := range []int{8, 4096, 4097, 131_049, 131_050} {
			for _, mode := range modes {
				for _, containers := range []int{1, 8, 300} {
					payload := bytes.Repeat([]byte("p"), n)
					properties := jsonOf("$", m)
					c, err := NewContent(mode, payload)
					if err != nil {
						continue // as tested elsewhere
					}
					c.AddProperties(mode, properties)
					template := manyContainers(t, containers)
					job, secret, err := template.Job(Task{Identity: testID, Content: c})
					if err != nil || secret == nil {
						continue
					}
					again := content(t, PayloadAsFile, payload)
					again.AddProperties(PayloadAsFile, properties)
					all := see(t, job, template.Secret(job, again))
					if diff := cmp.Diff(see(t, job, secret)[0], all[0], sameSeen); diff != "" {
						t.Errorf("%d bytes with %d of properties, %s, %d containers (-first +again):\n%.500s", n, m, mode, containers, diff)
					}
				}
			}
		}
	}
}

// TestPropertiesOfPacks: a pack's line has the properties as far as a line has room for them.
func TestPropertiesOfPacks(t *testing.T) {
	const frame = len(`{"id":"m0","attempt":1,"data":"","properties":}` + "\n")
	const bare = len(`{"id":"m0","attempt":1,"data":""}` + "\n")
	text := func(n int) []byte { return bytes.Repeat([]byte("a"), n) }
	two := func(n int) map[string]string {
		return map[string]string{"t": "x", "u": strings.Repeat("v", n-len(`{"t":"x","u":""}`))}
	}
	tests := map[string]struct {
		m       Message
		want    string // the properties, or their size
		leftOut string
		size    int // of the line; 0: not checked
	}{
		"exactly":                {Message{Body: text(1000), Properties: two(917_504 - frame - 1000)}, "916456", "", 917_504},
		"by one":                 {Message{Body: text(1000), Properties: two(917_504 - frame - 1000 + 1)}, `{"t":"x"}`, "1", 0},
		"far":                    {Message{Body: text(1000), Properties: two(2_000_000)}, `{"t":"x"}`, "1", 0},
		"longer than a variable": {Message{Body: text(10), Properties: two(131_050)}, "131050", "", 0},
		"largest payload":        {Message{Body: text(917_504 - bare), Properties: two(100)}, "", "2", 917_504 + len(`,"properties_left_out":2`)},
		"largest but one":        {Message{Body: text(917_504 - bare - 1), Properties: two(100)}, "", "2", 917_504 + len(`,"properties_left_out":2`) - 1},
		"room for the notice":    {Message{Body: text(917_504 - bare - len(`,"properties_left_out":2`)), Properties: two(100)}, "", "2", 917_504},
		"room for one": {
			Message{Body: text(917_504 - frame - len(`{"t":"x"},"properties_left_out":4294967295`)), Properties: two(100)}, `{"t":"x"}`, "1", 0,
		},
		"room for none": {
			Message{Body: text(917_504 - frame - len(`{"t":"x"},"properties_left_out":4294967295`) + 1), Properties: two(100)}, "", "2", 0,
		},
		"base64": {
			Message{Body: bytes.Repeat([]byte{0xff}, (917_504-bare-len("_base64"))/4*3), Properties: two(100)}, "", "2", 0,
		},
	}
	for name, test := range tests {
		for _, mode := range []PayloadMode{PayloadAuto, PayloadAsFile} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				test.m.ID = "m0"
				last := Message{ID: "m1", Body: []byte("x"), Properties: map[string]string{"a": "b"}}
				p := packOf(t, mode, 1, test.m)
				if test.size > 0 && p.Size() != test.size {
					t.Errorf("the line has %d bytes, want %d", p.Size(), test.size)
				}
				messages := []Message{test.m}
				fits := p.Size()+len(`{"id":"m1","attempt":1,"data":"x","properties":{"a":"b"}}`)+1 <= MaxPackLines
				if p.Add(last) {
					messages = append(messages, last)
				}
				if fits != (len(messages) == 2) {
					t.Errorf("another was taken: %v, want %v", len(messages) == 2, fits)
				}
				container := packJob(t, p, messages...)
				_, properties, leftOut := unpack(t, container)
				if got := properties[0]; got != test.want && strconv.Itoa(len(got)) != test.want || leftOut[0] != test.leftOut {
					t.Errorf("properties %.80q of %d bytes, %q left out; want %q, %q", got, len(got), leftOut[0], test.want, test.leftOut)
				}
				checkProperties(t, properties[0], leftOut[0], test.m.Properties)
				if len(messages) < 2 {
					return
				}
				// Behind another message it is refused, or says the same.
				second := packOf(t, mode, 1, last)
				if second.Add(test.m) && !bytes.HasSuffix(second.lines.Bytes(), p.lines.Bytes()[:bytes.IndexByte(p.lines.Bytes(), '\n')+1]) {
					t.Error("its line is another one behind another message")
				}
			})
		}
	}
}

// TestNoPropertiesCostNothing: most messages have none.
func TestNoPropertiesCostNothing(t *testing.T) {
	c := content(t, PayloadAuto, []byte("x"))
	p := NewPack(PayloadAuto, 1)
	if n := testing.AllocsPerRun(100, func() {
		c.AddProperties(PayloadAuto, nil)
		p.addProperties(nil, 1000)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestPropertiesInTheDocument: docs/payload.md shows what a task finds.
func TestPropertiesInTheDocument(t *testing.T) {
	document, err := os.ReadFile("../docs/payload.md")
	if err != nil {
		t.Fatal(err)
	}
	properties := map[string]string{"tenant": "blue", "content-type": "application/json", "price": "$5"}
	c := content(t, PayloadAuto, []byte("x"))
	c.AddProperties(PayloadAuto, properties)
	job, secret := newJob(t, testTemplate(t), Task{Identity: testID, Content: c})
	variable := see(t, job, secret)[0].env[EnvProperties]
	m := Message{ID: "1764000000000-3", Body: []byte("three"), EnqueuedAt: at, Properties: properties}
	line := string(packJob(t, packOf(t, PayloadAuto, 1, m), m).files[PackFile])
	for _, want := range []string{"LIGHTERMAN_PROPERTIES=" + variable + "\n", "\n" + line} {
		if !strings.Contains(string(document), want) {
			t.Errorf("docs/payload.md does not show %s", want)
		}
	}
}
