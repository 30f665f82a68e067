package localcluster_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

// startTimeout leaves time for the first build on a small machine.
const startTimeout = 40 * time.Minute

func start(t *testing.T, config localcluster.Config) (*localcluster.Cluster, kubernetes.Interface) {
	t.Helper()
	config.Progress = t.Output()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	c, err := localcluster.Start(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Errorf("stopping: %v", err)
		}
		if left := processesOf(t, c.Dir); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
	})
	client, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	return c, client
}

// processesOf returns the command lines that name a folder.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may have ended
		if strings.Contains(string(text), dir) {
			found = append(found, string(text))
		}
	}
	return found
}

// runJob creates a Job on a kind of node and waits until it is complete.
func runJob(t *testing.T, client kubernetes.Interface, name, kind string, pods int32) {
	t.Helper()
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: batchv1.JobSpec{
			Completions: &pods, Parallelism: &pods,
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				RestartPolicy: corev1.RestartPolicyNever,
				NodeSelector:  map[string]string{localcluster.NodeLabel: kind},
				Containers:    []corev1.Container{{Name: "main", Image: "any", Command: []string{"true"}}},
			}},
		},
	}
	jobs := client.BatchV1().Jobs(corev1.NamespaceDefault)
	if _, err := jobs.Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var last batchv1.JobStatus
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		// An API server that is being restarted answers later.
		if job, err := jobs.Get(ctx, name, metav1.GetOptions{}); err == nil {
			last = job.Status
		}
		return last.CompletionTime != nil, nil
	})
	if err != nil {
		t.Fatalf("Job %s did not complete: %v; its status is %+v", name, err, last)
	}
}

func TestBothKindsOfNodes(t *testing.T) {
	_, client := start(t, localcluster.Config{ProcessNodes: 2, SimulatedNodes: 2})
	runJob(t, client, "on-process", localcluster.ProcessNode, 20)
	runJob(t, client, "on-simulated", localcluster.SimulatedNode, 20)
}

func TestInstancesSideBySide(t *testing.T) {
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, client := start(t, localcluster.Config{ProcessNodes: 1})
			runJob(t, client, "same-name", localcluster.ProcessNode, 3)
		})
	}
}

func TestKillAndRestart(t *testing.T) {
	c, client := start(t, localcluster.Config{ProcessNodes: 1})
	for _, name := range []string{
		localcluster.Etcd, localcluster.APIServer, localcluster.ControllerManager, localcluster.Scheduler, "process-0",
	} {
		if err := c.Kill(name); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		runJob(t, client, "after-"+name, localcluster.ProcessNode, 2)
	}
	select {
	case err := <-c.Failures():
		t.Errorf("a kill that was asked for is reported: %v", err)
	default:
	}
	if err := c.Kill("no-such"); err == nil || !strings.Contains(err.Error(), "it has etcd, kube-apiserver") {
		t.Errorf("killing what is not there: %v", err)
	}
}

func TestDeathOfAComponentIsTold(t *testing.T) {
	_, err := localcluster.Start(t.Context(), localcluster.Config{
		Progress: t.Output(), ExtraArgs: map[string][]string{localcluster.APIServer: {"--no-such-flag"}},
	})
	for _, want := range []string{"kube-apiserver died: exit status 1", "unknown flag: --no-such-flag"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v; want it to contain %q", err, want)
		}
	}
}

func TestFolderInUseIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := localcluster.Start(t.Context(), localcluster.Config{Dir: dir, Progress: t.Output()})
	if err == nil || !strings.Contains(err.Error(), "is not empty (precious …); remove it or name another") {
		t.Errorf("starting in a folder that is not empty: %v", err)
	}
}
