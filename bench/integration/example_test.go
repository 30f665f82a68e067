package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const example = "../../examples/task-processor/"

// task is what the example's program understands.
type task struct {
	ID        string `json:"id"`
	Operation string `json:"operation"`
	Input     string `json:"input"`
}

// result is what it prints.
type result struct {
	task
	Output string `json:"output"`
}

// runExample brings up the example exactly as its files say, except for the connection string, which is the user's own.
func runExample(w *world, file string) *queue {
	w.Helper()
	q, connection := w.withQueue("tasks")
	secret := readYAML[corev1.Secret](w, example+"secret.yaml")
	w.createSecret(secret.Name, map[string]string{"connection-string": connection})
	program := must[[]byte](w)(os.ReadFile(example + "task_processor.py"))
	must[*corev1.ConfigMap](w)(w.client.CoreV1().ConfigMaps(w.namespace).Create(w.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "task-processor"},
		Data:       map[string]string{"task_processor.py": string(program)},
	}, metav1.CreateOptions{}))
	w.createCronJob(readYAML[batchv1.CronJob](w, example+file))
	runLighterman(w.T, w.namespace)
	return q
}

// checkResults compares what the containers printed with what was asked: each task once, with its own payload.
func checkResults(w *world, tasks []task) {
	w.Helper()
	want := make(map[string]task, len(tasks))
	for _, t := range tasks {
		want[t.ID] = t
	}
	for pod, text := range w.logs() {
		var got result
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			w.Errorf("pod %s printed %q: %v", pod, text, err)
			continue
		}
		t, ok := want[got.ID]
		switch {
		case !ok:
			w.Errorf("task %s ran twice, or was never sent", got.ID)
		case got.task != t:
			w.Errorf("task %s ran as %+v, and was sent as %+v", t.ID, got.task, t)
		case got.Output != reversed(t.Input):
			w.Errorf("task %s came to %q", t.ID, got.Output)
		}
		delete(want, got.ID)
	}
	if len(want) > 0 {
		w.Errorf("%d tasks did not run: %v", len(want), want)
	}
	if got := len(w.jobs()); got != len(tasks) {
		w.Errorf("%d Jobs for %d tasks", got, len(tasks))
	}
}

func reversed(s string) string {
	runes := []rune(s)
	for i, j := 0, len(runes)-1; i < j; i, j = i+1, j-1 {
		runes[i], runes[j] = runes[j], runes[i]
	}
	return string(runes)
}

func TestTaskProcessor(t *testing.T) {
	w := newWorld(t)
	q := runExample(w, "cronjob.yaml")
	var tasks []task
	for i := range 50 {
		one := task{ID: fmt.Sprintf("task-%d", i), Operation: "reverse", Input: fmt.Sprintf("input %d of $(HOME)", i)}
		tasks = append(tasks, one)
		q.send(string(must[[]byte](w)(json.Marshal(one))))
	}
	q.waitUntilEmpty()
	checkResults(w, tasks)
}

func TestTaskProcessorWithArgument(t *testing.T) {
	w := newWorld(t)
	q := runExample(w, "cronjob-argument.yaml")
	var tasks []task
	for i, input := range []string{
		"plain", "two  spaces and a\ttab", `"double" and 'single' quotes`, "$(touch /tmp/never) `id` $HOME ${HOME}", "$$ $(KEDA_TASK_DATA) $$(X)",
		"; exit 1 # && | > < *", "line\nbreak", "größer 漢字 🚢", `back\slash \n`, "",
	} {
		one := task{ID: fmt.Sprintf("task-%d", i), Operation: "reverse", Input: input}
		tasks = append(tasks, one)
		var text strings.Builder
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false) // the shell should meet the characters themselves
		if err := encoder.Encode(one); err != nil {
			t.Fatal(err)
		}
		q.send(strings.TrimSuffix(text.String(), "\n"))
	}
	q.waitUntilEmpty()
	checkResults(w, tasks)
}
