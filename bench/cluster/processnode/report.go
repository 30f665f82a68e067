package processnode

import (
	"context"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reportTimeout bounds one write of a status, so that a silent API server cannot hold a pod's end for long.
const reportTimeout = 10 * time.Second

// report writes the newest status whenever it has changed, and once more, at the end of the containers, the final one. It
// returns when that is written, the pod's object is gone, or the context ends. One write follows the other: a status
// can never be overtaken by an older one.
func (w *podWorker) report(ctx context.Context, last <-chan struct{}) {
	r := reporter{podWorker: w, transitions: map[corev1.PodConditionType]corev1.PodCondition{}}
	for _, condition := range w.pod.Status.Conditions {
		r.transitions[condition.Type] = condition
	}
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			return
		case <-w.gone:
			return
		case <-last:
			ended = true
		case <-w.dirty:
		}
		if !r.writeNewest(ctx, ended) {
			return
		}
	}
}

type reporter struct {
	*podWorker
	sent        corev1.PodStatus
	transitions map[corev1.PodConditionType]corev1.PodCondition
}

// writeNewest tries until it has written what is then the newest status. It says whether there is still a pod to report on.
func (r *reporter) writeNewest(ctx context.Context, ended bool) bool {
	for {
		r.mu.Lock()
		status := compose(r.pod, &r.state, ended)
		r.mu.Unlock()
		status.ObservedGeneration = r.generation.Load()
		stamp(r.transitions, status.Conditions, status.ObservedGeneration)
		if equality.Semantic.DeepEqual(status, r.sent) {
			return true
		}
		err := r.write(ctx, status)
		if err == nil {
			r.sent = status
			return true
		}
		if isNotFound(err) || isConflict(err) || ctx.Err() != nil { // a conflict is another pod of the same name
			return false
		}
		r.node.Log.Warn("writing a pod's status; it is tried again", "pod", r.pod.Name, "namespace", r.pod.Namespace, "err", err)
		if !sleep(ctx, r.gone, retryInterval/4) {
			return false
		}
	}
}

// stamp sets the time at which each condition took its present value.
func stamp(known map[corev1.PodConditionType]corev1.PodCondition, conditions []corev1.PodCondition, generation int64) {
	for i := range conditions {
		c := &conditions[i]
		c.LastTransitionTime, c.ObservedGeneration = metav1.Now(), generation
		if before, ok := known[c.Type]; ok && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
		known[c.Type] = *c
	}
}

// write patches, so that it cannot conflict with other writers; the UID keeps it off another pod of the same name.
func (r *reporter) write(ctx context.Context, status corev1.PodStatus) error {
	patch, err := patchOf(r.pod.UID, status)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	_, err = r.node.Client.CoreV1().Pods(r.pod.Namespace).
		Patch(ctx, r.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// patchOf makes the patch. Conditions are merged by the API server field by field, so an empty field must say so.
func patchOf(uid types.UID, status corev1.PodStatus) ([]byte, error) {
	conditions := make([]map[string]any, 0, len(status.Conditions))
	for _, c := range status.Conditions {
		fields := map[string]any{
			"type": c.Type, "status": c.Status, "lastTransitionTime": c.LastTransitionTime,
			"observedGeneration": c.ObservedGeneration, "reason": nil, "message": nil,
		}
		if c.Reason != "" {
			fields["reason"] = c.Reason
		}
		conditions = append(conditions, fields)
	}
	status.Conditions = nil
	text, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	fields["conditions"] = conditions
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid}, "status": fields})
}

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }
func isConflict(err error) bool { return apierrors.IsConflict(err) }
