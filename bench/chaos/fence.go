package main

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
	"github.com/lighterman-dev/lighterman/jobs"
)

// checkFence waits until a Job of a term that never was is refused, or sees that it is not where there is no fence. There must be a leader.
func (w *world) checkFence(ctx context.Context) error {
	held, err := w.leaders(ctx)
	if err != nil {
		return err
	}
	for lock := range held {
		probe := &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{
				Name:        "probe",
				Labels:      map[string]string{jobs.LabelTemplate: "probe"},
				Annotations: map[string]string{jobs.AnnotationFence: fence.Value(namespace, lock, -1)},
			},
			Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "probe", Image: "none"}},
			}}},
		}
		err := poll(ctx, "the fence of "+lock, 30*time.Second, func(ctx context.Context) (bool, error) {
			_, err := w.client.BatchV1().Jobs(namespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err != nil && !apierrors.IsForbidden(err) {
				return false, err
			}
			return jobs.Fenced(err) == w.fence, fmt.Errorf("a Job of a term that never was is answered with: %w", err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
