package jobs

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Template is what the Jobs of one annotated object have in common, prepared once so that making one Job is cheap.
type Template struct {
	ref Ref
	// prototype is shared by all Jobs made from it: whatever differs between Jobs is copied before it is written to.
	prototype batchv1.Job
	// ttl is the template's own ttlSecondsAfterFinished, held back until the message is settled.
	ttl *int32
	// history is a CronJob's own limits, or their defaults.
	history History
}

// History is how many finished Jobs a template keeps for people to look at, as CronJobs do.
type History struct{ Succeeded, Failed int }

// defaultHistory is what the API server gives a CronJob that does not say.
var defaultHistory = History{Succeeded: 3, Failed: 1}

// ErrTemplate means that an object cannot serve as a template. The remedy is in the text.
var ErrTemplate = errors.New("unusable template")

// FromCronJob makes a template of a suspended CronJob's jobTemplate.
func FromCronJob(c *batchv1.CronJob, strip func(map[string]string) map[string]string) (*Template, error) {
	if c.Spec.Suspend == nil || !*c.Spec.Suspend {
		return nil, fmt.Errorf("%w: spec.suspend is not true, so the CronJob would also start Jobs by its schedule, without a message; set spec.suspend: true", ErrTemplate)
	}
	t, err := newTemplate(RefOf("CronJob", c), c.Spec.JobTemplate.Labels, strip(c.Spec.JobTemplate.Annotations), *c.Spec.JobTemplate.Spec.DeepCopy())
	if err != nil {
		return nil, err
	}
	if limit := c.Spec.SuccessfulJobsHistoryLimit; limit != nil {
		t.history.Succeeded = int(*limit)
	}
	if limit := c.Spec.FailedJobsHistoryLimit; limit != nil {
		t.history.Failed = int(*limit)
	}
	return t, nil
}

// FromJob makes a template of a suspended Job.
func FromJob(j *batchv1.Job, strip func(map[string]string) map[string]string) (*Template, error) {
	if j.Spec.Suspend == nil || !*j.Spec.Suspend {
		return nil, fmt.Errorf("%w: spec.suspend is not true, so the Job runs by itself, without a message; create it with spec.suspend: true", ErrTemplate)
	}
	if j.Status.Active > 0 || j.Status.Succeeded > 0 || j.Status.Failed > 0 {
		return nil, fmt.Errorf("%w: the Job has run already; create it anew with spec.suspend: true, or use a suspended CronJob", ErrTemplate)
	}
	spec := *j.Spec.DeepCopy()
	spec.Suspend = nil // it is what makes this one a template
	if spec.ManualSelector == nil || !*spec.ManualSelector {
		// The API server put these in; it makes new ones for each Job.
		spec.Selector = nil
		dropGenerated(spec.Template.Labels)
	}
	labels := maps.Clone(j.Labels)
	dropGenerated(labels)
	return newTemplate(RefOf("Job", j), labels, strip(j.Annotations), spec)
}

// dropGenerated removes the labels that the API server puts on a Job and its pods, of which each Job gets its own.
func dropGenerated(labels map[string]string) {
	for _, key := range []string{"controller-uid", "job-name", batchv1.ControllerUidLabel, batchv1.JobNameLabel} {
		delete(labels, key)
	}
}

// toolAnnotations tie an object to the tool that applied it, and would tie each Job to it as well: kubectl's is a copy of the whole template,
// and by Argo CD's a Job passes for part of the application that nobody asked for. The label app.kubernetes.io/instance, which Argo CD can be
// set to track by, stays: it is also Helm's and people's own; Argo CD's own advice is to track by annotation.
var toolAnnotations = []string{corev1.LastAppliedConfigAnnotation, "argocd.argoproj.io/tracking-id"}

func newTemplate(ref Ref, labels, annotations map[string]string, spec batchv1.JobSpec) (*Template, error) {
	t := &Template{ref: ref, ttl: spec.TTLSecondsAfterFinished, history: defaultHistory}
	// A Job that removed itself before its message is settled would take the record of its run with it.
	spec.TTLSecondsAfterFinished = nil
	for _, containers := range [][]corev1.Container{spec.Template.Spec.InitContainers, spec.Template.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			for _, env := range c.Env {
				if env.Name == EnvPayload {
					return nil, fmt.Errorf("%w: container %q sets %s itself; remove it, the dispatcher puts the payload there", ErrTemplate, c.Name, EnvPayload)
				}
			}
		}
	}
	annotations = maps.Clone(annotations)
	for _, tool := range toolAnnotations {
		delete(annotations, tool)
	}
	mark := map[string]string{LabelTemplate: labelValue(ref.Name)}
	spec.Template.Labels = merge(spec.Template.Labels, mark)
	t.prototype = batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   ref.Namespace,
			Labels:      merge(labels, mark),
			Annotations: annotations,
		},
		Spec: spec,
	}
	return t, nil
}

// Ref names the object that the template was made from.
func (t *Template) Ref() Ref { return t.ref }

// TTL is how long the template wants its finished Jobs kept; ok is false where it does not say.
func (t *Template) TTL() (ttl time.Duration, ok bool) {
	if t.ttl == nil {
		return 0, false
	}
	return time.Duration(*t.ttl) * time.Second, true
}

// History is how many of its finished Jobs the template wants kept, where it has no TTL.
func (t *Template) History() History { return t.history }

// Made reports whether a Job was made from this template.
func (t *Template) Made(job *batchv1.Job) bool {
	return job.Namespace == t.ref.Namespace && job.Annotations[AnnotationTemplate] == t.ref.annotation()
}

// Task is what a Job is made for.
type Task struct {
	Identity
	// Payload is handed to the containers, byte for byte.
	Payload []byte
	// EnqueuedAt is when the message came into its source; zero where that is not known.
	EnqueuedAt time.Time
}

// Job makes the Job of a task. The result shares memory with the template: it may be sent, not changed. It fails with
// ErrPayload where the payload cannot be carried.
func (t *Template) Job(task Task) (*batchv1.Job, error) {
	payload, err := payloadEnv(task.Payload)
	if err != nil {
		return nil, err
	}
	job := t.prototype
	job.Name = task.Name()
	job.Annotations = make(map[string]string, len(t.prototype.Annotations)+5)
	maps.Copy(job.Annotations, t.prototype.Annotations)
	job.Annotations[AnnotationTemplate] = t.ref.annotation()
	job.Annotations[AnnotationSource] = task.Source
	job.Annotations[AnnotationMessageID] = task.MessageID
	job.Annotations[AnnotationAttempt] = strconv.Itoa(task.Attempt)
	if !task.EnqueuedAt.IsZero() {
		job.Annotations[AnnotationEnqueuedAt] = task.EnqueuedAt.UTC().Format(time.RFC3339Nano)
	}
	pod := &job.Spec.Template.Spec
	pod.InitContainers = withEnv(pod.InitContainers, payload)
	pod.Containers = withEnv(pod.Containers, payload)
	return &job, nil
}

// withEnv gives each container the variable, before its own, so that those can refer to it as $(KEDA_TASK_DATA).
func withEnv(containers []corev1.Container, env corev1.EnvVar) []corev1.Container {
	if len(containers) == 0 {
		return nil
	}
	out := make([]corev1.Container, len(containers))
	copy(out, containers)
	for i := range out {
		out[i].Env = append([]corev1.EnvVar{env}, out[i].Env...)
	}
	return out
}

func merge(a, b map[string]string) map[string]string {
	m := make(map[string]string, len(a)+len(b))
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}
