package jobs

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Exists asks the API server, and no cache, whether there is a Job of this identity.
func (l *Launcher) Exists(ctx context.Context, namespace string, id Identity) (bool, error) {
	job, err := l.client.Jobs(namespace).Get(ctx, id.Name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading Job %s/%s: %w", namespace, id.Name(), err)
	}
	// One that carries our label and is not ours took the name after ours had gone.
	have, err := IdentityOf(job)
	return err == nil && have == id, nil
}
