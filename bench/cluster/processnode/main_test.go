package processnode_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

func TestMain(m *testing.M) {
	// The node must not hand its own environment on; TestEnvironmentIsThePodsAlone looks for this.
	_ = os.Setenv("NODE_ONLY", "secret of the node")
	os.Exit(clustertest.Main(m, localcluster.Config{ProcessNodes: 1}))
}

// A world is a namespace and what tests do in it.
type world struct {
	t         *testing.T
	client    kubernetes.Interface
	namespace string
}

func newWorld(t *testing.T) *world {
	t.Parallel()
	return &world{t, clustertest.Client(t), clustertest.Namespace(t)}
}

func (w *world) secret(name string, data map[string][]byte) {
	w.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := w.client.CoreV1().Secrets(w.namespace).Create(w.t.Context(), secret, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// provide makes a Secret or gives it other content.
func (w *world) provide(name string, data map[string][]byte) {
	w.t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	_, err := w.client.CoreV1().Secrets(w.namespace).Update(w.t.Context(), secret, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		w.secret(name, data)
	} else if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) configMap(name string, data map[string]string) {
	w.t.Helper()
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := w.client.CoreV1().ConfigMaps(w.namespace).Create(w.t.Context(), config, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// shell is a container that runs a script.
func shell(script string) corev1.Container {
	return corev1.Container{Name: "main", Image: "any", Command: []string{"sh", "-c", script}}
}

func neverRestarted(containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod"},
		Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: containers},
	}
}

func (w *world) create(pod *corev1.Pod) *corev1.Pod {
	w.t.Helper()
	pod, err := w.client.CoreV1().Pods(w.namespace).Create(w.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return pod
}

// until waits for a state of a pod.
func (w *world) until(name, what string, reached func(*corev1.Pod) bool) *corev1.Pod {
	w.t.Helper()
	var pod *corev1.Pod
	clustertest.Eventually(w.t, fmt.Sprintf("pod %s: %s", name, what), func(ctx context.Context) (bool, error) {
		var err error
		pod, err = w.client.CoreV1().Pods(w.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return reached(pod), fmt.Errorf("its status is %+v", pod.Status)
	})
	return pod
}

func hasEnded(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// run runs a pod to its end.
func (w *world) run(pod *corev1.Pod) *corev1.Pod {
	w.t.Helper()
	return w.until(w.create(pod).Name, "to end", hasEnded)
}

func (w *world) log(pod, container string) string {
	w.t.Helper()
	text, err := w.client.CoreV1().Pods(w.namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(w.t.Context())
	if err != nil {
		w.t.Fatalf("reading the log of %s: %v", pod, err)
	}
	return string(text)
}

func (w *world) gone(name string) {
	w.t.Helper()
	clustertest.Eventually(w.t, "pod "+name+" to be gone", func(ctx context.Context) (bool, error) {
		list, err := w.client.CoreV1().Pods(w.namespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		return err == nil && len(list.Items) == 0, err
	})
}

func exitOf(pod *corev1.Pod) corev1.ContainerStateTerminated {
	if ended := pod.Status.ContainerStatuses[0].State.Terminated; ended != nil {
		return *ended
	}
	return corev1.ContainerStateTerminated{ExitCode: -1, Reason: "not terminated"}
}

func waitingReason(pod *corev1.Pod) string {
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			return c.State.Waiting.Reason
		}
	}
	return ""
}

func fieldRef(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func secretRef(name, secret, key string, optional bool) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key, Optional: &optional,
	}}}
}
