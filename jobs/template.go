package jobs

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
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
	if err := reserved(&spec.Template.Spec); err != nil {
		return nil, err
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
	Content *Content
	// Packed says that the content is a pack, be it of one message, and speaks of its messages itself.
	Packed bool
	// EnqueuedAt and TraceParent are the message's, where it is one (see Message).
	EnqueuedAt  time.Time
	TraceParent string
}

// What a container is told of its task.
const (
	EnvMessageID   = "LIGHTERMAN_MESSAGE_ID"
	EnvAttempt     = "LIGHTERMAN_ATTEMPT"
	EnvSource      = "LIGHTERMAN_SOURCE"
	EnvEnqueuedAt  = "LIGHTERMAN_ENQUEUED_AT"
	EnvTaskCount   = "LIGHTERMAN_TASK_COUNT"
	EnvTraceParent = "TRACEPARENT"
)

// context is what a container is told of its task, as variables.
func (task *Task) context() []corev1.EnvVar {
	env := make([]corev1.EnvVar, 0, 8)
	add := func(name, value string) {
		if value != "" {
			env = append(env, corev1.EnvVar{Name: name, Value: escape(value)})
		}
	}
	if !task.Packed {
		add(EnvMessageID, string(task.Messages))
		add(EnvEnqueuedAt, enqueuedAt(task.EnqueuedAt))
		add(EnvTraceParent, task.TraceParent)
	}
	add(EnvAttempt, strconv.Itoa(task.Attempt))
	add(EnvSource, task.Source)
	add(EnvTaskCount, strconv.Itoa(task.Messages.Len()))
	return env
}

// enqueuedAt is the form in which a container is told of a time; empty where there is none.
func enqueuedAt(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339Nano)
}

// Job makes the Job of a task, and the Secret that its pods wait for, nil where there is none (see Launcher.Provide). The result shares memory with
// the template: it may be sent, not changed. It fails with ErrPayload where the payload cannot be carried.
func (t *Template) Job(task Task) (*batchv1.Job, *corev1.Secret, error) {
	job := t.prototype
	pod := &job.Spec.Template.Spec
	content, err := task.Content.within(len(pod.InitContainers) + len(pod.Containers))
	if err != nil {
		return nil, nil, err
	}
	job.Name = task.Name()
	job.Annotations = make(map[string]string, len(t.prototype.Annotations)+7)
	maps.Copy(job.Annotations, t.prototype.Annotations)
	job.Annotations[AnnotationTemplate] = t.ref.annotation()
	job.Annotations[AnnotationSource] = task.Source
	if task.Packed {
		job.Annotations[AnnotationMessageIDs] = string(task.Messages)
	} else {
		job.Annotations[AnnotationMessageID] = string(task.Messages)
	}
	job.Annotations[AnnotationAttempt] = strconv.Itoa(task.Attempt)
	if at := enqueuedAt(task.EnqueuedAt); at != "" && !task.Packed {
		job.Annotations[AnnotationEnqueuedAt] = at
	}
	secret := t.Secret(&job, content)
	if secret != nil {
		job.Annotations[AnnotationPayload] = PayloadInSecret
	}
	env := append(content.variables(job.Name), task.context()...)
	volume, mount, mounted := content.volume(job.Name)
	if mounted {
		pod.Volumes = append(pod.Volumes[:len(pod.Volumes):len(pod.Volumes)], volume)
	}
	for _, containers := range []*[]corev1.Container{&pod.InitContainers, &pod.Containers} {
		*containers = withEnv(*containers, env)
		for i := range *containers {
			if c := &(*containers)[i]; mounted {
				c.VolumeMounts = append(c.VolumeMounts[:len(c.VolumeMounts):len(c.VolumeMounts)], mount)
			}
		}
	}
	return &job, secret, nil
}

// reserved refuses a pod that uses the names by which a payload is handed over.
func reserved(pod *corev1.PodSpec) error {
	for _, v := range pod.Volumes {
		if v.Name == volumeName {
			return fmt.Errorf("%w: it has a volume named %s, which the dispatcher needs for payloads; rename it", ErrTemplate, volumeName)
		}
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, env := range c.Env {
			switch env.Name {
			case EnvPayload, EnvPayloadFile, EnvPayloadEncoding:
				return fmt.Errorf("%w: container %q sets %s itself; remove it, the dispatcher puts the payload there", ErrTemplate, c.Name, env.Name)
			}
		}
		for _, m := range c.VolumeMounts {
			// In most images, /var/run is a link to /run.
			at := strings.TrimPrefix(path.Clean(m.MountPath), "/var")
			if dir := strings.TrimPrefix(PayloadDir, "/var"); at == dir || strings.HasPrefix(at, dir+"/") {
				return fmt.Errorf("%w: container %q mounts volume %s at %s, where the dispatcher puts payloads; mount it elsewhere", ErrTemplate, c.Name, m.Name, m.MountPath)
			}
		}
	}
	return nil
}

// withEnv gives each container the variables, before its own, so that those can refer to them, as in $(KEDA_TASK_DATA), or replace them.
func withEnv(containers []corev1.Container, env []corev1.EnvVar) []corev1.Container {
	if len(containers) == 0 {
		return nil
	}
	out := make([]corev1.Container, len(containers))
	copy(out, containers)
	for i := range out {
		out[i].Env = slices.Concat(env, out[i].Env)
	}
	return out
}

func merge(a, b map[string]string) map[string]string {
	m := make(map[string]string, len(a)+len(b))
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}
