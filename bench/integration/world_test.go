package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/redis/go-redis/v9"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// world is a namespace of the cluster, and what the tests do there.
type world struct {
	*testing.T
	namespace string
	client    kubernetes.Interface
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	client, err := kubernetes.NewForConfig(clustertest.Get(t).RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	return &world{T: t, namespace: clustertest.Namespace(t), client: client}
}

// eventually waits until what is asked for is so.
func (w *world) eventually(what string, done func(ctx context.Context) (bool, error)) {
	w.Helper()
	err := wait.PollUntilContextTimeout(w.Context(), 50*time.Millisecond, 2*time.Minute, true, done)
	if err != nil {
		w.Fatalf("waiting until %s: %v", what, err)
	}
}

// must fails the test on an error.
func must[T any](w *world) func(T, error) T {
	return func(v T, err error) T {
		w.Helper()
		if err != nil {
			w.Fatal(err)
		}
		return v
	}
}

// readYAML reads a manifest as it lies in the repository.
func readYAML[T any](w *world, path string) *T {
	w.Helper()
	text := must[[]byte](w)(os.ReadFile(path))
	var obj T
	if err := yaml.UnmarshalStrict(text, &obj); err != nil {
		w.Fatalf("%s: %v", path, err)
	}
	return &obj
}

func (w *world) createCronJob(c *batchv1.CronJob) *batchv1.CronJob {
	w.Helper()
	return must[*batchv1.CronJob](w)(w.client.BatchV1().CronJobs(w.namespace).Create(w.Context(), c, metav1.CreateOptions{}))
}

// annotate sets annotations of a CronJob; an empty value removes one.
func (w *world) annotate(name string, annotations map[string]string) {
	w.Helper()
	w.editCronJob(name, func(c *batchv1.CronJob) {
		for key, value := range annotations {
			if value == "" {
				delete(c.Annotations, key)
			} else {
				c.Annotations[key] = value
			}
		}
	})
}

func (w *world) editCronJob(name string, edit func(*batchv1.CronJob)) {
	w.Helper()
	c := must[*batchv1.CronJob](w)(w.client.BatchV1().CronJobs(w.namespace).Get(w.Context(), name, metav1.GetOptions{}))
	edit(c)
	must[*batchv1.CronJob](w)(w.client.BatchV1().CronJobs(w.namespace).Update(w.Context(), c, metav1.UpdateOptions{}))
}

func (w *world) createSecret(name string, data map[string]string) {
	w.Helper()
	must[*corev1.Secret](w)(w.client.CoreV1().Secrets(w.namespace).Create(w.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data,
	}, metav1.CreateOptions{}))
}

// jobs is all Jobs of the namespace that lighterman made.
func (w *world) jobs() []batchv1.Job {
	w.Helper()
	list := must[*batchv1.JobList](w)(w.client.BatchV1().Jobs(w.namespace).List(w.Context(), metav1.ListOptions{
		LabelSelector: "lighterman.dev/template",
	}))
	return list.Items
}

// succeeded counts the Jobs that are Complete.
func (w *world) succeeded() int {
	n := 0
	for _, job := range w.jobs() {
		if job.Status.Succeeded > 0 && job.Status.CompletionTime != nil {
			n++
		}
	}
	return n
}

// logs is what each of our pods wrote to its output.
func (w *world) logs() map[string]string {
	w.Helper()
	pods := must[*corev1.PodList](w)(w.client.CoreV1().Pods(w.namespace).List(w.Context(), metav1.ListOptions{
		LabelSelector: "lighterman.dev/template",
	}))
	logs := make(map[string]string)
	for _, pod := range pods.Items {
		stream := must[io.ReadCloser](w)(w.client.CoreV1().Pods(w.namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).Stream(w.Context()))
		text := must[[]byte](w)(io.ReadAll(stream))
		if err := stream.Close(); err != nil {
			w.Error(err)
		}
		logs[pod.Name] = string(text)
	}
	return logs
}

// events is the Warning Events on an object, those with the reason.
func (w *world) events(object, reason string) []corev1.Event {
	w.Helper()
	list := must[*corev1.EventList](w)(w.client.CoreV1().Events(w.namespace).List(w.Context(), metav1.ListOptions{
		FieldSelector: "involvedObject.name=" + object,
	}))
	var found []corev1.Event
	for _, e := range list.Items {
		if e.Reason == reason {
			found = append(found, e)
		}
	}
	return found
}

// waitForEvent waits for an Event with all the texts, and returns its message.
func (w *world) waitForEvent(object, reason string, texts ...string) {
	w.Helper()
	var seen []string
	err := wait.PollUntilContextTimeout(w.Context(), 100*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		seen = nil
		for _, e := range w.events(object, reason) {
			if containsAll(e.Message, texts) {
				return true, nil
			}
			seen = append(seen, e.Message)
		}
		return false, nil
	})
	if err != nil {
		w.Fatalf("no Event %s on %s with %q; there are %q", reason, object, texts, seen)
	}
}

func containsAll(s string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(s, text) {
			return false
		}
	}
	return true
}

// template is a small CronJob for a Redis stream, whose container prints the payload.
func template(name, stream string) *batchv1.CronJob {
	suspend, backoff := true, int32(0)
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			Annotations: map[string]string{
				"lighterman.dev/source":            "redis-streams",
				"lighterman.dev/stream":            stream,
				"lighterman.dev/connection-secret": "redis/url",
				"lighterman.dev/lease-duration":    "10s",
			},
		},
		Spec: batchv1.CronJobSpec{
			Suspend:  &suspend,
			Schedule: "0 0 31 2 *",
			JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
				BackoffLimit: &backoff,
				Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever,
					Containers: []corev1.Container{{
						Name: "main", Image: "busybox", Command: []string{"sh", "-c", `printf %s "$KEDA_TASK_DATA"`},
					}},
				}},
			}},
		},
	}
}

// shell makes the container of a template run a script.
func shell(c *batchv1.CronJob, script string) *batchv1.CronJob {
	c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Command = []string{"sh", "-c", script}
	return c
}

// rejectLabelled has the API server reject Jobs of this namespace that carry a label, as invalid.
func (w *world) rejectLabelled(label string) {
	w.Helper()
	name := w.namespace + "-reject"
	policies, bindings := w.client.AdmissionregistrationV1().ValidatingAdmissionPolicies(), w.client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	invalid := metav1.StatusReasonInvalid
	must[*admissionv1.ValidatingAdmissionPolicy](w)(policies.Create(w.Context(), &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create},
					Rule:       admissionv1.Rule{APIGroups: []string{"batch"}, APIVersions: []string{"v1"}, Resources: []string{"jobs"}},
				},
			}}},
			Validations: []admissionv1.Validation{{
				Expression: fmt.Sprintf("!has(object.metadata.labels) || !(%q in object.metadata.labels)", label),
				Message:    "label " + label + " is not allowed here",
				Reason:     &invalid,
			}},
		},
	}, metav1.CreateOptions{}))
	must[*admissionv1.ValidatingAdmissionPolicyBinding](w)(bindings.Create(w.Context(), &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName:        name,
			ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
			MatchResources: &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{
				MatchLabels: map[string]string{"kubernetes.io/metadata.name": w.namespace},
			}},
		},
	}, metav1.CreateOptions{}))
	w.Cleanup(func() {
		for _, err := range []error{
			bindings.Delete(context.WithoutCancel(w.Context()), name, metav1.DeleteOptions{}),
			policies.Delete(context.WithoutCancel(w.Context()), name, metav1.DeleteOptions{}),
		} {
			if err != nil {
				w.Error(err)
			}
		}
	})
	// A policy takes a moment to be in force.
	w.eventually("the policy is in force", func(ctx context.Context) (bool, error) {
		probe := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{label: ""}}, Spec: template("probe", "").Spec.JobTemplate.Spec}
		_, err := w.client.BatchV1().Jobs(w.namespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return apierrors.IsInvalid(err), nil
	})
}

// stream is a Redis stream that tests put messages into.
type stream struct {
	w     *world
	redis *redis.Client
	name  string
}

// withRedis runs a redis-server for the test, puts its URL in a Secret, and returns a stream.
func (w *world) withRedis(name string) *stream {
	w.Helper()
	server := servers.RunRedis(w.T, servers.RedisOptions{})
	w.createSecret("redis", map[string]string{"url": server.URL()})
	client := redis.NewClient(must[*redis.Options](w)(redis.ParseURL(server.URL())))
	w.Cleanup(func() {
		if err := client.Close(); err != nil {
			w.Error(err)
		}
	})
	return &stream{w: w, redis: client, name: name}
}

func (s *stream) named(name string) *stream { return &stream{w: s.w, redis: s.redis, name: name} }

func (s *stream) send(payloads ...string) {
	s.w.Helper()
	for _, payload := range payloads {
		s.add(payload)
	}
}

// add sends one message with further fields, and returns its id.
func (s *stream) add(payload string, fields ...string) string {
	s.w.Helper()
	return must[string](s.w)(s.redis.XAdd(s.w.Context(), &redis.XAddArgs{Stream: s.name, Values: append([]string{"data", payload}, fields...)}).Result())
}

func (s *stream) len() int64 {
	s.w.Helper()
	return must[int64](s.w)(s.redis.XLen(s.w.Context(), s.name).Result())
}

// leased is how many messages a dispatcher holds. Those that were given back are pending too, for a consumer that does not exist.
func (s *stream) leased() int64 {
	s.w.Helper()
	pending, err := s.redis.XPending(s.w.Context(), s.name, "lighterman").Result()
	if err != nil {
		return 0 // there is no group yet
	}
	leased := pending.Count
	for consumer, n := range pending.Consumers {
		if consumer == "lighterman-returned" {
			leased -= n
		}
	}
	return leased
}

func (s *stream) waitUntilEmpty() {
	s.w.Helper()
	s.w.eventually(fmt.Sprintf("stream %s is empty", s.name), func(context.Context) (bool, error) { return s.len() == 0, nil })
}

// queue is an Azure Storage queue that tests put messages into.
type queue struct {
	w          *world
	client     *azqueue.QueueClient
	connection string
}

// withQueue runs Azurite for the test, and returns a queue with the connection string of its account.
func (w *world) withQueue(name string) (*queue, string) {
	w.Helper()
	server := servers.RunAzurite(w.T, servers.AzuriteOptions{})
	client := must[*azqueue.QueueClient](w)(azqueue.NewQueueClientFromConnectionString(server.ConnectionString(), name, nil))
	if _, err := client.Create(w.Context(), nil); err != nil {
		w.Fatal(err)
	}
	return &queue{w: w, client: client, connection: server.ConnectionString()}, server.ConnectionString()
}

func (q *queue) send(payload string) {
	q.w.Helper()
	if _, err := q.client.EnqueueMessage(q.w.Context(), payload, nil); err != nil {
		q.w.Fatal(err)
	}
}

// len counts all messages, leased ones included.
func (q *queue) len() int64 {
	q.w.Helper()
	properties, err := q.client.GetProperties(q.w.Context(), nil)
	if err != nil {
		q.w.Fatal(err)
	}
	return *properties.ApproximateMessagesCount
}

func (q *queue) waitUntilEmpty() {
	q.w.Helper()
	q.w.eventually("the queue is empty", func(context.Context) (bool, error) { return q.len() == 0, nil })
}

// sibling creates another queue of the same account.
func (q *queue) sibling(name string) (*queue, error) {
	client, err := azqueue.NewQueueClientFromConnectionString(q.connection, name, nil)
	if err != nil {
		return nil, err
	}
	_, err = client.Create(q.w.Context(), nil)
	return &queue{w: q.w, client: client, connection: q.connection}, err
}
