package processnode_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/bench/cluster/build"
	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
	"github.com/lighterman-dev/lighterman/bench/cluster/processnode"
)

func (w *world) eventually(what string, ask func() error) {
	w.t.Helper()
	clustertest.Eventually(w.t, what, func(context.Context) (bool, error) {
		err := ask()
		return err == nil, err
	})
}

// untilJob waits for a state of a Job.
func (w *world) untilJob(name, what string, reached func(batchv1.JobStatus) bool) {
	w.t.Helper()
	w.eventually("Job "+name+": "+what, func() error {
		job, err := w.client.BatchV1().Jobs(w.namespace).Get(w.t.Context(), name, metav1.GetOptions{})
		if err != nil || reached(job.Status) {
			return err
		}
		return fmt.Errorf("its status is %+v", job.Status)
	})
}

func (w *world) job(name string, container corev1.Container, pods int32) {
	w.t.Helper()
	retries := int32(0)
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: batchv1.JobSpec{
			Completions: &pods, Parallelism: &pods, BackoffLimit: &retries,
			Template: corev1.PodTemplateSpec{Spec: neverRestarted(container).Spec},
		},
	}
	if _, err := w.client.BatchV1().Jobs(w.namespace).Create(w.t.Context(), job, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func hasCondition(status batchv1.JobStatus, kind batchv1.JobConditionType) bool {
	for _, c := range status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func TestJobs(t *testing.T) {
	w := newWorld(t)
	w.job("many", shell("exit 0"), 30)
	w.job("failing", shell("exit 1"), 1)
	w.job("long", shell("sleep 3600"), 2)
	w.untilJob("many", "complete", func(s batchv1.JobStatus) bool { return s.Succeeded == 30 && hasCondition(s, batchv1.JobComplete) })
	w.untilJob("failing", "failed", func(s batchv1.JobStatus) bool { return hasCondition(s, batchv1.JobFailed) })
	w.untilJob("long", "ready", func(s batchv1.JobStatus) bool { return s.Ready != nil && *s.Ready == 2 && s.Active == 2 })
}

func TestLogsAreFollowed(t *testing.T) {
	w := newWorld(t)
	w.create(neverRestarted(shell("printf 'one\ntwo\n'; sleep 0.5; echo three")))
	w.until("pod", "to be ready", isReady)
	options := &corev1.PodLogOptions{Follow: true}
	text, err := w.client.CoreV1().Pods(w.namespace).GetLogs("pod", options).DoRaw(t.Context())
	if err != nil || string(text) != "one\ntwo\nthree\n" {
		t.Errorf("following the log gave %q, %v", text, err)
	}
	for lines, want := range map[int64]string{0: "", 1: "three\n", 2: "two\nthree\n", 9: "one\ntwo\nthree\n"} {
		options := &corev1.PodLogOptions{TailLines: &lines}
		text, err := w.client.CoreV1().Pods(w.namespace).GetLogs("pod", options).DoRaw(t.Context())
		if err != nil || string(text) != want {
			t.Errorf("the last %d lines are %q, %v; want %q", lines, text, err, want)
		}
	}
}

// A node of its own, for what concerns a whole node. It takes only pods that name it.
func startNode(t *testing.T, w *world, name string, hostFilesystem bool) (stop func()) {
	t.Helper()
	sandbox, err := build.Sandbox(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	node := processnode.New(processnode.Config{
		Name: name, Client: w.client, Dir: t.TempDir(), Sandbox: sandbox, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		APIServerHost: processnode.Address, APIServerPort: "1", Unschedulable: true, HostFilesystem: hostFilesystem,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("node %s: %v", name, err)
		}
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		_ = w.client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	w.eventually("node "+name, func() error {
		_, err := w.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
	return stop
}

func (w *world) onNode(name string, pod *corev1.Pod) *corev1.Pod {
	pod.Spec.NodeName = name
	return pod
}

func TestNodeThatStopsAndStartsAgain(t *testing.T) {
	w := newWorld(t)
	name := "node-of-" + w.namespace
	stop := startNode(t, w, name, false)
	pod := neverRestarted(shell("sleep 3600"))
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "LIGHTERMAN_TEST", Value: w.namespace}}
	w.create(w.onNode(name, pod))
	w.until("pod", "to be ready", isReady)
	stop()
	if left := processesOf(t, marked(w)); left > 0 {
		t.Errorf("%d processes outlived their node", left)
	}
	stop = startNode(t, w, name, false)
	defer stop()
	pod = w.until("pod", "to end", hasEnded)
	if pod.Status.Phase != corev1.PodFailed || exitOf(pod).Reason != "ContainerStatusUnknown" {
		t.Errorf("the pod is %s, reason %s; want Failed, ContainerStatusUnknown", pod.Status.Phase, exitOf(pod).Reason)
	}
}

func TestHostFilesystem(t *testing.T) {
	w := newWorld(t)
	name := "node-of-" + w.namespace
	defer startNode(t, w, name, true)()
	leaving := neverRestarted(shell("setsid sleep 3600 & sleep 3600 & exit 5"))
	leaving.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "LIGHTERMAN_TEST", Value: w.namespace}}
	w.create(w.onNode(name, leaving))
	if pod := w.until("pod", "to end", hasEnded); exitOf(pod).ExitCode != 5 {
		t.Errorf("exit code is %d, want 5", exitOf(pod).ExitCode)
	}
	if left := processesOf(t, marked(w)); left > 0 {
		t.Errorf("%d processes outlived their pod", left)
	}
	mounting := withCount(neverRestarted(counting()))
	mounting.Name = "mounting"
	w.create(w.onNode(name, mounting))
	w.until("mounting", "to be refused", func(pod *corev1.Pod) bool { return waitingReason(pod) == "CreateContainerError" })

	running := neverRestarted(shell("setsid sleep 3600 & sleep 3600"))
	running.Name = "running"
	running.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "LIGHTERMAN_TEST", Value: w.namespace}}
	w.create(w.onNode(name, running))
	w.until("running", "to be ready", isReady)
	if err := w.client.CoreV1().Pods(w.namespace).Delete(t.Context(), "running", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	w.eventually("no process to be left", func() error {
		if processesOf(t, marked(w)) > 0 {
			return errors.New("processes are left")
		}
		return nil
	})
}
