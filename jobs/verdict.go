package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Verdict is what the task of a pack says of its messages, in the termination message of a container: {"failed": ["id", …]}.
type Verdict struct {
	// Failed are the messages that failed; all others are done.
	Failed map[string]bool
	// Unclear says why it is not known which messages failed: then all must be taken for failed, since a message that failed and is completed is
	// lost. Empty where it is known.
	Unclear string
}

// VerdictOf asks the pods of a pack's Job that has succeeded which messages failed.
func VerdictOf(ctx context.Context, client corev1client.PodsGetter, job *batchv1.Job) (Verdict, error) {
	id, err := IdentityOf(job)
	if err != nil {
		return Verdict{}, err
	}
	pods, err := client.Pods(job.Namespace).List(ctx, metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job.Name})
	if err != nil {
		return Verdict{}, fmt.Errorf("listing the pods of Job %s/%s: %w", job.Namespace, job.Name, err)
	}
	members := make(map[string]bool, id.Messages.Len())
	for message := range id.Messages.All() {
		members[message] = true
	}
	v := Verdict{Failed: map[string]bool{}}
	heard := int32(0)
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Status.Phase != corev1.PodSucceeded || !madeFor(job, pod) {
			continue
		}
		heard++
		if v.Unclear = v.hear(pod, members); v.Unclear != "" {
			return v, nil
		}
	}
	if want := max(job.Status.Succeeded, 1); heard < want {
		v.Unclear = fmt.Sprintf("%d of the %d pods that succeeded are left to say which messages failed", heard, want)
	}
	return v, nil
}

// madeFor reports whether a pod may be this Job's, and not that of a former one of the same name.
func madeFor(job *batchv1.Job, pod *corev1.Pod) bool {
	uid := pod.Labels[batchv1.ControllerUidLabel]
	return uid == "" || uid == string(job.UID)
}

// hear adds what a pod says. It returns why that is unclear.
func (v *Verdict) hear(pod *corev1.Pod, members map[string]bool) (unclear string) {
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if c.State.Terminated == nil {
			continue
		}
		failed, err := parseVerdict(c.State.Terminated.Message, messageLimit(pod))
		if err != nil {
			return fmt.Sprintf("the termination message of container %s %v", c.Name, err)
		}
		for _, id := range failed {
			if !members[id] {
				// Its text is not repeated: a task that takes payloads for ids would have them in logs and Events.
				return fmt.Sprintf("the termination message of container %s names something of %d bytes as failed, which is not in the pack", c.Name, len(id))
			}
			v.Failed[id] = true
		}
	}
	return ""
}

// A kubelet keeps the end of a termination message that is longer than 4096 bytes, and divides 12 KiB among the containers of a pod: where that comes to
// less for each, it keeps the beginning.
const (
	maxMessage     = 4096
	maxPodMessages = 12 << 10
)

func messageLimit(pod *corev1.Pod) int {
	containers := len(pod.Spec.Containers) + len(pod.Spec.InitContainers) + len(pod.Spec.EphemeralContainers)
	return min(maxMessage, maxPodMessages/max(containers, 1))
}

// parseVerdict reads the list from a termination message. What is no such list, such as plain text, names none; what might be one and cannot be
// read is an error, as a clause whose subject is the message.
func parseVerdict(message string, limit int) (failed []string, err error) {
	var v struct {
		Failed []string `json:"failed"`
	}
	err = json.Unmarshal([]byte(message), &v)
	switch {
	case err == nil:
		return v.Failed, nil
	case len(message) >= limit:
		return nil, fmt.Errorf("is cut off at %d bytes, so that it is not known which messages failed; where more fail than fit, exit with an error", limit)
	case strings.HasPrefix(strings.TrimSpace(message), "{") || strings.Contains(message, `"failed"`):
		return nil, errors.New(`is not of the form {"failed": ["id", …]}`)
	}
	return nil, nil
}
