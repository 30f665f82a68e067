package dispatcher

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

func TestPackSize(t *testing.T) {
	for name, c := range map[string]struct {
		tasks, attempts int
		want            []int // by attempt, from 1
	}{
		"single":               {1, 3, []int{1, 1, 1, 1}},
		"two attempts":         {100, 2, []int{100, 1, 1}},
		"three attempts":       {100, 3, []int{100, 10, 1}},
		"five attempts":        {1000, 5, []int{1000, 178, 32, 6, 1}},
		"more than it was":     {2, 5, []int{2, 2, 2, 2, 1}},
		"one attempt only":     {10, 1, []int{1, 1}}, // which is refused before
		"after the last, once": {10, 2, []int{10, 1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			for attempt := range c.want {
				got = append(got, packSize(&annotation.Spec{TasksPerJob: c.tasks, MaxAttempts: c.attempts}, attempt+1))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("sizes (-want +got):\n%s", diff)
			}
		})
	}
}

// idsOf are the messages of a Job.
func idsOf(t *testing.T, job *batchv1.Job) []string {
	t.Helper()
	id, err := jobs.IdentityOf(job)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(id.Messages.All())
}

// packsOf are the messages of each Job, and its attempt, in order.
func packsOf(t *testing.T, all []batchv1.Job) []string {
	t.Helper()
	var packs []string
	for i := range all {
		packs = append(packs, strings.Join(idsOf(t, &all[i]), " ")+" #"+all[i].Annotations[jobs.AnnotationAttempt])
	}
	slices.Sort(packs)
	return packs
}

// report makes the pod of a pack's Job that has succeeded, with what its container says, and ends the Job.
func (h *harness) report(job, message string) {
	h.t.Helper()
	h.create(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: job, Labels: map[string]string{batchv1.JobNameLabel: job}},
		Status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "main", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: message}},
		}}},
	})
	h.succeed(job)
}

func TestMessagesArePacked(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "3", "batch-wait", "2s")
		p := h.start()
		q.Send("a", "b", "c", "d", "e", "f", "g")
		found := h.awaitJobs(2)
		if diff := cmp.Diff([]string{"m1 m2 m3 #1", "m4 m5 m6 #1"}, packsOf(t, found)); diff != "" {
			t.Errorf("packs (-want +got):\n%s", diff)
		}
		h.never(1500*time.Millisecond, "the last one goes before batch-wait is over", func() bool { return len(h.jobs()) > 2 })
		found = h.awaitJobs(3)
		if got := packsOf(t, found); got[2] != "m7 #1" {
			t.Errorf("packs %v, want m7 alone in the last", got)
		}
		for i := range found {
			if !jobs.Packed(&found[i]) {
				t.Errorf("Job %s was given no pack", found[i].Name)
			}
			h.report(found[i].Name, "done")
		}
		h.eventually(time.Second, "the queue is empty", func() bool { return q.Len() == 0 })
		h.eventually(time.Second, "the Jobs are marked", func() bool {
			return !slices.ContainsFunc(h.jobs(), func(j batchv1.Job) bool { return j.Labels[jobs.LabelSettled] != string(completed) })
		})
		for name, want := range map[string]float64{
			"messages_received_total": 7, "jobs_launched_total": 3, "tasks_settled_total": 7, "in_flight_tasks": 0, "errors_total": 0, "task_failures_total": 0,
		} {
			if got := p.metric(name, "template", "cronjob/resize"); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
	})
}

// TestTasksPerJobChanges while messages wait: each is launched as the template says by then.
func TestTasksPerJobChanges(t *testing.T) {
	for name, c := range map[string]struct {
		before, after []string
		packed        bool
	}{
		"from packs to single ones": {
			[]string{"tasks-per-job", "10", "batch-wait", "10m"}, []string{"tasks-per-job", "", "batch-wait", ""}, false,
		},
		"from single ones to packs": {[]string{"jobs-per-second", "0.01"}, []string{"tasks-per-job", "10", "jobs-per-second", ""}, true},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", c.before...)
				p := h.start()
				advance(time.Second)
				q.Send("a", "b", "c")
				advance(5 * time.Second)
				h.annotate("resize", c.after...)
				seen := map[string]int{}
				// Packs are not made before it is certain that no request for a single Job is under way.
				h.eventually(2*time.Minute, "each message has a Job", func() bool {
					clear(seen)
					for _, j := range h.jobs() {
						for _, id := range idsOf(t, &j) {
							seen[id]++
						}
					}
					return len(seen) == 3
				})
				if diff := cmp.Diff(map[string]int{"m1": 1, "m2": 1, "m3": 1}, seen); diff != "" {
					t.Errorf("Jobs of each message (-want +got):\n%s", diff)
				}
				last := h.jobs()[len(h.jobs())-1]
				if jobs.Packed(&last) != c.packed {
					t.Errorf("the last Job has a pack: %v, want %v", jobs.Packed(&last), c.packed)
				}
				for _, j := range h.jobs() {
					h.report(j.Name, "")
				}
				h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
				for _, l := range p.lanes() {
					if wrong := l.miscounted(); wrong != "" {
						t.Error(wrong)
					}
				}
			})
		})
	}
}

// TestPartsOfAPackFail has tasks say which messages failed, or fail altogether.
func TestPartsOfAPackFail(t *testing.T) {
	for name, c := range map[string]struct {
		message string   // of the pod of the first Job; "-": the Job fails
		again   []string // messages
		most    int      // of them in one pack
		reason  string
	}{
		"one is named":        {`{"failed": ["m2"]}`, []string{"m2"}, 1, "named the message"},
		"two are named":       {`{"failed": ["m2", "m4"]}`, []string{"m2", "m4"}, 2, "named the message"},
		"none is named":       {`{"failed": []}`, nil, 0, ""},
		"plain text":          {"all is well", nil, 0, ""},
		"the Job fails":       {"-", []string{"m1", "m2", "m3", "m4"}, 2, "the pod failed"},
		"a stranger is named": {`{"failed": ["m9"]}`, []string{"m1", "m2", "m3", "m4"}, 2, "not in the pack"},
		"not to be parsed":    {`{"failed": "m1"}`, []string{"m1", "m2", "m3", "m4"}, 2, "not of the form"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "tasks-per-job", "4", "max-attempts", "3", "retry-backoff", "1s..1s")
				p := h.start()
				q.Send("a", "b", "c", "d")
				first := h.awaitJobs(1)[0].Name
				if c.message == "-" {
					h.fail(first)
				} else {
					h.report(first, c.message)
				}
				advance(10 * time.Second)
				var again []string
				for _, j := range h.jobs() {
					if ids := idsOf(t, &j); j.Annotations[jobs.AnnotationAttempt] != "1" {
						if again = append(again, ids...); len(ids) > c.most {
							t.Errorf("%v are tried again together, want %d at most", ids, c.most)
						}
					}
				}
				slices.Sort(again)
				if diff := cmp.Diff(c.again, again); diff != "" {
					t.Errorf("tried again (-want +got):\n%s", diff)
				}
				told, failures := 0, 0.0
				if c.reason != "" {
					told, failures = 1, 1
				}
				if got := h.told("resize", "AttemptFailed", c.reason); got != told {
					t.Errorf("%d Events tell why, want %d\n%s", got, told, h.dump())
				}
				if got := p.metric("task_failures_total", "template", "cronjob/resize"); got != failures {
					t.Errorf("%v failures were counted, want %v", got, failures)
				}
				for _, j := range h.unfinished() {
					h.report(j.Name, "")
				}
				h.eventually(time.Second, "the queue is empty", func() bool { return q.Len() == 0 })
				h.eventually(time.Second, "the Jobs are marked", func() bool {
					return !slices.ContainsFunc(h.jobs(), func(j batchv1.Job) bool { return j.Labels[jobs.LabelSettled] == "" })
				})
			})
		})
	}
}

// TestABadMessagePoisonsNoNeighbour has one message that makes each Job fail that it is in.
func TestABadMessagePoisonsNoNeighbour(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "27", "max-attempts", "4", "retry-backoff", "1s..1s")
		h.start()
		for i := range 27 {
			q.Send(fmt.Sprint(i))
		}
		h.eventually(5*time.Minute, "the queue is empty", func() bool {
			for _, j := range h.unfinished() {
				if slices.Contains(idsOf(t, &j), "m13") {
					h.fail(j.Name)
				} else {
					h.report(j.Name, "")
				}
			}
			return q.Len() == 0
		})
		moved := q.Poisoned()
		if len(moved) != 1 || moved[0].Message.ID != "m13" || moved[0].Attempts != 4 {
			t.Errorf("poisoned %+v, want m13 alone, after 4 attempts", moved)
		}
	})
}

func TestAPackOutlivesItsLeader(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "3", "lease-duration", "20s")
		first := h.start()
		q.Send("a", "b", "c")
		job := h.awaitJobs(1)[0].Name
		h.ready(job)
		second := h.start()
		first.crash()
		h.never(2*time.Minute, "another Job", func() bool { return len(h.jobs()) != 1 })
		h.report(job, `{"failed": ["m2"]}`)
		h.eventually(time.Minute, "m2 is tried again", func() bool { return len(h.jobs()) == 2 })
		if q.Len() != 1 {
			t.Errorf("%d messages are left, want the one that failed", q.Len())
		}
		again := h.unfinished()[0]
		if got := idsOf(t, &again); !slices.Equal(got, []string{"m2"}) || again.Annotations[jobs.AnnotationAttempt] != "2" {
			t.Errorf("%v is tried again as attempt %s, want m2 as 2", got, again.Annotations[jobs.AnnotationAttempt])
		}
		h.report(again.Name, "")
		h.eventually(time.Minute, "the queue is empty", func() bool { return q.Len() == 0 })
		second.stop()
	})
}

// TestAPackFinishedWhileNobodyLed is settled, message by message, as they come again.
func TestAPackFinishedWhileNobodyLed(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "3", "lease-duration", "20s", "retry-backoff", "1s..1s")
		first := h.start()
		q.Send("a", "b", "c")
		job := h.awaitJobs(1)[0].Name
		first.crash()
		advance(time.Second)
		h.report(job, `{"failed": ["m3"]}`)
		h.start()
		h.eventually(2*time.Minute, "m3 is tried again", func() bool { return len(h.jobs()) == 2 })
		if q.Len() != 1 {
			t.Errorf("%d messages are left, want the one that failed", q.Len())
		}
	})
}

// TestPayloadSecretAfterACrash has a leader end between a Job and its Secret.
func TestPayloadSecretAfterACrash(t *testing.T) {
	for name, annotations := range map[string][]string{
		"one message":                {"payload", "file"},
		"a pack":                     {"tasks-per-job", "2"},
		"with room for nothing else": {"payload", "file", "max-in-flight", "1"},
		"and nothing else pending":   {"tasks-per-job", "2", "max-pending", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", append(annotations, "lease-duration", "20s")...)
				first := h.start()
				fault := h.api.inject(&apiFault{verbs: "create", resource: "secrets", answer: internal})
				ids := q.Send("a", "b")
				h.eventually(time.Minute, "there is a Job", func() bool { return len(h.jobs()) > 0 })
				waiting := h.jobs()[0].Name
				first.crash()
				h.api.remove(fault)
				h.start()
				h.eventually(2*time.Minute, "its Secret is there", func() bool {
					for _, j := range h.unfinished() {
						if j.Name != waiting {
							h.report(j.Name, "")
						}
					}
					_, err := h.admin.CoreV1().Secrets(namespace).Get(t.Context(), waiting, metav1.GetOptions{})
					if err != nil && !apierrors.IsNotFound(err) {
						t.Fatal(err)
					}
					return err == nil
				})
				secret, err := h.admin.CoreV1().Secrets(namespace).Get(t.Context(), waiting, metav1.GetOptions{})
				h.must(err)
				if owners := secret.OwnerReferences; len(owners) != 1 || owners[0].UID != h.job(waiting).UID || secret.Immutable == nil || !*secret.Immutable {
					t.Errorf("the Secret is owned by %v, immutable: %v; want the Job", owners, secret.Immutable)
				}
				h.eventually(5*time.Minute, "all is done", func() bool {
					for _, j := range h.unfinished() {
						h.report(j.Name, "")
					}
					return q.Len() == 0
				})
				for _, id := range ids {
					seen := 0
					for _, j := range h.jobs() {
						if slices.Contains(idsOf(t, &j), id) {
							seen++
						}
					}
					if seen != 1 {
						t.Errorf("message %s had %d Jobs, want 1", id, seen)
					}
				}
			})
		})
	}
}

// TestSecretsRefused stops dispatch, as refused Jobs do, and costs no attempt.
func TestSecretsRefused(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "payload", "secret")
		h.start()
		advance(time.Second)
		fault := h.api.inject(&apiFault{verbs: "create dry-run", resource: "secrets", answer: forbidden})
		q.Send("a", "b", "c")
		h.eventually(time.Minute, "it is told", func() bool { return h.told("resize", "JobRejected", "Secret") > 0 })
		n := len(h.jobs())
		h.never(time.Minute, "further Jobs", func() bool { return len(h.jobs()) != n })
		h.api.remove(fault)
		h.eventually(2*time.Minute, "all is done", func() bool {
			for _, j := range h.unfinished() {
				if _, err := h.admin.CoreV1().Secrets(namespace).Get(t.Context(), j.Name, metav1.GetOptions{}); err == nil {
					h.succeed(j.Name)
				}
			}
			return q.Len() == 0
		})
		for _, j := range h.jobs() {
			if j.Annotations[jobs.AnnotationAttempt] != "1" {
				t.Errorf("Job %s is attempt %s", j.Name, j.Annotations[jobs.AnnotationAttempt])
			}
		}
	})
}

// TestLostAnswerToAPack finds out what became of a request before it puts its messages elsewhere.
func TestLostAnswerToAPack(t *testing.T) {
	for name, effect := range map[string]bool{"it had its effect": true, "it had none": false} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "tasks-per-job", "3")
				h.start()
				advance(time.Second)
				// The cache does not hear of it, and every try fails in passing.
				h.api.gate.set(func(s *gateState) { s.held = true })
				h.api.inject(&apiFault{verbs: "create", resource: "jobs", times: 1, afterEffect: effect, answer: internal})
				fault := h.api.inject(&apiFault{verbs: "create", resource: "jobs", answer: internal})
				q.Send("a", "b", "c")
				advance(4 * time.Minute) // longer than a message is kept whose Job cannot be created
				h.api.remove(fault)
				h.api.gate.set(func(s *gateState) { s.held = false })
				h.eventually(30*time.Minute, "the queue is empty", func() bool {
					for _, j := range h.unfinished() {
						h.report(j.Name, "")
					}
					return q.Len() == 0
				})
				seen := map[string]int{}
				for _, j := range h.jobs() {
					for _, id := range idsOf(t, &j) {
						seen[id]++
					}
				}
				if diff := cmp.Diff(map[string]int{"m1": 1, "m2": 1, "m3": 1}, seen); diff != "" {
					t.Errorf("Jobs of each message (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestUndecodableMessageIsPoisonedAtOnce(t *testing.T) {
	for name, annotations := range map[string][]string{
		"single": nil,
		"packed": {"tasks-per-job", "5"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", append(annotations, "message-encoding", "base64")...)
				p := h.start()
				ids := q.Send("aGVsbG8=", "no base64!")
				job := h.awaitJobs(1)[0]
				if got := idsOf(t, &job); !slices.Equal(got, ids[:1]) {
					t.Errorf("the Job is for %v, want %v", got, ids[:1])
				}
				values := job.Spec.Template.Spec.Containers[0].Env
				if !slices.ContainsFunc(values, func(v corev1.EnvVar) bool { return v.Name == jobs.EnvPayload && strings.Contains(v.Value, "hello") }) {
					t.Errorf("the environment is %v, want the decoded message", values)
				}
				h.eventually(time.Second, "the other is poisoned", func() bool { return len(q.Poisoned()) == 1 })
				moved := q.Poisoned()[0]
				if moved.Message.ID != ids[1] || string(moved.Message.Body) != "no base64!" || moved.Attempts != 0 || !strings.Contains(moved.Reason, "base64") {
					t.Errorf("poisoned %+v, want the body as it was, and a reason", moved)
				}
				if strings.Contains(moved.Reason, "no base64!") || h.told("resize", "PayloadRefused", ids[1], "base64") != 1 {
					t.Errorf("the reason is %q\n%s", moved.Reason, h.dump())
				}
				if p.metric("errors_total", "stage", "launch", "class", "payload") != 1 {
					t.Error("no error of class payload was counted")
				}
			})
		})
	}
}

func TestTraceParent(t *testing.T) {
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for name, c := range map[string]struct {
		properties map[string]string
		want       string
	}{
		"none":            {nil, ""},
		"given":           {map[string]string{"traceparent": good}, good},
		"capital letters": {map[string]string{"TraceParent": good}, good},
		"not of the form": {map[string]string{"traceparent": "$(SECRET)"}, ""},
		"no trace":        {map[string]string{"traceparent": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"}, ""},
		"no span":         {map[string]string{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"}, ""},
		"forbidden":       {map[string]string{"traceparent": "ff" + good[2:]}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := traceParent(&lease.Lease{Message: lease.Message{Properties: c.properties}}); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
