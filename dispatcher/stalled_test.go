package dispatcher

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// pod gives a Job a pod that waits.
func (h *harness) pod(job, reason, message string) {
	h.t.Helper()
	h.create(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: job, Labels: map[string]string{batchv1.JobNameLabel: job}},
		Status:     waitingStatus(reason, message),
	})
}

func waitingStatus(reason, message string) corev1.PodStatus {
	if reason == "Unschedulable" || reason == "SchedulingGated" {
		return corev1.PodStatus{Conditions: []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		}}}
	}
	return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
		Name: "main", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
	}}}
}

// TestJobsThatDoNotStart: start-timeout is off, and all the same it is told why, until they start.
func TestJobsThatDoNotStart(t *testing.T) {
	for reason, label := range map[string]string{
		"Unschedulable": "Unschedulable", "ErrImagePull": "ErrImagePull", "CreateContainerConfigError": "CreateContainerConfigError",
		"SomethingNew": "other", "ContainerCreating": "ContainerCreating",
	} {
		t.Run(reason, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize")
				p := h.start()
				state := func(state string) bool { return p.metric("template_state", "state", state) == 1 }
				q.sendMany(3)
				found := names(h.awaitJobs(3))
				for _, job := range found {
					h.pod(job, reason, "because")
				}
				h.never(stalledAfter-time.Second, "it is told early", func() bool { return h.told("resize", "JobsNotStarting") != 0 || !state("running") })
				h.eventually(creatingAfter+stalledAfter, "the state is stalled", func() bool { return state("stalled") && !state("running") })
				advance(time.Second)
				if h.told("resize", "JobsNotStarting", "3 Jobs", "resize-", reason+": because") != 1 {
					t.Errorf("Events:\n%s", h.dump())
				}
				if got := p.metric("stalled_tasks", "reason", label); got != 3 || p.metric("stalled_tasks") != 3 || p.metric("pending_tasks") != 3 {
					t.Errorf("%v stalled by %s, %v in all, %v pending; want 3", got, label, p.metric("stalled_tasks"), p.metric("pending_tasks"))
				}
				before := h.api.count("list", "pods")
				advance(5 * time.Minute)
				if got := h.api.count("list", "pods") - before; got > 10 {
					t.Errorf("%d requests for pods in five minutes", got)
				}
				if got := h.told("resize", "JobsNotStarting"); got != 1 {
					t.Errorf("%d Events, want one", got)
				}
				h.ready(found...)
				h.eventually(15*time.Second, "the state is running", func() bool { return state("running") && p.metric("stalled_tasks") == 0 })
				h.eventually(2*time.Minute, "it is told that they start", func() bool { return h.told("resize", "Resumed") == 1 })
				before = h.api.count("list", "pods")
				advance(10 * time.Minute)
				if h.api.count("list", "pods") != before || p.metric("pending_tasks") != 0 {
					t.Error("pods of Jobs that have started are asked for")
				}
			})
		})
	}
}

// TestImageReasonsThatTakeTurns are one problem.
func TestImageReasonsThatTakeTurns(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize")
		h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		h.pod(job, "ErrImagePull", "x")
		for i := range 20 {
			reason := []string{"ErrImagePull", "ImagePullBackOff"}[i%2]
			h.must(edit(h.api, "pods", namespace, job, func(p *corev1.Pod) { p.Status = waitingStatus(reason, "x") }))
			advance(25 * time.Second)
		}
		if got := h.told("resize", "JobsNotStarting"); got != 1 {
			t.Errorf("%d Events, want one\n%s", got, h.dump())
		}
	})
}

// TestWaitingIsNotStalled: what is suspended or gated waits to be let in, and what runs without being ready has started.
func TestWaitingIsNotStalled(t *testing.T) {
	for name, test := range map[string]struct {
		suspended bool
		pod       corev1.PodStatus
	}{
		"suspended":              {suspended: true, pod: waitingStatus("Unschedulable", "left over")},
		"gated":                  {pod: waitingStatus("SchedulingGated", "")},
		"running, and not ready": {pod: corev1.PodStatus{Phase: corev1.PodRunning}},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.queue("resize")
				c := cronJob("resize")
				if test.suspended {
					c.Spec.JobTemplate.Spec.Suspend = ptr.To(true)
				}
				h.create(c)
				p := h.start()
				q.Send("x")
				job := h.awaitJobs(1)[0].Name
				h.create(&corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: job, Labels: map[string]string{batchv1.JobNameLabel: job}},
					Status:     test.pod,
				})
				h.never(30*time.Minute, "it counts as stalled", func() bool {
					return h.told("resize", "JobsNotStarting") != 0 || p.metric("template_state", "state", "stalled") != 0 || p.metric("stalled_tasks") != 0
				})
				if got := h.api.count("list", "pods"); test.suspended && got != 0 || got > 65 {
					t.Errorf("%d requests for pods", got)
				}
				// Once it is let in, its time begins.
				h.editJob(job, func(j *batchv1.Job) { j.Spec.Suspend = nil })
				h.must(edit(h.api, "pods", namespace, job, func(p *corev1.Pod) { p.Status = waitingStatus("Unschedulable", "0/3 nodes") }))
				h.eventually(2*time.Minute, "it is told", func() bool { return h.told("resize", "JobsNotStarting", "0/3 nodes") == 1 })
			})
		})
	}
}

// TestStalledAndTimedOut: start-timeout ends the Jobs, and the state is running once the next ones start.
func TestStalledAndTimedOut(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "start-timeout", "2m", "retry-backoff", "1s..1s")
		p := h.start()
		q.Send("x")
		job := h.awaitJobs(1)[0].Name
		h.eventually(time.Minute, "it is told", func() bool { return h.told("resize", "JobsNotStarting", "it has no pods") == 1 })
		if p.metric("stalled_tasks", "reason", "NoPods") != 1 {
			t.Error("the metric does not tell")
		}
		h.eventually(2*time.Minute, "the Job is ended", func() bool { return h.job(job).Spec.ActiveDeadlineSeconds != nil })
		h.condition(job, batchv1.JobFailed, "DeadlineExceeded", "")
		h.ready(h.awaitJobs(2)[1].Name)
		h.eventually(time.Minute, "the state is running", func() bool { return p.metric("template_state", "state", "running") == 1 })
	})
}
