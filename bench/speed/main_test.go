// Package speed measures lighterman, as a process of its own, on a real API server: how many Jobs a second it creates, compared
// with a plain loop that creates the same Jobs, and how soon after a message is enqueued its Job is there.
//
// The controllers and the scheduler do not run there, so nothing follows from a Job: what is measured is the way from the queue to
// the API server, not how fast the cluster would go on with it. Two benchmarks are about the whole life of a message, and have a cluster of their own
// with all that (whole_test.go): how much packs help, and what etcd has to store.
//
//	cd bench && go test -run '^$' -bench . ./speed
package speed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

func TestMain(m *testing.M) {
	if plan := os.Getenv(loopVariable); plan != "" {
		if err := runLoop(plan); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lighterman-speed-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	build = sync.OnceValues(func() (string, error) {
		binary := filepath.Join(dir, "lighterman")
		cmd := exec.CommandContext(context.Background(), "go", "build", "-o", binary, "./cmd/lighterman")
		cmd.Dir = "../.."
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		return binary, cmd.Run()
	})
	return clustertest.Main(m, localcluster.Config{})
}

// build builds lighterman, once, and returns its path. TestMain sets it.
var build func() (string, error)

// arena is the cluster without its controllers, as the benchmarks see it.
type arena struct {
	*testing.B
	kubeconfig string
	client     kubernetes.Interface
	requests   *requestCounter // made by this process
}

func newArena(b *testing.B) *arena {
	b.Helper()
	cluster := clustertest.Get(b)
	for _, name := range []string{localcluster.ControllerManager, localcluster.Scheduler} {
		if err := cluster.Kill(name); err != nil { // those that were killed already too
			b.Fatal(err)
		}
	}
	config := protobuf(cluster.RESTConfig())
	a := &arena{B: b, kubeconfig: cluster.Kubeconfig, requests: &requestCounter{}}
	config.Wrap(a.requests.wrap)
	a.client = must(kubernetes.NewForConfig(config))(b)
	return a
}

// protobuf sets the encoding that lighterman uses as well.
func protobuf(config *rest.Config) *rest.Config {
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return config
}

// newNamespace makes a namespace in which Jobs can be created. The cluster ends soon, so it is not removed.
func (a *arena) newNamespace() string {
	a.Helper()
	namespace := must(a.client.CoreV1().Namespaces().Create(a.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "speed-"}}, metav1.CreateOptions{}))(a.B)
	return namespace.Name
}

// createTemplate creates the template and the Secret that it refers to.
func (a *arena) createTemplate(namespace, connectionString string, annotations map[string]string) {
	a.Helper()
	must(a.client.CoreV1().Secrets(namespace).Create(a.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "queue"}, StringData: map[string]string{"connection-string": connectionString},
	}, metav1.CreateOptions{}))(a.B)
	must(a.client.BatchV1().CronJobs(namespace).Create(a.Context(), template(namespace, annotations), metav1.CreateOptions{}))(a.B)
}

// template is a CronJob as people write it for small tasks.
func template(namespace string, annotations map[string]string) *batchv1.CronJob {
	suspend, backoffLimit := true, int32(0)
	all := map[string]string{
		"lighterman.dev/connection-secret": "queue/connection-string",
		"lighterman.dev/max-in-flight":     "10000",
		"lighterman.dev/lease-duration":    "10m",
	}
	for key, value := range annotations {
		all["lighterman.dev/"+key] = value
	}
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "tasks", Annotations: all},
		Spec: batchv1.CronJobSpec{
			Schedule: "0 0 31 2 *", Suspend: &suspend,
			JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
				BackoffLimit: &backoffLimit,
				Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever,
					Containers: []corev1.Container{{
						Name: "task", Image: "registry.example/task:1", Command: []string{"/task"}, Args: []string{"--process"},
						Env: []corev1.EnvVar{{Name: "LOG_LEVEL", Value: "info"}},
					}},
				}},
			}},
		},
	}
}

// payload is what a small task looks like.
func payload(n int) string {
	return fmt.Sprintf(`{"id":%d,"kind":"resize","object":"images/2026/%08d.jpg","width":1024,"height":768}`, n, n)
}

// must ends the benchmark on an error.
func must[T any](v T, err error) func(b *testing.B) T {
	return func(b *testing.B) T {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// percentile is the smallest value that is not exceeded by p percent of all.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
