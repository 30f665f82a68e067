package dispatcher

import (
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// The actors beside the dispatchers: the Job controller, the TTL controller, and the person.
const (
	controller = "controller"
	ttl        = "ttl"
	person     = "person"
)

// jobFate is what becomes of a Job.
type jobFate struct {
	ready, done time.Duration // after its creation
	reason      string        // why it fails; empty: it succeeds
	stuck       bool          // its pods never start
}

func (w *simulation) fateOf(m *simMessage, attempt int) jobFate {
	d := w.of("job", m.name, strconv.Itoa(attempt))
	f := jobFate{ready: d.between(0, 1500*time.Millisecond)}
	f.done = f.ready + d.between(200*time.Millisecond, pick(&d, 2*time.Second, 5*time.Second, 15*time.Second))
	if d.percent(5) {
		f.done += m.queue.lease // it outlives a lease
	}
	if attempt <= m.plan.failures {
		f.reason = pick(&d, "BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy")
	}
	f.stuck = m.queue.start > 0 && d.percent(6)
	return f
}

// control is the Job controller: it takes a new Job to its end. A person may meddle. The caller holds the mutex.
func (w *simulation) control(j *simJob) {
	f := w.fateOf(j.messages[0], j.attempt)
	if !f.stuck {
		w.after(f.ready, func() { w.getReady(j, f) })
	}
	d := w.of("meddle", j.title, strconv.Itoa(j.messages[0].attempts[j.attempt].created))
	if d.percent(w.meddling) {
		w.after(d.between(0, 2*f.done), func() { w.meddle(j) })
	}
}

// getReady starts a Job's pod, once its Secret is there.
func (w *simulation) getReady(j *simJob, f jobFate) {
	w.mu.Lock()
	gone, provided := j.deleted || j.finished, w.provided(j)
	w.mu.Unlock()
	switch {
	case gone:
	case !provided:
		w.after(300*time.Millisecond, func() { w.getReady(j, f) })
	default:
		w.editJob(j, controller, "ready", object{"status": object{"active": 1, "ready": 1}})
		w.after(f.done-f.ready, func() { w.finish(j, f.reason) })
	}
}

// finish ends a Job: well, where there is no reason why not. Of a pack, its messages decide.
func (w *simulation) finish(j *simJob, reason string) {
	w.mu.Lock()
	finished := j.finished || j.deleted
	w.mu.Unlock()
	if finished {
		return
	}
	if j.packed {
		v := w.verdictOf(j)
		if reason, j.failed = v.reason, v.failed; reason == "" {
			w.leavePod(j, v.message)
		}
	}
	w.finishFor(j, reason)
}

// finishFor ends a Job for a reason; none, where it ends well.
func (w *simulation) finishFor(j *simJob, reason string) {
	condition := w.condition(batchv1.JobComplete, "CompletionsReached")
	if reason != "" {
		condition = w.condition(batchv1.JobFailed, reason)
	}
	w.editJob(j, controller, "finish", object{"status": object{"active": 0, "ready": 0, "conditions": []any{condition}}})
}

// editJob changes a Job's object. What that means is noted in the same moment.
func (w *simulation) editJob(j *simJob, actor, op string, patch object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j.deleted || j.finished {
		return
	}
	said := ""
	if op == "finish" {
		j.finished, j.finishedAt = true, time.Now()
		status, _ := patch["status"].(object)
		condition, _ := status["conditions"].([]any)[0].(object)
		said = text(condition, "type") + " " + text(condition, "reason")
		j.outcomes(text(condition, "type") == string(batchv1.JobComplete), j.failed)
	}
	key := objectKey{"jobs", namespace, j.name}
	w.api.mu.Lock()
	old := w.api.objects[key]
	w.api.store(key, old, merged(old, patch))
	w.api.mu.Unlock()
	w.note(actor, op, j.title, said)
	if j.finished && j.marked {
		w.collect(j, j.ttl)
	}
}

// jobObject is a Job as the API server has it. The caller holds the mutex.
func (w *simulation) jobObject(j *simJob) object {
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	return w.api.objects[objectKey{"jobs", namespace, j.name}]
}

// deleteJob removes a Job's object. The caller holds the mutex.
func (w *simulation) deleteJob(j *simJob, actor string) {
	key := objectKey{"jobs", namespace, j.name}
	w.api.mu.Lock()
	w.api.store(key, w.api.objects[key], nil)
	w.api.mu.Unlock()
	w.note(actor, "delete", j.title, "")
	w.jobDeleted(actor, j)
	w.collectGarbage(j)
}

// due is when the TTL controller may delete a Job: it goes by the API server's clock, whose times have no fractions of a second.
func (w *simulation) due(j *simJob, seconds float64) time.Time {
	return j.finishedAt.Add(w.skew).Truncate(time.Second).Add(time.Duration(seconds) * time.Second).Add(-w.skew)
}

// collect is the TTL controller. The caller holds the mutex.
func (w *simulation) collect(j *simJob, seconds float64) {
	d := w.of("ttl", j.title)
	w.after(time.Until(w.due(j, seconds))+d.between(0, 3*time.Second), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if j.deleted {
			return
		}
		spec, _ := w.jobObject(j)["spec"].(object)
		if now, ok := spec["ttlSecondsAfterFinished"].(float64); ok && !time.Now().Before(w.due(j, now)) {
			w.deleteJob(j, ttl)
		}
	})
}

func (w *simulation) condition(kind batchv1.JobConditionType, reason string) object {
	return object{
		"type": string(kind), "status": string(corev1.ConditionTrue), "reason": reason,
		"lastTransitionTime": time.Now().Add(w.skew).UTC().Format(time.RFC3339),
	}
}
