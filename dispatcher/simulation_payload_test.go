package dispatcher

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
)

// variables are those of a Job's first container: literal values, and whether they refer to a Secret.
func variables(job object) (values map[string]string, refers map[string]bool) {
	values, refers = map[string]string{}, map[string]bool{}
	for _, name := range []string{"spec", "template", "spec"} {
		job, _ = job[name].(object)
	}
	containers, _ := job["containers"].([]any)
	for _, c := range containers[:min(1, len(containers))] {
		env, _ := c.(object)["env"].([]any)
		for _, v := range env {
			v, _ := v.(object)
			values[text(v, "name")] = text(v, "value")
			refers[text(v, "name")] = v["valueFrom"] != nil
		}
	}
	return values, refers
}

// checkPayload looks at what a Job that is created hands to its containers.
func (w *simulation) checkPayload(j *simJob, body object) {
	values, refers := variables(body)
	first := j.messages[0]
	if j.packed != (j.queue.pack > 1) {
		w.violate(9, first, "the Job of attempt %d has a pack: %v, with tasks-per-job %d", j.attempt, j.packed, j.queue.pack)
	}
	for _, m := range j.messages {
		if m.plan.bad {
			w.violate(9, m, "it has a Job, and no Job can carry it")
		}
	}
	bodies := make([]string, len(j.messages))
	for i, m := range j.messages {
		bodies[i] = m.plan.body
	}
	var want string
	switch {
	case j.queue.payload == "file" || refers[jobs.EnvPayload]:
		if text(body, "metadata", "annotations", jobs.AnnotationPayload) == "" {
			w.violate(9, first, "the Job of attempt %d has neither its payload nor a Secret", j.attempt)
		}
		return // see checkSecret
	case j.packed:
		array := &bytes.Buffer{}
		to := json.NewEncoder(array)
		to.SetEscapeHTML(false)
		_ = to.Encode(bodies)
		want = strings.TrimSpace(array.String())
	default:
		want = first.plan.body
	}
	if got := values[jobs.EnvPayload]; got != strings.ReplaceAll(want, "$", "$$") {
		w.violate(9, first, "the Job of attempt %d has the payload %.80q, want %.80q", j.attempt, got, want)
	}
}

// checkSecret looks at a Secret that was created.
func (w *simulation) checkSecret(actor string, r *apiRequest) {
	j := w.jobs[r.name]
	if j == nil {
		w.violate(9, nil, "%s created Secret %s, which no Job waits for", actor, r.name)
		return
	}
	data, _ := r.body["data"].(object)
	if !j.packed {
		if got, _ := base64.StdEncoding.DecodeString(text(data, "payload")); string(got) != j.messages[0].plan.body {
			w.violate(9, j.messages[0], "its Secret has the payload %.80q", got)
		}
		return
	}
	lines, _ := base64.StdEncoding.DecodeString(text(data, "tasks.jsonl"))
	from := json.NewDecoder(bytes.NewReader(lines))
	for _, m := range j.messages {
		var line struct {
			ID      string
			Attempt int
			Data    string
		}
		if err := from.Decode(&line); err != nil || line.ID != m.id || line.Attempt != j.attempt || line.Data != m.plan.body {
			w.violate(9, m, "its line in the pack is %+v, %v", line, err)
		}
	}
	if from.More() {
		w.violate(9, j.messages[0], "the pack has more lines than the %d messages of its Job", len(j.messages))
	}
}

// provided reports whether a Job has the Secret that it waits for. The caller holds the mutex.
func (w *simulation) provided(j *simJob) bool {
	job := w.jobObject(j)
	if text(job, "metadata", "annotations", jobs.AnnotationPayload) == "" {
		return true
	}
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	return w.api.objects[objectKey{"secrets", namespace, j.name}] != nil
}

// verdict is what becomes of the messages of a pack: those that are to fail make their Job fail, or are named by it, or it is not clear what it says.
type verdict struct {
	reason  string // why the Job fails; empty: it succeeds
	message string // what a pod leaves
	failed  []*simMessage
}

func (w *simulation) verdictOf(j *simJob) verdict {
	var failing []*simMessage
	var ids []string
	for _, m := range j.messages {
		if j.attempt <= m.plan.failures {
			failing = append(failing, m)
			ids = append(ids, m.id)
		}
	}
	d := w.of("verdict", j.title)
	if len(failing) == 0 {
		return verdict{message: pick(&d, "", "all is well", `{"failed": []}`)}
	}
	switch d.below(5) {
	case 0:
		return verdict{reason: pick(&d, "BackoffLimitExceeded", "PodFailurePolicy"), failed: j.messages}
	case 1:
		return verdict{message: pick(&d, `{"failed": ["m0"]}`, `{"failed": `), failed: j.messages}
	}
	list, _ := json.Marshal(map[string][]string{"failed": ids})
	return verdict{message: string(list), failed: failing}
}

// leavePod makes the pod that a pack's Job leaves behind.
func (w *simulation) leavePod(j *simJob, message string) {
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	w.api.store(podKey(j), nil, object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"namespace": namespace, "name": j.name, "labels": object{batchv1.JobNameLabel: j.name}},
		"status": object{
			"phase":             "Succeeded",
			"containerStatuses": []any{object{"name": "main", "state": object{"terminated": object{"exitCode": 0, "message": message}}}},
		},
	})
}

func podKey(j *simJob) objectKey { return objectKey{"pods", namespace, j.name} }

// collectGarbage removes what belonged to a Job that is gone.
func (w *simulation) collectGarbage(j *simJob) {
	w.after(100*time.Millisecond, func() {
		w.api.mu.Lock()
		defer w.api.mu.Unlock()
		for _, key := range []objectKey{podKey(j), {"secrets", namespace, j.name}} {
			if old := w.api.objects[key]; old != nil && w.api.objects[objectKey{"jobs", namespace, j.name}] == nil {
				w.api.store(key, old, nil)
			}
		}
	})
}

// outcomes takes note of how the messages of a Job that finishes have fared.
func (j *simJob) outcomes(succeeded bool, failed []*simMessage) {
	for _, m := range j.messages {
		if succeeded && !slices.Contains(failed, m) {
			m.succeeded = true
			continue
		}
		m.attempts[j.attempt].failed = true
		m.failures++
	}
}
