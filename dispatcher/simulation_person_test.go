package dispatcher

import (
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/jobs"
)

// meddle deletes a Job by hand.
func (w *simulation) meddle(j *simJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j.deleted || w.healed {
		return
	}
	for _, m := range j.messages {
		m.meddled = true
		if !j.finished {
			m.failures++
			m.attempts[j.attempt].failed = true
		}
	}
	w.deleteJob(j, person)
}

// mistake has the person do something to a template, or mend it.
func (w *simulation) mistake(m mistake, begin bool) {
	q := w.queues[m.template]
	w.mu.Lock()
	healed := w.healed
	w.mu.Unlock()
	switch {
	case healed:
	case begin:
		w.spoil(q, m.what)
	default:
		w.mend(q, m.what)
	}
}

func (w *simulation) spoil(q *simQueue, what string) {
	w.mu.Lock()
	q.broken[what]++
	again := q.broken[what] > 1
	q.refused = 0
	switch what {
	case "lease":
		q.leastLease = min(q.leastLease, 20*time.Second)
	case "limit":
		q.mostInFlight = max(q.mostInFlight, 12)
	}
	w.note(person, "spoil", q.name, what)
	w.mu.Unlock()
	if again {
		return
	}
	switch what {
	case "secret":
		w.secret(true)
	case "invalid":
		w.client.annotate(q.name, "max-attempts", "none")
	case "paused":
		w.client.annotate(q.name, "paused", "true")
	case "lease":
		w.client.annotate(q.name, "lease-duration", "20s")
	case "limit":
		w.client.annotate(q.name, "max-in-flight", "12")
	case "foreign":
		w.foreign(q, true)
	}
}

func (w *simulation) mend(q *simQueue, what string) {
	w.mu.Lock()
	if q.broken[what] == 0 {
		w.mu.Unlock()
		return
	}
	if q.broken[what]--; w.healed {
		q.broken[what] = 0
	}
	still := q.broken[what] > 0
	w.note(person, "mend", q.name, what)
	w.mu.Unlock()
	if still {
		return
	}
	switch what {
	case "secret":
		w.secret(false)
	case "invalid":
		w.client.annotate(q.name, "max-attempts", strconv.Itoa(q.maxAttempts))
	case "paused":
		w.client.annotate(q.name, "paused", "")
	case "lease":
		w.client.annotate(q.name, "lease-duration", q.lease.String())
	case "limit":
		w.client.annotate(q.name, "max-in-flight", strconv.Itoa(q.maxInFlight))
	case "foreign":
		w.foreign(q, false)
	}
}

// foreign makes a Job, which has succeeded, by the name that the first Job of some message would have, or deletes it again.
func (w *simulation) foreign(q *simQueue, there bool) {
	d := w.of("foreign", q.name)
	message := "m" + strconv.Itoa(d.from(1, len(q.sends)))
	if q.log != nil {
		message = "0/0/" + strconv.FormatInt(w.begun.UnixMilli(), 10) // if it was sent at once
	}
	id := jobs.Identity{Source: q.identity(), Messages: jobs.NewMessageSet(message), Attempt: 1}
	key := objectKey{"jobs", namespace, id.Name()}
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	old := w.api.objects[key]
	switch {
	case there && old == nil:
		w.api.store(key, nil, object{
			"apiVersion": "batch/v1", "kind": "Job",
			"metadata": object{"namespace": namespace, "name": key.name, "uid": "foreign"},
			"status":   object{"conditions": []any{w.condition(batchv1.JobComplete, "CompletionsReached")}},
		})
	case !there && text(old, "metadata", "uid") == "foreign":
		w.api.store(key, old, nil)
	}
}

// secret hides the Secret that all templates use, or brings it back.
func (w *simulation) secret(hide bool) {
	key := objectKey{"secrets", namespace, "queue"}
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	switch old := w.api.objects[key]; {
	case hide && old != nil:
		w.hidden = old
		w.api.store(key, old, nil)
	case !hide && old == nil:
		w.api.store(key, nil, w.hidden)
	}
}
