package jobs

import (
	"context"
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Secret makes the Secret of a content, for a Job; nil where it needs none. Its owner is still missing.
func (t *Template) Secret(job *batchv1.Job, c *Content) *corev1.Secret {
	if c.data == nil {
		return nil
	}
	immutable := true
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: job.Namespace,
			Name:      job.Name,
			Labels:    map[string]string{LabelTemplate: labelValue(t.ref.Name)},
		},
		Immutable: &immutable,
		Data:      c.data,
	}
}

// NeedsSecret reports whether the pods of a Job wait for a Secret with the payload.
func NeedsSecret(job *batchv1.Job) bool { return job.Annotations[AnnotationPayload] == PayloadInSecret }

// Provided asks the API server whether the Secret that a Job's pods wait for is there.
func (l *Launcher) Provided(ctx context.Context, job *batchv1.Job) (bool, error) {
	_, err := l.secrets.Secrets(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading Secret %s/%s: %w", job.Namespace, job.Name, err)
	}
	return true, nil
}

// Provide creates the Secret that the Job's pods wait for, or finds that it exists. The Job owns it, and must exist: whoever crashes between the two
// leaves no Secret behind, but a Job that waits for one. A Secret of that name which is not the Job's gives ErrForeign, or, where it is that of a
// former Job of the same name, an error that passes once Kubernetes has removed it.
func (l *Launcher) Provide(ctx context.Context, job *batchv1.Job, secret *corev1.Secret) error {
	owned := *secret
	owned.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job", Name: job.Name, UID: job.UID,
	}}
	client := l.secrets.Secrets(secret.Namespace)
	var err error
	for range 3 {
		_, err = client.Create(ctx, &owned, metav1.CreateOptions{FieldManager: fieldManager})
		if err == nil {
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating Secret %s/%s, which holds the payload of the Job of that name: %w", secret.Namespace, secret.Name, err)
		}
		existing, err := client.Get(ctx, secret.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			continue // it was deleted between the two requests
		case err != nil:
			return fmt.Errorf("reading Secret %s/%s, which exists already: %w", secret.Namespace, secret.Name, err)
		}
		return ownedBy(job, existing)
	}
	return fmt.Errorf("creating Secret %s/%s: it keeps existing and vanishing: %w", secret.Namespace, secret.Name, err)
}

// ownedBy reports, by an error, that an existing Secret is not the Job's.
func ownedBy(job *batchv1.Job, secret *corev1.Secret) error {
	for _, owner := range secret.OwnerReferences {
		switch {
		case owner.UID == job.UID:
			return nil
		case owner.Kind == "Job" && owner.Name == job.Name:
			return fmt.Errorf("the Secret %s/%s of a former Job of that name has not been removed yet", secret.Namespace, secret.Name)
		}
	}
	return fmt.Errorf("creating Secret %s/%s: %w; delete or rename it", secret.Namespace, secret.Name, ErrForeign)
}
