package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// MarkSettled records on a finished Job that its message is settled, and hands it to the TTL controller, which removes it
// when keep has passed from now. Both are one request. A Job that is gone needs no mark.
func (l *Launcher) MarkSettled(ctx context.Context, job *batchv1.Job, outcome string, keep time.Duration) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"labels": map[string]string{LabelSettled: outcome}},
		"spec":     ttlFor(job, keep),
	})
	if err != nil {
		return fmt.Errorf("encoding the patch of Job %s/%s: %w", job.Namespace, job.Name, err)
	}
	return l.patch(ctx, job.Namespace, job.Name, patch, "marking Job %s/%s as settled: %w")
}

// Keep has a Job that is marked as settled stay for so long from now.
func (l *Launcher) Keep(ctx context.Context, job *batchv1.Job, keep time.Duration) error {
	patch, err := json.Marshal(map[string]any{"spec": ttlFor(job, keep)})
	if err != nil {
		return fmt.Errorf("encoding the patch of Job %s/%s: %w", job.Namespace, job.Name, err)
	}
	return l.patch(ctx, job.Namespace, job.Name, patch, "changing how long Job %s/%s is kept: %w")
}

// ttlFor is the part of a Job's spec that has it removed when keep has passed from now.
func ttlFor(job *batchv1.Job, keep time.Duration) map[string]any {
	// ttlSecondsAfterFinished counts from when the Job finished (KEP-592).
	ttl := keep
	if finished := StatusOf(job).FinishedAt; !finished.IsZero() {
		ttl += max(time.Since(finished), 0)
	}
	return map[string]any{"ttlSecondsAfterFinished": min(int64(ttl/time.Second)+1, math.MaxInt32)}
}

// End makes the Job controller fail a Job that has not finished, and notes why: a reason in CamelCase, and what more there is to say. The Job
// object stays: it is the record of the attempt.
func (l *Launcher) End(ctx context.Context, namespace, name, reason, message string) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{AnnotationEnded: join(reason, truncated(message))}},
		"spec":     map[string]any{"activeDeadlineSeconds": 1},
	})
	if err != nil {
		return fmt.Errorf("encoding the patch of Job %s/%s: %w", namespace, name, err)
	}
	return l.patch(ctx, namespace, name, patch, "ending Job %s/%s: %w")
}

func (l *Launcher) patch(ctx context.Context, namespace, name string, patch []byte, failure string) error {
	_, err := l.client.Jobs(namespace).Patch(ctx, name, types.MergePatchType, patch,
		metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf(failure, namespace, name, err)
	}
	return nil
}

// WhyNotStarted asks the Job's pods why they have not started: the scheduler's reason, or the containers'. It costs a list
// request, and is for the few Jobs that need explaining. Reason is one word, such as Unschedulable or ErrImagePull, and why is all that there is to
// say; both are empty where the pods do not say.
func WhyNotStarted(ctx context.Context, client corev1client.PodsGetter, namespace, job string) (reason, why string, err error) {
	pods, err := client.Pods(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: batchv1.JobNameLabel + "=" + job,
		Limit:         10,
	})
	if err != nil {
		return "", "", fmt.Errorf("listing the pods of Job %s/%s: %w", namespace, job, err)
	}
	if len(pods.Items) == 0 {
		return ReasonNoPods, "it has no pods", nil
	}
	for i := range pods.Items {
		if reason, why := podWaits(&pods.Items[i]); why != "" {
			return reason, why, nil
		}
	}
	return "", "", nil
}

// ReasonNoPods is why a Job has not started that has no pods.
const ReasonNoPods = "NoPods"

// podWaits says what a pod waits for.
func podWaits(pod *corev1.Pod) (reason, why string) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Reason, join(c.Reason, c.Message)
		}
	}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range statuses {
			if w := statuses[i].State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" {
				return w.Reason, "container " + statuses[i].Name + ": " + join(w.Reason, w.Message)
			}
		}
	}
	return "", ""
}

// truncated keeps a text short enough for an annotation among others.
func truncated(s string) string {
	const most = 1024
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func join(reason, message string) string {
	return strings.TrimSuffix(reason+": "+message, ": ")
}
