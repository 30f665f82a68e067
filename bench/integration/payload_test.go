package integration

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What docs/payload.md promises.
const (
	smallText  = 4096
	longestEnv = 131_056
	// longestBinary is of the payloads whose base64 fits a variable.
	longestBinary = 98_292
	largestFile   = 1 << 20
)

// probe says what a container finds: which of the variables, what kind of file, and what each reader of examples/payload makes of it.
const probe = `
for name in KEDA_TASK_DATA KEDA_TASK_DATA_FILE KEDA_TASK_DATA_ENCODING; do
  if printenv $name >/dev/null; then echo "has $name"; fi
done
if [ -n "$KEDA_TASK_DATA_FILE" ]; then
  echo "file $KEDA_TASK_DATA_FILE $(stat -L -c %a "$KEDA_TASK_DATA_FILE")"
  case $(LC_ALL=C touch "$KEDA_TASK_DATA_FILE.new" 2>&1) in *"Read-only file system"*) echo "read-only" ;; esac
fi
echo "password $DB_PASSWORD"
python3 -B "$READERS/read_task.py" && bash "$READERS/read_task.sh" && "$READERS_GO"`

// form is how a payload comes to a container.
type form string

const (
	asVariable form = "has KEDA_TASK_DATA\n"
	asBase64   form = "has KEDA_TASK_DATA\nhas KEDA_TASK_DATA_ENCODING\n"
	asFile     form = "has KEDA_TASK_DATA_FILE\nfile /var/run/lighterman/payload 444\nread-only\n"
)

// probed is what the probe prints of a message.
func probed(how form, id, payload string) string {
	sum := fmt.Sprintf("%s %x\n", id, sha256.Sum256([]byte(payload)))
	return string(how) + "password hunter2\n" + strings.Repeat(sum, 3)
}

// probing has a template's container run the probe. It also has a password, and an init container that must find the payload as well.
func probing(w *world, c *batchv1.CronJob) *batchv1.CronJob {
	w.Helper()
	readers := must[string](w)(filepath.Abs("../../examples/payload"))
	pod := &shell(c, probe).Spec.JobTemplate.Spec.Template.Spec
	pod.Containers[0].Env = []corev1.EnvVar{
		{Name: "READERS", Value: readers},
		{Name: "READERS_GO", Value: reader},
		{Name: "DB_PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "db"}, Key: "password",
		}}},
	}
	pod.InitContainers = []corev1.Container{{
		Name: "init", Image: "busybox", Command: []string{"sh", "-c", `test "${KEDA_TASK_DATA+variable}" || test -r "$KEDA_TASK_DATA_FILE"`},
	}}
	return c
}

// payloads are messages, and how they come in each mode; empty: not at all.
var payloads = []struct {
	body                    string
	auto, env, secret, file form
}{
	{"plain {\"to\": \"größer\"} \n", asVariable, asVariable, asVariable, asFile},
	{"$(DB_PASSWORD) $$(DB_PASSWORD) $$ $ $(KEDA_TASK_DATA) $DB_PASSWORD", asVariable, asVariable, asVariable, asFile},
	{"", asVariable, asVariable, asVariable, asFile},
	{strings.Repeat("$", smallText), asVariable, asVariable, asVariable, asFile},
	{strings.Repeat("$", smallText) + "(DB_PASSWORD)", asVariable, asVariable, asVariable, asFile},
	{strings.Repeat("x", longestEnv), asVariable, asVariable, asVariable, asFile},
	{strings.Repeat("x", longestEnv+1), asFile, "", asFile, asFile},
	{"a\x00b\x00", asFile, asBase64, asFile, asFile},
	{"a\xff\xfe\x80", asFile, asBase64, asFile, asFile},
	{strings.Repeat("\xff", longestBinary), asFile, asBase64, asFile, asFile},
	{strings.Repeat("\xff", longestBinary+1), asFile, "", asFile, asFile},
	{strings.Repeat("\x00\xff", largestFile/2), asFile, "", asFile, asFile},
	{strings.Repeat("x", largestFile+1), "", "", "", ""},
}

// In every mode each payload arrives byte for byte, in the variable or the file that the documentation promises, or is moved aside without an attempt.
func TestPayloadModes(t *testing.T) {
	w := newWorld(t)
	auto := w.withRedis("auto")
	w.createSecret("db", map[string]string{"password": "hunter2"})
	want, refused := map[string]string{}, map[string][]string{} // what is printed of each message; those that are moved aside, by stream
	streams := []*stream{auto, auto.named("env"), auto.named("secret"), auto.named("file")}
	for _, s := range streams {
		for _, p := range payloads {
			how := map[string]form{"auto": p.auto, "env": p.env, "secret": p.secret, "file": p.file}[s.name]
			id := s.add(p.body)
			if how == "" {
				refused[s.name] = append(refused[s.name], p.body)
				continue
			}
			want[s.name+" "+id] = probed(how, id, p.body)
		}
		c := probing(w, template(s.name, s.name))
		c.Annotations["lighterman.dev/payload"] = s.name
		c.Annotations["lighterman.dev/max-in-flight"] = "4"
		c.Annotations["lighterman.dev/max-attempts"] = "1"
		w.createCronJob(c)
	}
	runLighterman(t, w.namespace)
	for _, s := range streams {
		s.waitUntilEmpty()
	}

	got := map[string]string{}
	for _, r := range w.ran("") {
		got[r.template()+" "+r.ids()[0]] = r.text
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the containers found (-want +got):\n%s", diff)
	}
	for _, s := range streams {
		var bodies []string
		for _, m := range must[[]redis.XMessage](w)(poisoned(s)) {
			body, _ := m.Values["data"].(string)
			bodies = append(bodies, body)
			reason, _ := m.Values["lighterman-reason"].(string)
			if !strings.Contains(reason, strconv.Itoa(len(body))+" bytes") && !strings.Contains(reason, "not valid UTF-8") || m.Values["lighterman-attempts"] != "0" {
				t.Errorf("%s: a message of %d bytes was moved aside after %v attempts, because of: %s", s.name, len(body), m.Values["lighterman-attempts"], reason)
			}
		}
		slices.SortFunc(bodies, func(a, b string) int { return len(a) - len(b) })
		slices.SortFunc(refused[s.name], func(a, b string) int { return len(a) - len(b) })
		if !slices.Equal(bodies, refused[s.name]) {
			t.Errorf("%s: %d messages were moved aside, want %d", s.name, len(bodies), len(refused[s.name]))
		}
		w.waitForEvent(s.name, "PayloadRefused", "goes to the poison queue without an attempt", " bytes")
	}
	checkPayloadSecrets(w)
}

// checkPayloadSecrets checks the Secrets of all Jobs that there are: they are immutable, and belong to their Job. With it, they go.
func checkPayloadSecrets(w *world) {
	w.Helper()
	secrets := w.client.CoreV1().Secrets(w.namespace)
	var doomed string
	n := map[string]int{}
	for _, job := range w.jobs() {
		name := job.Labels["lighterman.dev/template"]
		secret, err := secrets.Get(w.Context(), job.Name, metav1.GetOptions{})
		if needed := job.Annotations["lighterman.dev/payload"] == "secret"; !needed && apierrors.IsNotFound(err) {
			continue
		} else if !needed || err != nil {
			w.Errorf("Job %s: there is a Secret, or an error: %v; needed: %v", job.Name, err, needed)
			continue
		}
		n[name]++
		if secret.Immutable == nil || !*secret.Immutable {
			w.Errorf("Secret %s is not immutable", secret.Name)
		}
		if owners := secret.OwnerReferences; len(owners) != 1 || owners[0].UID != job.UID || owners[0].Kind != "Job" || owners[0].Name != job.Name {
			w.Errorf("Secret %s belongs to %v, want its Job %s", secret.Name, owners, job.UID)
		}
		doomed = job.Name
	}
	// Of the modes env and auto there is none for what stands in the Job.
	if want := map[string]int{"auto": 8, "secret": 12, "file": 12}; !cmp.Equal(want, n) {
		w.Errorf("Secrets by template: %v, want %v", n, want)
	}
	background := metav1.DeletePropagationBackground
	if err := w.client.BatchV1().Jobs(w.namespace).Delete(w.Context(), doomed, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		w.Fatal(err)
	}
	w.eventually("the Secret goes with its Job", func(ctx context.Context) (bool, error) {
		_, err := secrets.Get(ctx, doomed, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

// What Azure Functions and its like write is decoded; what is no base64 is moved aside as it was stored, at once and with a reason.
func TestMessageEncoding(t *testing.T) {
	w := newWorld(t)
	q, connection := w.withQueue("encoded")
	w.createSecret("storage", map[string]string{"connection": connection})
	w.createSecret("db", map[string]string{"password": "hunter2"})
	c := probing(w, template("encoded", ""))
	c.Annotations = map[string]string{
		"lighterman.dev/source":            "azure-storage-queue",
		"lighterman.dev/queue":             "encoded",
		"lighterman.dev/connection-secret": "storage/connection",
		"lighterman.dev/message-encoding":  "base64",
	}
	want := map[string]string{}
	for body, how := range map[string]form{
		`{"to": "größer"} $(DB_PASSWORD)`: asVariable, "\x00\xff\xfe": asFile, strings.Repeat("$", 48<<10): asVariable,
	} {
		id := q.add(base64.StdEncoding.EncodeToString([]byte(body)))
		want[id] = probed(how, id, body)
	}
	undecodable := []string{"no base64!", "bm90IHBhZGRlZA"} // the second lacks its padding
	for _, text := range undecodable {
		q.add(text)
	}
	w.createCronJob(c)
	p := runLighterman(t, w.namespace)
	q.waitUntilEmpty()

	got := map[string]string{}
	for _, r := range w.ran("") {
		got[r.ids()[0]] = r.text
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the containers found (-want +got):\n%s", diff)
	}
	moved := must[*queue](w)(q.sibling("encoded-poison")).peek()
	slices.Sort(moved)
	if slices.Sort(undecodable); !slices.Equal(moved, undecodable) {
		t.Errorf("poison queue holds %q, want %q", moved, undecodable)
	}
	const reason = "it is not base64 as message-encoding says"
	w.waitForEvent("encoded", "PayloadRefused", "without an attempt", reason)
	p.waitForLog(reason)
}

func (q *queue) add(payload string) string {
	q.w.Helper()
	sent := must[azqueue.EnqueueMessagesResponse](q.w)(q.client.EnqueueMessage(q.w.Context(), payload, nil))
	return *sent.Messages[0].MessageID
}

// peek is the messages that the queue holds.
func (q *queue) peek() []string {
	q.w.Helper()
	number := int32(32)
	peeked := must[azqueue.PeekMessagesResponse](q.w)(q.client.PeekMessages(q.w.Context(), &azqueue.PeekMessagesOptions{NumberOfMessages: &number}))
	var texts []string
	for _, m := range peeked.Messages {
		texts = append(texts, *m.MessageText)
	}
	return texts
}

// A container is told of its message beside the payload, and a template's own values stand.
func TestContextVariables(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("context")
	own := s.named("own")
	const script = `env | grep -E '^(LIGHTERMAN_|TRACEPARENT=)' | sort; test "$LIGHTERMAN_ATTEMPT" -gt 1`
	c := shell(template(s.name, s.name), script)
	c.Annotations["lighterman.dev/retry-backoff"] = "100ms..100ms"
	w.createCronJob(c)
	c = shell(template(own.name, own.name), script)
	c.Annotations["lighterman.dev/retry-backoff"] = "100ms..100ms"
	c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: "LIGHTERMAN_SOURCE", Value: "mine"}, {Name: "TRACEPARENT", Value: "mine, after $(TRACEPARENT)"},
	}
	w.createCronJob(c)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	want := map[string]string{}
	expect := func(s *stream, id, source, properties string, more ...string) {
		millis := must[int64](w)(strconv.ParseInt(strings.TrimSuffix(id, "-0"), 10, 64))
		for _, attempt := range []int{1, 2} {
			lines := append([]string{
				fmt.Sprint("LIGHTERMAN_ATTEMPT=", attempt), "LIGHTERMAN_ENQUEUED_AT=" + time.UnixMilli(millis).UTC().Format(time.RFC3339Nano),
				"LIGHTERMAN_MESSAGE_ID=" + id, "LIGHTERMAN_PROPERTIES=" + properties, "LIGHTERMAN_SOURCE=" + source, "LIGHTERMAN_TASK_COUNT=1",
			}, more...)
			want[fmt.Sprint(s.name, " ", id, " ", attempt)] = strings.Join(lines, "\n") + "\n"
		}
	}
	source := "redis-streams://" + s.redis.Options().Addr + "/0/context?group=lighterman"
	expect(s, sent(s, "a", "traceparent", trace, "other", "x"), source, `{"other":"x","traceparent":"`+trace+`"}`, "TRACEPARENT="+trace)
	expect(s, sent(s, "b", "traceparent", "$(KUBERNETES_SERVICE_HOST)"), source, `{"traceparent":"$(KUBERNETES_SERVICE_HOST)"}`)
	expect(own, sent(own, "c", "traceparent", trace), "mine", `{"traceparent":"`+trace+`"}`, "TRACEPARENT=mine, after "+trace)
	runLighterman(t, w.namespace)
	s.waitUntilEmpty()
	own.waitUntilEmpty()
	got := map[string]string{}
	for _, r := range w.ran("") {
		got[fmt.Sprint(r.template(), " ", r.ids()[0], " ", r.attempt())] = r.text
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the containers are told (-want +got):\n%s", diff)
	}
}

// sent puts a message into a stream at a millisecond of its own, so that its id ends in -0.
func sent(s *stream, payload string, fields ...string) string {
	s.w.Helper()
	var id string
	s.w.eventually("a message has a millisecond of its own", func(ctx context.Context) (bool, error) {
		id = s.add(payload, fields...)
		if strings.HasSuffix(id, "-0") {
			return true, nil
		}
		return false, s.redis.XDel(ctx, s.name, id).Err()
	})
	return id
}

// A leader that dies between a Job and its Secret leaves a Job that waits. The next one makes up for it: the task runs, once.
func TestCrashBetweenJobAndSecret(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("between")
	packed := s.named("between-packs")
	kubeconfig := w.grant(rights())
	for _, s := range []*stream{s, packed} {
		c := shell(template(s.name, s.name), `cat "$KEDA_TASK_DATA_FILE"`)
		c.Annotations["lighterman.dev/payload"] = "file"
		c.Annotations["lighterman.dev/lease-duration"] = "5s"
		if s == packed {
			c.Annotations["lighterman.dev/tasks-per-job"] = "2"
		}
		w.createCronJob(c)
	}
	first := runLighterman(t, w.namespace, "--lock-duration", "3s", "--kubeconfig", kubeconfig)
	w.eventually("both templates dispatch", func(context.Context) (bool, error) { return len(first.logged("dispatching")) == 2, nil })
	w.quota("count/secrets", "1") // which there is
	s.send("one")
	packed.send("two", "three")
	w.eventually("both Jobs exist", func(context.Context) (bool, error) { return len(w.jobs()) == 2, nil })
	w.waitForEvent(s.name, "JobRejected", "creating Secret", "exceeded quota")
	w.waitForEvent(packed.name, "JobRejected", "creating Secret", "exceeded quota")
	first.kill()
	if got := w.payloadSecrets(); len(got) != 0 {
		t.Fatalf("there are Secrets already: %v", got)
	}

	second := runLighterman(t, w.namespace, "--lock-duration", "3s", "--kubeconfig", kubeconfig)
	w.waitForEvent(s.name, "Misconfigured", "would not take a Secret", "exceeded quota")
	w.quota("count/secrets", "")
	s.waitUntilEmpty()
	packed.waitUntilEmpty()
	runs := w.ran("")
	if len(runs) != 2 || len(w.jobs()) != 2 {
		t.Errorf("%d Jobs and %d pods, want 2 of each", len(w.jobs()), len(runs))
	}
	for _, r := range runs {
		switch {
		case r.attempt() != 1:
			t.Errorf("Job %s is attempt %d: the crash cost one", r.job.Name, r.attempt())
		case r.template() == s.name && r.text != "one":
			t.Errorf("the task was handed %q", r.text)
		case r.template() == packed.name && !containsAll(r.text, []string{`"two"`, `"three"`}):
			t.Errorf("the pack was handed %q", r.text)
		}
	}
	if strings.Contains(second.text(), "forbidden: User") {
		t.Error("the rights that the README lists are not enough")
	}
}

// payloadSecrets is the names of the Secrets that hold payloads.
func (w *world) payloadSecrets() []string {
	w.Helper()
	list := must[*corev1.SecretList](w)(w.client.CoreV1().Secrets(w.namespace).List(w.Context(), metav1.ListOptions{LabelSelector: "lighterman.dev/template"}))
	var names []string
	for _, secret := range list.Items {
		names = append(names, secret.Name)
	}
	return names
}

// A quota on Secrets that fills up stops dispatch, and costs nothing.
func TestQuotaOnSecretsFillsUp(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("full")
	c := template("full", s.name)
	c.Annotations["lighterman.dev/payload"] = "secret"
	c.Annotations["lighterman.dev/max-in-flight"] = "3"
	w.createCronJob(c)
	p := runLighterman(t, w.namespace)
	p.waitForLog("dispatching")
	w.quota("count/secrets", "2") // one of them is for Redis
	s.send("1", "2", "3", "4", "5", "6")
	w.waitForEvent("full", "JobRejected", "creating Secret", "exceeded quota", "messages wait in the queue")
	if got := p.metric(`lighterman_template_state{namespace=%q,state="blocked",template="cronjob/full"}`, w.namespace); got != "1" {
		t.Errorf("the metric of a blocked template is %q, want 1", got)
	}
	w.eventually("the one that has its Secret ends", func(context.Context) (bool, error) { return w.succeeded() == 1 && s.len() == 5, nil })
	if got := len(w.jobs()); got > 4 {
		t.Errorf("%d Jobs, though none can have its Secret", got)
	}
	w.quota("count/secrets", "")
	s.waitUntilEmpty()
	var got []string
	for _, r := range w.ran("") {
		if got = append(got, r.text); r.attempt() != 1 {
			t.Errorf("Job %s is attempt %d: the quota cost one", r.job.Name, r.attempt())
		}
	}
	slices.Sort(got)
	if want := []string{"1", "2", "3", "4", "5", "6"}; !slices.Equal(got, want) {
		t.Errorf("containers printed %q, want %q", got, want)
	}
	if got := len(w.events("full", "JobRejected")); got != 1 {
		t.Errorf("%d Events, want 1", got)
	}
}

// Whatever becomes of a message, nothing of its payload is in the log, in an Event, in a metric or in the reason on its copy in the poison queue.
func TestPayloadsAreNotTold(t *testing.T) {
	const mark = "marked-by-the-test-4711-so-that-it-can-be-found"
	w := newWorld(t)
	s := w.withRedis("told")
	failing := `echo "$KEDA_TASK_DATA"; cat "$KEDA_TASK_DATA_FILE"; exit 1`
	report := `cat "$KEDA_TASK_DATA_FILE"; printf %s "$KEDA_TASK_DATA" | sed 's/.*\(marked[^"]*\)".*/`
	for name, kind := range map[string]struct {
		annotations map[string]string
		script      string
		body        string
	}{
		"undecodable":      {map[string]string{"message-encoding": "base64"}, `true`, mark},
		"too-large":        {nil, `true`, mark + strings.Repeat("x", largestFile)},
		"too-large-in-env": {map[string]string{"payload": "env"}, `true`, mark + strings.Repeat("\xff", longestBinary)},
		"failing":          {map[string]string{"payload": "env"}, failing, mark},
		"failing-secret":   {map[string]string{"payload": "secret"}, failing, mark},
		"failing-file":     {map[string]string{"payload": "file"}, failing, mark},
		"failing-pack":     {map[string]string{"tasks-per-job": "3"}, failing, mark},
		// A task that names payloads for ids, and some that report what nobody understands.
		"names-payload":    {map[string]string{"tasks-per-job": "3"}, report + `{"failed": ["\1"]}/' >/dev/termination-log`, mark},
		"reports-garbage":  {map[string]string{"tasks-per-job": "3"}, report + `{"failed": "\1"}/' >/dev/termination-log`, mark},
		"reports-no-JSON":  {map[string]string{"tasks-per-job": "3"}, report + `{\1/' >/dev/termination-log`, mark},
		"unable-to-start":  {map[string]string{"start-timeout": "1s"}, `true`, mark},
		"refused-by-quota": {nil, `true`, ""},
	} {
		name = strings.ToLower(name)
		c := shell(template(name, name), kind.script)
		c.Annotations["lighterman.dev/max-attempts"] = "2"
		c.Annotations["lighterman.dev/retry-backoff"] = "100ms..100ms"
		c.Annotations["lighterman.dev/batch-wait"] = "0s"
		for key, value := range kind.annotations {
			c.Annotations["lighterman.dev/"+key] = value
		}
		container := &c.Spec.JobTemplate.Spec.Template.Spec.Containers[0]
		container.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		if name == "unable-to-start" {
			container.Image = "invalid.test/no-such-image"
		}
		w.createCronJob(c)
		if kind.body != "" {
			s.named(name).send(kind.body)
		}
	}
	p := runLighterman(t, w.namespace)
	crons := must[*batchv1.CronJobList](w)(w.client.BatchV1().CronJobs(w.namespace).List(t.Context(), metav1.ListOptions{}))
	for _, c := range crons.Items {
		if c.Name == "refused-by-quota" {
			continue
		}
		s.named(c.Name).waitUntilEmpty()
		moved := must[[]redis.XMessage](w)(poisoned(s.named(c.Name)))
		if len(moved) != 1 {
			t.Errorf("%s: %d messages were moved aside, want 1", c.Name, len(moved))
			continue
		}
		if body, _ := moved[0].Values["data"].(string); !strings.Contains(body, mark) {
			t.Errorf("%s: the payload itself is not in the poison queue", c.Name)
		}
		if reason, _ := moved[0].Values["lighterman-reason"].(string); strings.Contains(reason, mark) {
			t.Errorf("%s: the reason tells the payload: %s", c.Name, reason)
		}
	}
	w.quota("count/jobs.batch", strconv.Itoa(len(w.jobs())))
	s.named("refused-by-quota").send(mark)
	w.waitForEvent("refused-by-quota", "JobRejected", "exceeded quota")
	_, metrics := p.get("/metrics")
	p.stop()

	events := must[*corev1.EventList](w)(w.client.CoreV1().Events(w.namespace).List(t.Context(), metav1.ListOptions{}))
	told := map[string]string{"log": p.output(), "metrics": metrics, "Events": string(must[[]byte](w)(json.Marshal(events)))}
	for _, job := range w.jobs() {
		told["annotation on Job "+job.Name] = job.Annotations["lighterman.dev/ended"]
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(mark))
	for where, text := range told {
		for _, secret := range []string{mark, mark[:24], encoded[:24]} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s: the payload is told: …%s…", where, text[max(i-400, 0):min(i+100, len(text))])
				break
			}
		}
	}
	if len(events.Items) < 10 {
		t.Errorf("only %d Events: there should have been more to tell", len(events.Items))
	}
}
