// Package payload checks, with the code of Kubernetes itself and with programs as users write them, that a payload arrives byte for byte.
//
// What jobs writes into a pod template is not what a container finds: the kubelet expands $(NAME) in the value of a variable, from top to bottom, with
// whatever variables the container has by then, secrets among them. The kubelet's own package does it here, in the kubelet's order, so that no
// other notion of its rules, be it ours, can hide a mistake. The readers in examples/payload are then started with what came out.
package payload

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/jobs"
)

// What a template's container knows besides its task, and a message must not get at: of envFrom, of the variables before and after ours.
const (
	fromSecret = "hunter2-of-envFrom"
	ownSecret  = "hunter2-of-the-container"
	apiServer  = "10.96.0.1"
)

// newTemplate is a template with secrets in its environment, and with variables and arguments that refer to the payload.
func newTemplate(t testing.TB) *jobs.Template {
	t.Helper()
	container := corev1.Container{
		Name:    "main",
		Command: []string{"run", "$(KEDA_TASK_DATA)"},
		EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "all"}}}},
		Env: []corev1.EnvVar{
			{Name: "SECRET_Y", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: "one"}, Key: "key",
			}}},
			{Name: "ARGUMENT", Value: "<$(KEDA_TASK_DATA)>"},
			{Name: "OF_A_SECRET", Value: "<$(SECRET_Y)>"},
		},
	}
	template, err := jobs.FromCronJob(&batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "resize"},
		Spec: batchv1.CronJobSpec{Suspend: ptr.To(true), JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{container}}},
		}}},
	}, func(m map[string]string) map[string]string { return m })
	if err != nil {
		t.Fatal(err)
	}
	return template
}

// container is what a process is started with.
type container struct {
	env     map[string]string
	command []string
	files   map[string][]byte // by path
}

// start makes of a Job's container, and the Secret of its payload, what a kubelet starts it with (see makeEnvironmentVariables in pkg/kubelet).
func start(t testing.TB, job *batchv1.Job, payload *corev1.Secret) container {
	t.Helper()
	secrets := map[string]map[string][]byte{
		"all": {"SECRET_X": []byte(fromSecret)}, "one": {"key": []byte(ownSecret)},
	}
	if payload != nil {
		secrets[payload.Name] = payload.Data
	}
	value := func(secret, key string) []byte {
		data, ok := secrets[secret][key]
		if !ok {
			t.Fatalf("there is no key %s in a Secret %s, and the pod would wait for it", key, secret)
		}
		return data
	}
	spec := job.Spec.Template.Spec.Containers[0]
	c := container{env: map[string]string{}, files: map[string][]byte{}}
	for _, from := range spec.EnvFrom {
		for key, data := range secrets[from.SecretRef.Name] {
			c.env[key] = string(data)
		}
	}
	services := map[string]string{"KUBERNETES_SERVICE_HOST": apiServer}
	lookUp := expansion.MappingFuncFor(c.env, services)
	for _, v := range spec.Env {
		if ref := v.ValueFrom; v.Value == "" && ref != nil {
			c.env[v.Name] = string(value(ref.SecretKeyRef.Name, ref.SecretKeyRef.Key))
			continue
		}
		c.env[v.Name] = expansion.Expand(v.Value, lookUp)
	}
	// Of the command, only the container's own variables are expanded (ExpandContainerCommandAndArgs), and services' are among them by then.
	maps.Copy(c.env, services)
	for _, part := range spec.Command {
		c.command = append(c.command, expansion.Expand(part, expansion.MappingFuncFor(c.env)))
	}
	for _, m := range spec.VolumeMounts {
		i := slices.IndexFunc(job.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		volume := job.Spec.Template.Spec.Volumes[i].Secret
		for _, item := range volume.Items {
			c.files[filepath.Join(m.MountPath, item.Path)] = value(volume.SecretName, item.Key)
		}
	}
	return c
}

var modes = []jobs.PayloadMode{jobs.PayloadAuto, jobs.PayloadEnv, jobs.PayloadSecret, jobs.PayloadAsFile}

// single makes the container of one message.
func single(t testing.TB, template *jobs.Template, mode jobs.PayloadMode, m jobs.Message) (container, error) {
	t.Helper()
	content, err := jobs.NewContent(mode, bytes.Clone(m.Body))
	if err != nil {
		return container{}, err
	}
	job, secret, err := template.Job(jobs.Task{
		Identity: jobs.Identity{Source: "redis-streams://redis:6379/0/tasks?group=lighterman", Messages: jobs.NewMessageSet(m.ID), Attempt: 1},
		Content:  content, EnqueuedAt: m.EnqueuedAt, TraceParent: m.TraceParent,
	})
	if err != nil {
		return container{}, err
	}
	return start(t, job, secret), nil
}

// packed makes the container of a pack.
func packed(t testing.TB, template *jobs.Template, mode jobs.PayloadMode, messages ...jobs.Message) container {
	t.Helper()
	pack := jobs.NewPack(mode, 1)
	ids := make([]string, len(messages))
	for i, m := range messages {
		if ids[i] = m.ID; !pack.Add(m) {
			t.Fatalf("message %d does not fit", i)
		}
	}
	job, secret, err := template.Job(jobs.Task{
		Identity: jobs.Identity{Source: "redis-streams://redis:6379/0/tasks?group=lighterman", Messages: jobs.NewMessageSet(ids...), Attempt: 1},
		Content:  pack.Content(), Packed: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return start(t, job, secret)
}
