package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podRun is a pod, the Job that it is of, and what it printed.
type podRun struct {
	job  batchv1.Job
	pod  string
	text string
}

func (r *podRun) template() string { return r.job.Labels["lighterman.dev/template"] }

func (r *podRun) attempt() int {
	n, _ := strconv.Atoi(r.job.Annotations["lighterman.dev/attempt"])
	return n
}

// ids is the messages of the Job.
func (r *podRun) ids() []string { return idsOf(&r.job) }

func idsOf(job *batchv1.Job) []string {
	return strings.Fields(job.Annotations["lighterman.dev/message-id"] + job.Annotations["lighterman.dev/message-ids"])
}

// ran is all pods of a template; empty: of all templates.
func (w *world) ran(template string) []podRun {
	w.Helper()
	jobs := map[string]batchv1.Job{}
	for _, job := range w.jobs() {
		jobs[job.Name] = job
	}
	texts := w.logs()
	pods := must[*corev1.PodList](w)(w.client.CoreV1().Pods(w.namespace).List(w.Context(), metav1.ListOptions{LabelSelector: "lighterman.dev/template"}))
	var runs []podRun
	for _, pod := range pods.Items {
		job := jobs[pod.Labels[batchv1.JobNameLabel]]
		if template == "" || job.Labels["lighterman.dev/template"] == template {
			runs = append(runs, podRun{job, pod.Name, texts[pod.Name]})
		}
	}
	return runs
}

// packTemplate is a template whose Jobs are given packs.
func packTemplate(name string, tasksPerJob int, script string) *batchv1.CronJob {
	c := shell(template(name, name), script)
	c.Annotations["lighterman.dev/tasks-per-job"] = strconv.Itoa(tasksPerJob)
	c.Annotations["lighterman.dev/retry-backoff"] = "100ms..100ms"
	return c
}

// printPack is a program that prints what its container finds of a pack.
const printPack = `printf '%s\n' "$LIGHTERMAN_TASK_COUNT" "$LIGHTERMAN_ATTEMPT" "${LIGHTERMAN_MESSAGE_ID-none}" "$KEDA_TASK_DATA_FILE" "${KEDA_TASK_DATA-none}"
cat "$KEDA_TASK_DATA_FILE"`

// packLine is a line of a pack, by the names that the documentation gives.
type packLine struct {
	ID          string  `json:"id"`
	Attempt     int     `json:"attempt"`
	EnqueuedAt  string  `json:"enqueued_at"`
	TraceParent string  `json:"traceparent"`
	Data        *string `json:"data"`
	DataBase64  []byte  `json:"data_base64"`

	Properties map[string]string `json:"properties"`
}

// printed takes apart what printPack printed, and checks that it agrees with itself and with the Job.
func printed(w *world, r *podRun) (lines []packLine, array string) {
	w.Helper()
	head := strings.SplitN(r.text, "\n", 6)
	if len(head) < 6 {
		w.Fatalf("pod %s printed %.200q", r.pod, r.text)
	}
	decoder := json.NewDecoder(strings.NewReader(head[5]))
	decoder.DisallowUnknownFields()
	for {
		var line packLine
		err := decoder.Decode(&line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			w.Fatalf("pod %s, line %d: %v", r.pod, len(lines)+1, err)
		}
		lines = append(lines, line)
	}
	if n := strings.Count(head[5], "\n"); n != len(lines) || n > 0 && !strings.HasSuffix(head[5], "\n") || strings.Count(head[5], "\n{\"id\":\"")+1 != n {
		w.Errorf("pod %s: %d objects in %d lines, which should begin with the id", r.pod, len(lines), n)
	}
	ids := make([]string, len(lines))
	for i, line := range lines {
		ids[i] = line.ID
		if line.Attempt != r.attempt() {
			w.Errorf("pod %s: a line speaks of attempt %d, and the Job is attempt %d", r.pod, line.Attempt, r.attempt())
		}
	}
	slices.Sort(ids)
	if want := slices.Sorted(slices.Values(r.ids())); !slices.Equal(ids, want) {
		w.Errorf("pod %s was given %v, and its Job is for %v", r.pod, ids, want)
	}
	want := []string{strconv.Itoa(len(lines)), strconv.Itoa(r.attempt()), "none", "/var/run/lighterman/tasks.jsonl"}
	if diff := cmp.Diff(want, head[:4]); diff != "" {
		w.Errorf("pod %s: count, attempt, id and file (-want +got):\n%s", r.pod, diff)
	}
	return lines, head[4]
}

// payload is the message's, byte for byte.
func (l *packLine) payload() string {
	if l.Data != nil {
		return *l.Data
	}
	return string(l.DataBase64)
}

// sizes is how many messages each of the pods had, from few to many.
func sizes(runs []podRun) []int {
	var n []int
	for i := range runs {
		n = append(n, len(runs[i].ids()))
	}
	slices.Sort(n)
	return n
}

// Each message is in one pack, as the documentation describes them, and packs have no more messages and bytes than they may.
func TestPacks(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("ten")
	large := s.named("large")
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	want := map[string]packLine{}
	expect := func(s *stream, body string, text bool, fields ...string) {
		line := packLine{ID: s.add(body, fields...), Attempt: 1}
		if len(fields) > 0 {
			line.TraceParent, line.Properties = fields[1], map[string]string{fields[0]: fields[1]}
		}
		if line.Data = &body; !text {
			line.Data, line.DataBase64 = nil, []byte(body)
		}
		millis, _, _ := strings.Cut(line.ID, "-")
		line.EnqueuedAt = time.UnixMilli(must[int64](w)(strconv.ParseInt(millis, 10, 64))).UTC().Format(time.RFC3339Nano)
		want[s.name+line.ID] = line
	}
	for i := range 25 {
		switch i {
		case 3:
			expect(s, "a trace", true, "traceparent", trace)
		case 7:
			expect(s, "a \x00 NUL", true)
		case 13: // in the second pack
			expect(s, "a\xff\xfe", false)
		case 14:
			expect(s, "", true)
		default:
			expect(s, fmt.Sprintf("{\"n\": %d, \"to\": \"größer <&> $(HOME) $$ \u2028\"}\n", i), true)
		}
	}
	for i := range 20 {
		expect(large, fmt.Sprintf("%d%s", i, strings.Repeat("x", 100_000)), true)
	}
	w.createCronJob(packTemplate(s.name, 10, printPack))
	w.createCronJob(packTemplate(large.name, 100, printPack))
	p := runLighterman(t, w.namespace)
	s.waitUntilEmpty()
	large.waitUntilEmpty()

	got := map[string]packLine{}
	runs := w.ran("")
	arrays := 0
	for i := range runs {
		lines, array := printed(w, &runs[i])
		var texts []string
		for _, line := range lines {
			if _, twice := got[runs[i].template()+line.ID]; twice {
				t.Errorf("message %s is in two packs", line.ID)
			}
			got[runs[i].template()+line.ID] = line
			if line.Data != nil {
				texts = append(texts, *line.Data)
			}
		}
		if len(texts) < len(lines) || runs[i].template() == large.name && len(lines) > 1 {
			if array != "none" {
				t.Errorf("there is an array of a pack that no array can hold: %.200s", array)
			}
			continue
		}
		arrays++
		var all []string
		if err := json.Unmarshal([]byte(array), &all); err != nil || !slices.Equal(all, texts) {
			t.Errorf("KEDA_TASK_DATA is %.200q, %v; want %.200q", array, err, texts)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the containers found (-want +got):\n%.2000s", diff)
	}
	if diff := cmp.Diff([]int{5, 10, 10}, sizes(w.ran(s.name))); diff != "" {
		t.Errorf("messages in the packs of at most 10 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{2, 9, 9}, sizes(w.ran(large.name))); diff != "" {
		t.Errorf("messages in the packs of at most 917,504 bytes (-want +got):\n%s", diff)
	}
	if arrays < 2 {
		t.Errorf("only %d packs have an array", arrays)
	}
	for _, name := range []string{s.name, large.name} {
		if got := p.metric(`lighterman_jobs_launched_total{namespace=%q,result="created",template="cronjob/%s"}`, w.namespace, name); got != "3" {
			t.Errorf("%s: %s Jobs are counted, want 3", name, got)
		}
	}
}

// A pack that is full does not wait; one that is not waits for batch-wait, be it of one message.
func TestBatchWait(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("wait")
	c := packTemplate(s.name, 2, printPack)
	c.Annotations["lighterman.dev/batch-wait"] = "10m"
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	s.send("1", "2")
	s.waitUntilEmpty()

	began := time.Now()
	s.send("3")
	w.eventually("the message is leased", func(context.Context) (bool, error) { return s.leased() == 1, nil })
	w.annotate(s.name, map[string]string{"lighterman.dev/batch-wait": "2s"})
	s.waitUntilEmpty()
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("a lone message was handed over after %v, before batch-wait was over", took)
	}
	runs := w.ran("")
	for i := range runs {
		printed(w, &runs[i])
	}
	if diff := cmp.Diff([]int{1, 2}, sizes(runs)); diff != "" {
		t.Errorf("messages in packs (-want +got):\n%s", diff)
	}
}

// A task names what failed, with the readers that the documentation shows: that alone is tried again, and the rest is done.
func TestPartOfAPackFails(t *testing.T) {
	w := newWorld(t)
	python := w.withRedis("python")
	readers := must[string](w)(filepath.Abs("../../examples/payload"))
	scripts := map[string]string{
		"python": "exec python3 -B " + readers + "/read_task.py",
		"bash":   "exec bash " + readers + `/read_task.sh sh -c 'task=$(cat); case $task in *\"data\":\"fail\"*) exit 1 ;; esac; echo "$LIGHTERMAN_MESSAGE_ID"'`,
		"go":     "exec " + reader,
	}
	failed := map[string]string{}
	for name, script := range scripts {
		c := packTemplate(name, 10, script)
		c.Annotations["lighterman.dev/max-attempts"] = "3"
		w.createCronJob(c)
		for i := range 10 {
			body := fmt.Sprint("good ", i)
			if i == 4 {
				body = "fail"
			}
			if id := python.named(name).add(body); i == 4 {
				failed[name] = id
			}
		}
	}
	runLighterman(t, w.namespace)
	for name := range scripts {
		python.named(name).waitUntilEmpty()
	}
	for name := range scripts {
		s := python.named(name)
		moved := must[[]redis.XMessage](w)(poisoned(s))
		if len(moved) != 1 || moved[0].Values["lighterman-id"] != failed[name] || moved[0].Values["lighterman-attempts"] != "3" {
			t.Errorf("%s: poison stream holds %v", name, moved)
		}
		for _, r := range w.ran(name) {
			want := 0
			switch ids := r.ids(); {
			case r.attempt() == 1 && len(ids) == 10:
				want = 9 // a line for each that is done
			case r.attempt() == 1 || len(ids) != 1 || ids[0] != failed[name]:
				t.Errorf("%s: attempt %d is on %v, and what failed is %s", name, r.attempt(), ids, failed[name])
			}
			var done int
			for line := range strings.Lines(r.text) {
				if id, _, _ := strings.Cut(strings.TrimSpace(line), " "); slices.Contains(r.ids(), id) {
					done++
				}
			}
			if done != want {
				t.Errorf("%s: %d messages of attempt %d were done, want %d; it printed:\n%s", name, done, r.attempt(), want, r.text)
			}
		}
		if got := len(w.ran(name)); got != 3 {
			t.Errorf("%s: %d Jobs, want 3 attempts", name, got)
		}
		w.waitForEvent(name, "AttemptFailed", "has succeeded, but 1 of 10 messages failed")
		w.waitForEvent(name, "Poisoned", failed[name], "attempt 3 of 3 failed: ReportedFailed")
		w.eventually(name+": the Job of the first attempt is marked", func(context.Context) (bool, error) {
			for _, job := range w.jobs() {
				if job.Labels["lighterman.dev/template"] == name && job.Annotations["lighterman.dev/attempt"] == "1" {
					return job.Labels["lighterman.dev/settled"] == "mixed", nil
				}
			}
			return false, nil
		})
	}
}

// A message that takes its pack down with it is tried again with ever fewer others, and is the only one that ends in the poison queue.
func TestPoisonMessageInAPack(t *testing.T) {
	const attempts, most = 4, 9
	w := newWorld(t)
	s := w.withRedis("poison")
	c := packTemplate(s.name, most, printPack+`; ! grep -q '"data":"poison"' "$KEDA_TASK_DATA_FILE"`)
	c.Annotations["lighterman.dev/max-attempts"] = strconv.Itoa(attempts)
	w.createCronJob(c)
	var bad string
	for i := range most {
		if i == 5 {
			bad = s.add("poison")
		} else {
			s.send(fmt.Sprint("good ", i))
		}
	}
	runLighterman(t, w.namespace)
	s.waitUntilEmpty()
	moved := must[[]redis.XMessage](w)(poisoned(s))
	if len(moved) != 1 || moved[0].Values["data"] != "poison" || moved[0].Values["lighterman-attempts"] != strconv.Itoa(attempts) {
		t.Errorf("poison stream holds %v", moved)
	}
	done := map[string]int{}
	failed := map[int][]string{} // by attempt
	runs := w.ran("")
	for i := range runs {
		r := &runs[i]
		printed(w, r)
		left := float64(attempts-r.attempt()) / (attempts - 1)
		if limit := int(math.Ceil(math.Pow(most, left))); len(r.ids()) > limit {
			t.Errorf("a pack of attempt %d has %d messages, want %d at most", r.attempt(), len(r.ids()), limit)
		}
		for _, id := range r.ids() {
			if r.job.Status.Succeeded > 0 {
				done[id]++
			} else {
				failed[r.attempt()] = append(failed[r.attempt()], id)
			}
		}
	}
	for i := range runs {
		for _, id := range runs[i].ids() {
			if n := runs[i].attempt(); n > 1 && !slices.Contains(failed[n-1], id) {
				t.Errorf("message %s has attempt %d without having failed before", id, n)
			}
		}
	}
	if len(done) != most-1 || done[bad] > 0 {
		t.Errorf("done are %v, want all but %s", done, bad)
	}
	for id, n := range done {
		if n != 1 {
			t.Errorf("message %s was done %d times", id, n)
		}
	}
	if last := failed[attempts]; !slices.Equal(last, []string{bad}) {
		t.Errorf("%v used up their last attempt, want %s alone", last, bad)
	}
}

// A leader that dies costs a pack nothing, whether its Job ends under the next leader or while there is none; what its task reports is heard.
func TestPackOutlivesItsLeader(t *testing.T) {
	w := newWorld(t)
	runs := w.withRedis("runs")
	ends := runs.named("ends")
	gates := t.TempDir()
	gate := func(name string) string { return filepath.Join(gates, name) }
	names := map[*stream]string{}
	for _, s := range []*stream{runs, ends} {
		// The first message of the first attempt is named as failed.
		c := packTemplate(s.name, 10, printPack+`
while ! test -e `+gate(s.name)+`; do sleep 0.05; done
if test $LIGHTERMAN_ATTEMPT = 1; then
  id=$(head -n 1 "$KEDA_TASK_DATA_FILE" | cut -d '"' -f 4)
  printf '{"failed": ["%s"]}' "$id" >/dev/termination-log
fi`)
		c.Annotations["lighterman.dev/lease-duration"] = "5s"
		w.createCronJob(c)
		names[s] = s.add("0") // the least id is in the first line
		for i := range 9 {
			s.send(fmt.Sprint(i + 1))
		}
	}
	first := runLighterman(t, w.namespace, "--lock-duration", "3s")
	w.eventually("both packs run", func(context.Context) (bool, error) {
		jobs := w.jobs()
		return len(jobs) == 2 && !slices.ContainsFunc(jobs, func(j batchv1.Job) bool { return j.Status.Ready == nil || *j.Status.Ready == 0 }), nil
	})
	first.kill()
	open := func(s *stream) {
		if err := os.WriteFile(gate(s.name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(ends)
	w.eventually("one has ended without a leader", func(context.Context) (bool, error) { return w.succeeded() == 1, nil })
	second := runLighterman(t, w.namespace, "--lock-duration", "3s")
	ends.waitUntilEmpty()
	second.waitForLog("leading")
	if got := runs.len(); got != 10 {
		t.Errorf("%d messages of the pack that runs are left, want all 10", got)
	}
	open(runs)
	runs.waitUntilEmpty()
	for s, failed := range names {
		var got []string
		all := w.ran(s.name)
		for i := range all {
			lines, _ := printed(w, &all[i])
			got = append(got, fmt.Sprintf("attempt %d on %d messages", all[i].attempt(), len(lines)))
			if all[i].attempt() == 2 && all[i].ids()[0] != failed {
				t.Errorf("%s: %v was tried again, want %s", s.name, all[i].ids(), failed)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"attempt 1 on 10 messages", "attempt 2 on 1 messages"}, got); diff != "" {
			t.Errorf("%s: what ran (-want +got):\n%s", s.name, diff)
		}
		if moved := must[[]redis.XMessage](w)(poisoned(s)); len(moved) != 0 {
			t.Errorf("%s: poison stream holds %v", s.name, moved)
		}
	}
}

// Messages of an Azure Storage queue are packed as well, decoded first: one that cannot be decoded is moved aside alone, and one that is named as
// failed comes again alone.
func TestPacksOfAStorageQueue(t *testing.T) {
	w := newWorld(t)
	q, connection := w.withQueue("packs")
	w.createSecret("storage", map[string]string{"connection": connection})
	c := packTemplate("packs", 10, printPack+`
if test $LIGHTERMAN_ATTEMPT = 1; then
  id=$(grep '"data":"message 2"' "$KEDA_TASK_DATA_FILE" | cut -d '"' -f 4)
  printf '{"failed": ["%s"]}' "$id" >/dev/termination-log
fi`)
	for _, key := range []string{"stream", "lease-duration"} {
		delete(c.Annotations, "lighterman.dev/"+key)
	}
	for key, value := range map[string]string{
		"source": "azure-storage-queue", "queue": "packs", "connection-secret": "storage/connection", "message-encoding": "base64",
	} {
		c.Annotations["lighterman.dev/"+key] = value
	}
	want := map[string]int{} // how often a message is handed over
	for i := range 6 {
		body := fmt.Sprint("message ", i)
		q.add(base64.StdEncoding.EncodeToString([]byte(body)))
		want[body] = 1
	}
	want["message 2"] = 2
	q.add("no base64!")
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	q.waitUntilEmpty()
	if moved := must[*queue](w)(q.sibling("packs-poison")).peek(); !slices.Equal(moved, []string{"no base64!"}) {
		t.Errorf("poison queue holds %q", moved)
	}
	got := map[string]int{}
	runs := w.ran("")
	for i := range runs {
		lines, array := printed(w, &runs[i])
		for _, line := range lines {
			got[line.payload()]++
			if line.EnqueuedAt == "" || line.TraceParent != "" {
				t.Errorf("a line has the time %q and the trace %q", line.EnqueuedAt, line.TraceParent)
			}
			if runs[i].attempt() == 2 && array != `["message 2"]` {
				t.Errorf("the second attempt is on %s, want what failed", array)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("how often messages were handed over (-want +got):\n%s", diff)
	}
}
