package processnode_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestHowContainersEnd(t *testing.T) {
	fallback := corev1.TerminationMessageFallbackToLogsOnError
	for name, test := range map[string]struct {
		container corev1.Container
		phase     corev1.PodPhase
		code      int32
		reason    string
		message   string // contained in
	}{
		"success":      {shell("exit 0"), corev1.PodSucceeded, 0, "Completed", ""},
		"failure":      {shell("exit 3"), corev1.PodFailed, 3, "Error", ""},
		"signal":       {shell("kill -KILL $$$$"), corev1.PodFailed, 137, "Error", ""},
		"message":      {shell("printf why > /dev/termination-log; exit 1"), corev1.PodFailed, 1, "Error", "why"},
		"long message": {shell("head -c 5000 /dev/zero | tr '\\0' y > /dev/termination-log"), corev1.PodSucceeded, 0, "Completed", strings.Repeat("y", 4096)},
		"message elsewhere": {
			corev1.Container{Command: []string{"sh", "-c", "printf there > /my/message"}, TerminationMessagePath: "/my/message"},
			corev1.PodSucceeded, 0, "Completed", "there",
		},
		"message from the log": {
			corev1.Container{Command: []string{"sh", "-c", "echo printed; exit 2"}, TerminationMessagePolicy: fallback},
			corev1.PodFailed, 2, "Error", "printed\n",
		},
		"no message from the log after a success": {
			corev1.Container{Command: []string{"echo", "printed"}, TerminationMessagePolicy: fallback}, corev1.PodSucceeded, 0, "Completed", "",
		},
		"no such command": {
			corev1.Container{Command: []string{"no-such-command"}},
			corev1.PodFailed, 128, "StartError",
			`"no-such-command": executable file not found in $PATH`,
		},
		"no such path":              {corev1.Container{Command: []string{"/no/such"}}, corev1.PodFailed, 128, "StartError", "/no/such"},
		"not executable":            {corev1.Container{Command: []string{"/etc/passwd"}}, corev1.PodFailed, 128, "StartError", "permission denied"},
		"no such working directory": {corev1.Container{Command: []string{"true"}, WorkingDir: "/no/such"}, corev1.PodFailed, 128, "StartError", "/no/such"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.container.Name, test.container.Image = "main", "any"
			pod := w.run(neverRestarted(test.container))
			end := exitOf(pod)
			if pod.Status.Phase != test.phase || end.ExitCode != test.code || end.Reason != test.reason {
				t.Errorf("the pod is %s with code %d, reason %s; want %s, %d, %s",
					pod.Status.Phase, end.ExitCode, end.Reason, test.phase, test.code, test.reason)
			}
			exact := end.Reason != "StartError"
			if exact && end.Message != test.message || !strings.Contains(end.Message, test.message) {
				t.Errorf("the message is %q, want %q", end.Message, test.message)
			}
			if isReady(pod) {
				t.Error("an ended pod is ready")
			}
		})
	}
}

func TestContainersThatCannotStart(t *testing.T) {
	for name, test := range map[string]struct {
		container corev1.Container
		reason    string
	}{
		"image":      {corev1.Container{Image: "invalid.test/app:1", Command: []string{"true"}}, "ErrImagePull"},
		"image, too": {corev1.Container{Image: "invalid.test/app:1", Command: []string{"true"}}, "ImagePullBackOff"},
		"no command": {corev1.Container{Image: "any"}, "CreateContainerError"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.container.Name = "main"
			w.create(neverRestarted(test.container))
			pod := w.until("pod", "to wait with "+test.reason, func(pod *corev1.Pod) bool { return waitingReason(pod) == test.reason })
			if pod.Status.Phase != corev1.PodPending {
				t.Errorf("phase is %s, want Pending", pod.Status.Phase)
			}
		})
	}
}

func TestWhoAndWhere(t *testing.T) {
	w := newWorld(t)
	container := shell("id -u; id -g; pwd")
	user, group := int64(1234), int64(5678)
	container.SecurityContext = &corev1.SecurityContext{RunAsUser: &user, RunAsGroup: &group}
	container.WorkingDir = "/usr/lib"
	w.run(neverRestarted(container))
	if got, want := w.log("pod", "main"), "1234\n5678\n/usr/lib\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// counting succeeds at its third start.
func counting() corev1.Container {
	c := shell("echo x >> /count/n; test $(wc -l < /count/n) -ge 3")
	c.VolumeMounts = []corev1.VolumeMount{{Name: "count", MountPath: "/count"}}
	return c
}

func withCount(pod *corev1.Pod) *corev1.Pod {
	pod.Spec.Volumes = []corev1.Volume{{Name: "count", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	return pod
}

func TestRestartOnFailure(t *testing.T) {
	w := newWorld(t)
	pod := withCount(neverRestarted(counting()))
	pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	w.create(pod)
	w.until("pod", "to back off", func(pod *corev1.Pod) bool { return waitingReason(pod) == "CrashLoopBackOff" })
	pod = w.until("pod", "to end", hasEnded)
	status := pod.Status.ContainerStatuses[0]
	if pod.Status.Phase != corev1.PodSucceeded || status.RestartCount != 2 || status.LastTerminationState.Terminated.ExitCode != 1 {
		t.Errorf("phase is %s, container %+v; want Succeeded after 2 restarts", pod.Status.Phase, status)
	}
}

func TestRestartAlways(t *testing.T) {
	w := newWorld(t)
	pod := neverRestarted(shell("exit 0"))
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	w.create(pod)
	pod = w.until("pod", "to be restarted", func(pod *corev1.Pod) bool {
		return len(pod.Status.ContainerStatuses) > 0 && pod.Status.ContainerStatuses[0].RestartCount > 0
	})
	if pod.Status.Phase != corev1.PodRunning {
		t.Errorf("phase is %s, want Running", pod.Status.Phase)
	}
}

func TestInitContainers(t *testing.T) {
	t.Run("a failure fails the pod", func(t *testing.T) {
		w := newWorld(t)
		first := shell("exit 4")
		first.Name = "first"
		pod := neverRestarted(shell("echo must not run"))
		pod.Spec.InitContainers = []corev1.Container{first}
		pod = w.run(pod)
		if pod.Status.Phase != corev1.PodFailed || pod.Status.InitContainerStatuses[0].State.Terminated.ExitCode != 4 ||
			pod.Status.ContainerStatuses[0].State.Waiting == nil {
			t.Errorf("status is %+v", pod.Status)
		}
	})
	t.Run("a failure is tried again", func(t *testing.T) {
		w := newWorld(t)
		first := counting()
		first.Name = "first"
		pod := withCount(neverRestarted(shell("true")))
		pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		pod.Spec.InitContainers = []corev1.Container{first}
		pod = w.run(pod)
		if pod.Status.Phase != corev1.PodSucceeded || pod.Status.InitContainerStatuses[0].RestartCount != 2 {
			t.Errorf("status is %+v", pod.Status)
		}
	})
	t.Run("a sidecar runs as long as the pod", func(t *testing.T) {
		w := newWorld(t)
		always := corev1.ContainerRestartPolicyAlways
		sidecar := shell("trap 'echo ended > /count/ended; exit 0' TERM; touch /count/up; while :; do sleep 0.05; done")
		sidecar.Name, sidecar.RestartPolicy = "sidecar", &always
		sidecar.VolumeMounts = []corev1.VolumeMount{{Name: "count", MountPath: "/count"}}
		main := shell("until test -e /count/up; do sleep 0.05; done; test ! -e /count/ended")
		main.VolumeMounts = sidecar.VolumeMounts
		pod := withCount(neverRestarted(main))
		pod.Spec.InitContainers = []corev1.Container{sidecar}
		pod = w.run(pod)
		if pod.Status.Phase != corev1.PodSucceeded || pod.Status.InitContainerStatuses[0].State.Terminated == nil {
			t.Errorf("status is %+v", pod.Status)
		}
	})
}

// marked is a value that finds a container's processes on the host.
func marked(w *world) string { return "LIGHTERMAN_TEST=" + w.namespace }

// processesOf counts the processes on this machine that were started with a variable.
func processesOf(t *testing.T, variable string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may have ended
		if strings.Contains("\x00"+string(text), "\x00"+variable+"\x00") {
			count++
		}
	}
	return count
}

func TestDeletion(t *testing.T) {
	second, hour := int64(1), int64(3600)
	for name, test := range map[string]struct {
		script string
		grace  int64
		delete metav1.DeleteOptions
	}{
		"ends at SIGTERM":           {"sleep 3600", hour, metav1.DeleteOptions{}},
		"ends in its own time":      {"trap 'sleep 0.2; exit 0' TERM; while :; do sleep 0.05; done", hour, metav1.DeleteOptions{}},
		"ignores SIGTERM":           {"trap '' TERM; while :; do sleep 0.05; done", second, metav1.DeleteOptions{}},
		"grace of the delete":       {"trap '' TERM; while :; do sleep 0.05; done", hour, metav1.DeleteOptions{GracePeriodSeconds: &second}},
		"by force":                  {"trap '' TERM; while :; do sleep 0.05; done", hour, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}},
		"with children that escape": {"setsid sh -c 'trap \"\" TERM; sleep 3600' & setsid sleep 3600 & sleep 3600", hour, metav1.DeleteOptions{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod := neverRestarted(shell("echo up; " + test.script))
			pod.Spec.TerminationGracePeriodSeconds = &test.grace
			key, value, _ := strings.Cut(marked(w), "=")
			pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: key, Value: value}}
			w.create(pod)
			w.until("pod", "to be ready", isReady)
			if processesOf(t, marked(w)) == 0 {
				t.Fatal("the container's processes cannot be found")
			}
			if err := w.client.CoreV1().Pods(w.namespace).Delete(t.Context(), "pod", test.delete); err != nil {
				t.Fatal(err)
			}
			w.gone("pod")
			w.eventually("no process to be left", func() error {
				if left := processesOf(t, marked(w)); left > 0 {
					return fmt.Errorf("%d processes are left", left)
				}
				return nil
			})
		})
	}
}

func TestDeletionWhileWaiting(t *testing.T) {
	w := newWorld(t)
	container := shell("true")
	container.Env = []corev1.EnvVar{secretRef("V", "never", "key", false)}
	w.create(neverRestarted(container))
	w.until("pod", "to wait", func(pod *corev1.Pod) bool { return waitingReason(pod) == "CreateContainerConfigError" })
	if err := w.client.CoreV1().Pods(w.namespace).Delete(t.Context(), "pod", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.gone("pod")
}

func TestDeadline(t *testing.T) {
	w := newWorld(t)
	pod := neverRestarted(shell("sleep 3600"))
	pod.Spec.ActiveDeadlineSeconds = new(int64)
	*pod.Spec.ActiveDeadlineSeconds = 1
	pod = w.run(pod)
	if pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "DeadlineExceeded" || exitOf(pod).ExitCode != 143 {
		t.Errorf("the pod is %s, reason %q, exit code %d", pod.Status.Phase, pod.Status.Reason, exitOf(pod).ExitCode)
	}
}
