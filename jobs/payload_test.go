package jobs

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// seen is what a container would find of its task.
type seen struct {
	env   map[string]string
	files map[string][]byte
}

// see resolves the variables and files of all containers of a Job. It takes the place of a kubelet that knows of one Secret, and of no $(NAME):
// bench/payload has the kubelet's own expansion do it.
func see(t testing.TB, job *batchv1.Job, secret *corev1.Secret) []seen {
	t.Helper()
	value := func(name, key string) []byte {
		if secret == nil || secret.Name != name || secret.Namespace != job.Namespace {
			t.Fatalf("there is no Secret %s", name)
		}
		data, ok := secret.Data[key]
		if !ok {
			t.Fatalf("the Secret has no key %s", key)
		}
		return data
	}
	var all []seen
	for _, c := range slices.Concat(job.Spec.Template.Spec.InitContainers, job.Spec.Template.Spec.Containers) {
		s := seen{env: map[string]string{}, files: map[string][]byte{}}
		for _, v := range c.Env {
			if v.ValueFrom != nil {
				s.env[v.Name] = string(value(v.ValueFrom.SecretKeyRef.Name, v.ValueFrom.SecretKeyRef.Key))
				continue
			}
			if strings.Contains(strings.ReplaceAll(v.Value, "$$", ""), "$") && v.Name != "ARGS" {
				t.Fatalf("%s has a dollar sign that is not doubled, which Kubernetes may expand", v.Name)
			}
			s.env[v.Name] = strings.ReplaceAll(v.Value, "$$", "$")
		}
		for _, m := range c.VolumeMounts {
			for _, v := range job.Spec.Template.Spec.Volumes {
				if v.Name != m.Name {
					continue
				}
				for _, item := range v.Secret.Items {
					s.files[path.Join(m.MountPath, item.Path)] = value(v.Secret.SecretName, item.Key)
				}
			}
		}
		all = append(all, s)
	}
	return all
}

// payload is that of the one message, read as the documentation says.
func (s seen) payload(t testing.TB) []byte {
	t.Helper()
	if at, ok := s.env[EnvPayloadFile]; ok {
		data, ok := s.files[at]
		if !ok {
			t.Fatalf("there is no file %s", at)
		}
		return data
	}
	value, ok := s.env[EnvPayload]
	switch {
	case !ok:
		t.Fatal("there is no payload")
	case s.env[EnvPayloadEncoding] == "base64":
		data, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return []byte(value)
}

func names(env []corev1.EnvVar) []string {
	all := make([]string, len(env))
	for i, v := range env {
		all[i] = v.Name
	}
	return all
}

// form names the way in which a payload comes, as it looks to a container and in the API.
func form(job *batchv1.Job, secret *corev1.Secret) string {
	var parts []string
	for _, v := range job.Spec.Template.Spec.Containers[0].Env {
		switch {
		case v.Name == EnvPayload && v.ValueFrom != nil:
			parts = append(parts, "secret variable")
		case v.Name == EnvPayload:
			parts = append(parts, "literal")
		case v.Name == EnvPayloadEncoding:
			parts = append(parts, v.Value)
		case v.Name == EnvPayloadFile:
			parts = append(parts, "file")
		case v.Name == EnvProperties && v.ValueFrom != nil:
			parts = append(parts, "secret properties")
		case v.Name == EnvProperties:
			parts = append(parts, "literal properties")
		}
	}
	if len(job.Spec.Template.Spec.Volumes) > 0 {
		parts = append(parts, "volume")
	}
	if secret != nil {
		parts = append(parts, "Secret")
	}
	return strings.Join(parts, ", ")
}

const (
	literal    = "literal"
	encoded    = "literal, base64"
	fromSecret = "secret variable, Secret"
	asFile     = "file, volume, Secret"
)

var modes = []PayloadMode{PayloadAuto, PayloadEnv, PayloadSecret, PayloadAsFile}

// arrive makes a Job with a payload, checks that every container is given exactly that, and says in which form; or what the error is.
func arrive(t testing.TB, template *Template, mode PayloadMode, payload []byte) string {
	t.Helper()
	return arriveWith(t, template, mode, payload, nil)
}

// arriveWith is arrive for a payload with properties.
func arriveWith(t testing.TB, template *Template, mode PayloadMode, payload []byte, properties map[string]string) string {
	t.Helper()
	kept := bytes.Clone(payload)
	c, err := NewContent(mode, payload)
	var job *batchv1.Job
	var secret *corev1.Secret
	if err == nil {
		c.AddProperties(mode, properties)
		job, secret, err = template.Job(Task{Identity: testID, Content: c})
	}
	if err != nil {
		if !errors.Is(err, ErrPayload) || Class(err) != "payload" || Rejected(err) {
			t.Errorf("error %v, want ErrPayload", err)
		}
		if len(payload) > 8 && strings.Contains(err.Error(), string(payload)) {
			t.Error("the payload is in the error, and so in logs and Events")
		}
		return err.Error()
	}
	for i, container := range see(t, job, secret) {
		if !bytes.Equal(container.payload(t), kept) {
			t.Errorf("container %d reads another payload of %d bytes, not the one of %d", i, len(container.payload(t)), len(kept))
		}
		if container.env["ARGS"] != "" && container.env["ARGS"] != "--event=$(KEDA_TASK_DATA)" {
			t.Errorf("the template's own variable became %q", container.env["ARGS"])
		}
		checkProperties(t, container.env[EnvProperties], container.env[EnvPropertiesLeftOut], properties)
	}
	checkSizes(t, job, secret)
	if NeedsSecret(job) != (secret != nil) {
		t.Errorf("the Job says that it needs a Secret: %v; there is one: %v", NeedsSecret(job), secret != nil)
	}
	return form(job, secret)
}

func testTemplate(t testing.TB) *Template {
	t.Helper()
	template, err := FromCronJob(cronJob(), keepAll)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

// manyContainers is a template with init containers among its containers.
func manyContainers(t testing.TB, n int) *Template {
	t.Helper()
	c := cronJob()
	pod := &c.Spec.JobTemplate.Spec.Template.Spec
	pod.InitContainers, pod.Containers = nil, nil
	for i := range n {
		container := corev1.Container{Name: fmt.Sprint("c", i)}
		if i%3 == 1 {
			pod.InitContainers = append(pod.InitContainers, container)
		} else {
			pod.Containers = append(pod.Containers, container)
		}
	}
	template, err := FromCronJob(c, keepAll)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

// TestPayloadModes: what comes in which form, and that it comes unchanged.
func TestPayloadModes(t *testing.T) {
	large := strings.Repeat("größer$(HOME) ", 400)
	tests := map[string]struct {
		payload string
		want    map[PayloadMode]string
	}{
		"small text": {"{\"to\": \"$(SECRET)\", \"cost\": \"$$5\"}\n'`\\ größer 漢字 🚢\r\n", map[PayloadMode]string{
			PayloadAuto: literal, PayloadEnv: literal, PayloadSecret: fromSecret, PayloadAsFile: asFile,
		}},
		"empty": {"", map[PayloadMode]string{
			PayloadAuto: literal, PayloadEnv: literal, PayloadSecret: fromSecret, PayloadAsFile: asFile,
		}},
		"large text": {large, map[PayloadMode]string{
			PayloadAuto: fromSecret, PayloadEnv: literal, PayloadSecret: fromSecret, PayloadAsFile: asFile,
		}},
		"NUL": {"a\x00$(B)", map[PayloadMode]string{
			PayloadAuto: asFile, PayloadEnv: encoded, PayloadSecret: asFile, PayloadAsFile: asFile,
		}},
		"only NUL": {"\x00", map[PayloadMode]string{
			PayloadAuto: asFile, PayloadEnv: encoded, PayloadSecret: asFile, PayloadAsFile: asFile,
		}},
		"invalid UTF-8": {"a\xff\xfe", map[PayloadMode]string{
			PayloadAuto: asFile, PayloadEnv: encoded, PayloadSecret: asFile, PayloadAsFile: asFile,
		}},
		"a surrogate, which is no UTF-8": {"\xed\xa0\x80", map[PayloadMode]string{
			PayloadAuto: asFile, PayloadEnv: encoded, PayloadSecret: asFile, PayloadAsFile: asFile,
		}},
		"the mark of what is no UTF-8, itself": {"\ufffd\ufeff", map[PayloadMode]string{
			PayloadAuto: literal, PayloadEnv: literal, PayloadSecret: fromSecret, PayloadAsFile: asFile,
		}},
	}
	template := testTemplate(t)
	for name, test := range tests {
		for _, mode := range modes {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				if got := arrive(t, template, mode, []byte(test.payload)); got != test.want[mode] {
					t.Errorf("it comes as %q, want %q", got, test.want[mode])
				}
			})
		}
	}
}

// TestPayloadLimits: each limit, a byte below, exactly and a byte above it.
func TestPayloadLimits(t *testing.T) {
	const (
		a, binary, nul, dollar = "a", "\xff", "\x00", "$"
		inSecret               = "and a Secret holds 1048576 at most"
		inEnv                  = "and an environment variable carries 131056 at most, nor is there room for its base64 of 174744 bytes; with payload: auto"
		inBase64               = "nor is there room for its base64 of 131060 bytes"
		inJob                  = "and a Job has room for 1048576; with payload: auto it would come from a Secret"
	)
	tests := map[string]struct {
		mode       PayloadMode
		of         string // repeated
		below      int    // bytes of the payload
		containers int    // 1 where it is 0
		want       [3]string
	}{
		"small":                            {PayloadAuto, a, 4095, 0, [3]string{literal, literal, fromSecret}},
		"small, counted before escaping":   {PayloadAuto, dollar, 4095, 0, [3]string{literal, literal, fromSecret}},
		"auto, environment":                {PayloadAuto, a, 131055, 0, [3]string{fromSecret, fromSecret, asFile}},
		"secret, environment":              {PayloadSecret, a, 131055, 0, [3]string{fromSecret, fromSecret, asFile}},
		"env, environment":                 {PayloadEnv, a, 131055, 0, [3]string{literal, literal, inEnv}},
		"env, counted as it arrives":       {PayloadEnv, dollar, 131055, 0, [3]string{literal, literal, inEnv}},
		"env, base64 of what is no UTF-8":  {PayloadEnv, binary, 98291, 0, [3]string{encoded, encoded, inBase64}},
		"env, base64 of what has a NUL":    {PayloadEnv, nul, 98291, 0, [3]string{encoded, encoded, inBase64}},
		"auto, Secret":                     {PayloadAuto, a, 1048575, 0, [3]string{asFile, asFile, inSecret}},
		"auto, Secret, binary":             {PayloadAuto, binary, 1048575, 0, [3]string{asFile, asFile, inSecret}},
		"secret, Secret":                   {PayloadSecret, a, 1048575, 0, [3]string{asFile, asFile, inSecret}},
		"file, Secret":                     {PayloadAsFile, a, 1048575, 0, [3]string{asFile, asFile, inSecret}},
		"16 containers":                    {PayloadEnv, a, 65535, 16, [3]string{literal, literal, inJob}},
		"16 containers, counted escaped":   {PayloadEnv, dollar, 32767, 16, [3]string{literal, literal, inJob}},
		"16 containers, from a Secret":     {PayloadSecret, a, 65535, 16, [3]string{fromSecret, fromSecret, fromSecret}},
		"16 containers, auto":              {PayloadAuto, a, 65535, 16, [3]string{fromSecret, fromSecret, fromSecret}},
		"8 containers take what one takes": {PayloadEnv, a, 131055, 8, [3]string{literal, literal, inEnv}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			template := manyContainers(t, max(test.containers, 1))
			for i, want := range test.want {
				n := test.below + i
				got := arrive(t, template, test.mode, []byte(strings.Repeat(test.of, n)))
				if got != want && (!strings.Contains(got, want) || !strings.Contains(got, "payload refused")) {
					t.Errorf("%d bytes come as %q, want %q", n, got, want)
				}
			}
		})
	}
}

// TestRefusalsSayWhy: the error's reader has a message and its size, and must learn what to change.
func TestRefusalsSayWhy(t *testing.T) {
	tests := map[string]struct {
		mode    PayloadMode
		payload []byte
		want    string
	}{
		"NUL": {PayloadEnv, append(bytes.Repeat([]byte("a"), 100_000), 0), "payload refused: byte 100000 is NUL, which an environment variable cannot carry, " +
			"nor is there room for its base64 of 133336 bytes; with payload: auto it would come as a file"},
		"invalid UTF-8": {PayloadEnv, bytes.Repeat([]byte{0xff}, 100_000), "payload refused: it is not valid UTF-8, which an environment variable must be, " +
			"nor is there room for its base64 of 133336 bytes; with payload: auto it would come as a file"},
		"too large": {PayloadAuto, make([]byte, 2<<20), "payload refused: it has 2097152 bytes, and a Secret holds 1048576 at most"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := NewContent(test.mode, test.payload); err == nil || err.Error() != test.want {
				t.Errorf("error %v, want %s", err, test.want)
			}
		})
	}
}

// TestEnvironmentStringOfLinux: the longest value that is put into a variable is the longest that a process can be started with.
func TestEnvironmentStringOfLinux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the limit is that of Linux")
	}
	start := func(name string, n int) error {
		cmd := exec.CommandContext(t.Context(), "/bin/true")
		cmd.Env = []string{name + "=" + strings.Repeat("a", n)}
		return cmd.Run()
	}
	for name, most := range map[string]int{EnvPayload: maxEnvPayload, EnvProperties: maxEnvProperties} {
		if err := start(name, most); err != nil {
			t.Errorf("%s of %d bytes: %v", name, most, err)
		}
		if err := start(name, most+1); !errors.Is(err, syscall.E2BIG) {
			t.Errorf("%s of one byte more: %v, want that it is too long", name, err)
		}
	}
}

// TestPayloadVolume: the file is read-only, of a Secret's one key, and in every container.
func TestPayloadVolume(t *testing.T) {
	template := testTemplate(t)
	job, secret := newJob(t, template, Task{Identity: testID, Content: content(t, PayloadAsFile, []byte("x"))})
	want := []corev1.Volume{{Name: "lighterman-payload", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: job.Name, DefaultMode: ptr.To[int32](0o444), Items: []corev1.KeyToPath{{Key: "payload", Path: "payload"}},
	}}}}
	if diff := cmp.Diff(want, job.Spec.Template.Spec.Volumes); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	containers := slices.Concat(job.Spec.Template.Spec.InitContainers, job.Spec.Template.Spec.Containers)
	for _, c := range containers {
		want := []corev1.VolumeMount{{Name: "lighterman-payload", MountPath: "/var/run/lighterman", ReadOnly: true}}
		if diff := cmp.Diff(want, c.VolumeMounts); diff != "" {
			t.Errorf("mounts of container %s (-want +got):\n%s", c.Name, diff)
		}
	}
	if len(containers) != 3 {
		t.Errorf("%d containers, want 3", len(containers))
	}
	wantSecret := corev1.Secret{Immutable: ptr.To(true), Data: map[string][]byte{"payload": []byte("x")}}
	wantSecret.Namespace, wantSecret.Name, wantSecret.Labels = "ns", job.Name, map[string]string{LabelTemplate: "resize"}
	if diff := cmp.Diff(&wantSecret, secret); diff != "" {
		t.Errorf("Secret (-want +got):\n%s", diff)
	}
	// The template has none of it.
	other, otherSecret := newJob(t, template, Task{Identity: testID})
	if len(other.Spec.Template.Spec.Volumes) > 0 || len(other.Spec.Template.Spec.Containers[0].VolumeMounts) > 0 || otherSecret != nil || NeedsSecret(other) {
		t.Errorf("the next Job, of a small message, has volumes %v and Secret %v", other.Spec.Template.Spec.Volumes, otherSecret)
	}
}

func TestDecodeBase64(t *testing.T) {
	tests := map[string]struct {
		body string
		want string
		bad  bool
	}{
		"empty":                       {"", "", false},
		"text":                        {"eyJhIjogMX0=", `{"a": 1}`, false},
		"bytes":                       {"AP+A", "\x00\xff\x80", false},
		"broken into lines":           {"eyJh\r\nIjogMX0=\n", `{"a": 1}`, false},
		"text that is not encoded":    {`{"password": "hunter2"}`, "", true},
		"without its end":             {"eyJhIjogMX0", "", true},
		"more than its end":           {"eyJhIjogMX0=eyJh", "", true},
		"of the alphabet for URLs":    {"AP-A", "", true},
		"text that might be encoding": {"hunter2", "", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			body := []byte(test.body)
			got, err := DecodeBase64(body)
			if string(body) != test.body {
				t.Error("the message itself was changed")
			}
			switch {
			case test.bad:
				if !errors.Is(err, ErrPayload) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), test.body) {
					t.Errorf("%q, error %v; want ErrPayload without the message", got, err)
				}
			case err != nil || string(got) != test.want:
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// FuzzContent: whatever the payload, it comes as it is or is refused with an error that does not tell it. Whatever its properties, they do not stop it.
func FuzzContent(f *testing.F) {
	for mode := range modes {
		f.Add([]byte("{\"a\": \"$(SECRET) $$ $\"}"), 1, byte(mode), "", 0)
		f.Add([]byte("$\x00\xff"), 1, byte(mode), "$(SECRET)", 1)
		f.Add([]byte("ab"), 2048, byte(mode), "$\x00\xff<>\u2028", 400)
		f.Add([]byte("é"), 65529, byte(mode), "é", 65529)
		f.Add([]byte("\xc3"), 98293, byte(mode), "\xc3", 21841)
		f.Add([]byte("abcdefgh"), 131072, byte(mode), "x", 1)
		f.Add([]byte("abcdefgh"), 131073, byte(mode), "x", 2)
	}
	template := testTemplate(f)
	f.Fuzz(func(t *testing.T, seed []byte, times int, mode byte, property string, propertyTimes int) {
		const most = 9 << 17 // somewhat more than a Secret holds
		repeated := func(s []byte, n int) []byte { return bytes.Repeat(s, 1+max(n, 0)%max(most/max(len(s), 1), 1)) }
		payload := repeated(seed, times)
		var properties map[string]string
		if propertyTimes > 0 {
			long := string(repeated([]byte(property), propertyTimes))
			properties = map[string]string{"short": property, "long": long, property: "$", "$(SECRET)": string(seed)}
		}
		arriveWith(t, template, modes[int(mode)%len(modes)], payload, properties)
	})
}
