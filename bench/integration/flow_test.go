package integration

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMessagesBecomeJobs(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("hello")
	c := template("hello", s.name)
	c.Spec.JobTemplate.Labels = map[string]string{"team": "a"}
	c.Spec.JobTemplate.Annotations = map[string]string{"note": "kept", "lighterman.dev/queue": "ours"}
	pod := &c.Spec.JobTemplate.Spec.Template.Spec
	pod.InitContainers = []corev1.Container{{Name: "init", Image: "busybox", Command: []string{"sh", "-c", `test "$KEDA_TASK_DATA" = '{"n": "$(HOME)"}'`}}}
	w.createCronJob(c)
	p := runLighterman(t, w.namespace)
	s.send(`{"n": "$(HOME)"}`)
	s.waitUntilEmpty()

	jobs := w.jobs()
	if len(jobs) != 1 {
		t.Fatalf("%d Jobs for one message", len(jobs))
	}
	job := jobs[0]
	if job.Labels["team"] != "a" || job.Annotations["note"] != "kept" || job.Annotations["lighterman.dev/queue"] != "" {
		t.Errorf("labels %v and annotations %v are not the template's without ours", job.Labels, job.Annotations)
	}
	if job.Annotations["lighterman.dev/template"] != "CronJob/hello" || job.Annotations["lighterman.dev/attempt"] != "1" ||
		job.Annotations["lighterman.dev/message-id"] == "" {
		t.Errorf("annotations %v do not lead back to template and message", job.Annotations)
	}
	for name, text := range w.logs() {
		if text != `{"n": "$(HOME)"}` {
			t.Errorf("pod %s was handed %q", name, text)
		}
	}
	w.eventually("the Job is marked as settled and handed to the TTL controller", func(context.Context) (bool, error) {
		job := w.jobs()[0]
		return job.Labels["lighterman.dev/settled"] == "completed" && job.Spec.TTLSecondsAfterFinished != nil, nil
	})

	labels := fmt.Sprintf(`{namespace=%q,template="cronjob/hello"}`, w.namespace)
	for name, want := range map[string]string{
		"lighterman_messages_received_total" + labels: "1",
		fmt.Sprintf(`lighterman_jobs_launched_total{namespace=%q,result="created",template="cronjob/hello"}`, w.namespace):    "1",
		fmt.Sprintf(`lighterman_tasks_settled_total{namespace=%q,outcome="completed",template="cronjob/hello"}`, w.namespace): "1",
		"lighterman_run_seconds_count" + labels:    "1",
		"lighterman_launch_seconds_count" + labels: "1",
		`lighterman_leader{shard="lighterman"}`:    "1",
	} {
		if got := p.metric("%s", name); got != want {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := p.get(path); status != http.StatusOK {
			t.Errorf("%s answers %d: %s", path, status, body)
		}
	}
}

func TestFailuresAreRetriedAndThenPoisoned(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("flaky")
	c := shell(template("flaky", s.name), `exit 3`)
	c.Annotations["lighterman.dev/max-attempts"] = "3"
	c.Annotations["lighterman.dev/retry-backoff"] = "100ms..1s"
	w.createCronJob(c)
	p := runLighterman(t, w.namespace)
	s.send("always fails")
	s.waitUntilEmpty()
	if got := len(w.jobs()); got != 3 {
		t.Errorf("%d Jobs, want 3 attempts", got)
	}
	moved := must[[]redis.XMessage](w)(poisoned(s))
	if len(moved) != 1 || moved[0].Values["data"] != "always fails" {
		t.Errorf("poison stream holds %v", moved)
	}
	w.waitForEvent("flaky", "Poisoned", "attempt 3 of 3 failed", `"flaky:poison"`)
	if got := p.metric(`lighterman_tasks_settled_total{namespace=%q,outcome="poisoned",template="cronjob/flaky"}`, w.namespace); got != "1" {
		t.Errorf("poisoned is counted as %q", got)
	}
}

// poisoned is what was moved aside.
func poisoned(s *stream) ([]redis.XMessage, error) {
	return s.redis.XRange(s.w.Context(), s.name+":poison", "-", "+").Result()
}

func TestSuspendedJobAsTemplate(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("jobs")
	c := template("unused", s.name)
	suspend := true
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "by-job", Annotations: c.Annotations}, Spec: c.Spec.JobTemplate.Spec}
	job.Spec.Suspend = &suspend
	must[*batchv1.Job](w)(w.client.BatchV1().Jobs(w.namespace).Create(w.Context(), job, metav1.CreateOptions{}))
	runLighterman(t, w.namespace)
	s.send("a", "b", "c")
	s.waitUntilEmpty()
	var got []string
	for _, text := range w.logs() {
		got = append(got, text)
	}
	slices.Sort(got)
	if want := []string{"a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("containers printed %q, want %q", got, want)
	}
	own := must[*batchv1.Job](w)(w.client.BatchV1().Jobs(w.namespace).Get(w.Context(), "by-job", metav1.GetOptions{}))
	if own.Status.Active+own.Status.Succeeded+own.Status.Failed > 0 {
		t.Error("the template itself has run")
	}
}

func TestTemplatesComeChangeAndGo(t *testing.T) {
	w := newWorld(t)
	first := w.withRedis("first")
	second := first.named("second")
	runLighterman(t, w.namespace)

	c := template("changing", first.name)
	c.Annotations["lighterman.dev/paused"] = "true"
	w.createCronJob(c)
	first.send("1")
	w.createCronJob(template("other", "other"))
	w.eventually("the paused template is seen", func(context.Context) (bool, error) {
		return first.redis.XInfoGroups(w.Context(), first.name).Err() == nil && len(w.jobs()) == 0, nil
	})

	w.annotate("changing", map[string]string{"lighterman.dev/paused": ""})
	first.waitUntilEmpty()

	// Another stream and another program, live.
	w.editCronJob("changing", func(c *batchv1.CronJob) {
		c.Annotations["lighterman.dev/stream"] = second.name
		shell(c, `printf 'new %s' "$KEDA_TASK_DATA"`)
	})
	second.send("2")
	second.waitUntilEmpty()
	first.send("for nobody")

	if err := w.client.BatchV1().CronJobs(w.namespace).Delete(w.Context(), "changing", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// The other template still works, and by then the deletion has been seen as well: one queue carries both.
	first.named("other").send("3")
	first.named("other").waitUntilEmpty()
	if got := first.len(); got != 1 {
		t.Errorf("the stream that no template names any more has %d messages, want 1", got)
	}
	var got []string
	for _, text := range w.logs() {
		got = append(got, text)
	}
	slices.Sort(got)
	if want := []string{"1", "3", "new 2"}; !slices.Equal(got, want) {
		t.Errorf("containers printed %q, want %q", got, want)
	}
}

func TestMaxInFlightIsKept(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("slots")
	c := shell(template("slots", s.name), `sleep 1`)
	c.Annotations["lighterman.dev/max-in-flight"] = "3"
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	for i := range 9 {
		s.send(fmt.Sprint(i))
	}
	most := 0
	w.eventually("the stream is empty", func(context.Context) (bool, error) {
		if leased := int(s.leased()); leased > 3 {
			return false, fmt.Errorf("%d messages are leased, more than 3", leased)
		}
		active := 0
		for _, job := range w.jobs() {
			if job.Status.CompletionTime == nil {
				active++
			}
		}
		most = max(most, active)
		return s.len() == 0, nil
	})
	if most > 3 || most < 2 {
		t.Errorf("at most %d Jobs at once, want 3", most)
	}
}

func TestGracefulStopAndTakeover(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("over")
	c := shell(template("over", s.name), `sleep 4; printf %s "$KEDA_TASK_DATA"`)
	c.Annotations["lighterman.dev/max-in-flight"] = "5"
	w.createCronJob(c)
	first := runLighterman(t, w.namespace)
	for i := range 8 {
		s.send(fmt.Sprint(i))
	}
	w.eventually("five Jobs run", func(context.Context) (bool, error) { return len(w.jobs()) == 5, nil })
	second := runLighterman(t, w.namespace)
	second.waitForLog("standing by")
	first.stop()
	lock := must[*coordinationv1.Lease](w)(w.client.CoordinationV1().Leases(w.namespace).Get(w.Context(), "lighterman", metav1.GetOptions{}))
	if holder := lock.Spec.HolderIdentity; holder != nil && strings.HasSuffix(*holder, identityOf(first)) {
		t.Errorf("the lock is still held by %q after a graceful stop", *holder)
	}
	second.waitForLog("leading")
	s.waitUntilEmpty()
	if got := len(w.jobs()); got != 8 {
		t.Errorf("%d Jobs for 8 messages", got)
	}
	if got := w.succeeded(); got != 8 {
		t.Errorf("%d Jobs succeeded, want 8", got)
	}
}

func identityOf(p *process) string {
	identity, _ := p.waitForLog("starting")["identity"].(string)
	return identity
}

func TestCrashAndTakeover(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("crash")
	c := shell(template("crash", s.name), `sleep 3; printf %s "$KEDA_TASK_DATA"`)
	c.Annotations["lighterman.dev/lease-duration"] = "5s"
	w.createCronJob(c)
	first := runLighterman(t, w.namespace, "--lock-duration", "3s")
	for i := range 6 {
		s.send(fmt.Sprint(i))
	}
	w.eventually("six Jobs run", func(context.Context) (bool, error) { return len(w.jobs()) == 6, nil })
	first.kill()
	runLighterman(t, w.namespace, "--lock-duration", "3s")
	s.waitUntilEmpty()
	if got := len(w.jobs()); got != 6 {
		t.Errorf("%d Jobs for 6 messages: a crash made an attempt", got)
	}
}

func TestPayloadsArriveByteForByte(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("bytes")
	c := shell(template("bytes", s.name), `printf %s "$KEDA_TASK_DATA" | base64 -w 0`)
	// What the payload must not be expanded with.
	env := &c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Env
	*env = append(*env, corev1.EnvVar{Name: "SECRET", Value: "leaked"})
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	source := rand.New(rand.NewPCG(1, 2))
	want := []string{
		"", "$(SECRET)", "$$(SECRET)", "$", "$$", "$(", "$(SECRET", "trailing newline\n", "\t \r\n", "{\"a\":\"$(KEDA_TASK_DATA)\"}", "\u00e9\u6f22\U0001F6A2\u200b",
	}
	const alphabet = "$()SECRT{}\"'\\ \n\u00e9"
	letters := []rune(alphabet)
	for range 10 {
		var b strings.Builder
		for range source.IntN(200) {
			b.WriteRune(letters[source.IntN(len(letters))])
		}
		want = append(want, b.String())
	}
	s.send(want...)
	s.waitUntilEmpty()
	var got []string
	for pod, text := range w.logs() {
		payload, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Errorf("pod %s printed %q: %v", pod, text, err)
		}
		got = append(got, string(payload))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("containers were handed\n%q, and sent was\n%q", got, want)
	}
}

func TestStartTimeoutEndsWhatCannotStart(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("stuck")
	c := template("stuck", s.name)
	c.Annotations["lighterman.dev/start-timeout"] = "2s"
	c.Annotations["lighterman.dev/max-attempts"] = "1"
	c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{
		SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "not-there"}},
	}}
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	began := time.Now()
	s.send("x")
	s.waitUntilEmpty()
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("given up after %v, before its time", took)
	}
	w.waitForEvent("stuck", "StartTimeout", "CreateContainerConfigError", "not-there")
	w.waitForEvent("stuck", "Poisoned", "StartTimeout")
}
