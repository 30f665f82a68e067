package jobs

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Exists asks the API server, and no cache, whether there is a Job by the name of this identity. It need not say any more whose it is: somebody may
// have removed our label or annotations from a Job that still runs.
func (l *Launcher) Exists(ctx context.Context, namespace string, id Identity) (bool, error) {
	_, err := l.client.Jobs(namespace).Get(ctx, id.Name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading Job %s/%s: %w", namespace, id.Name(), err)
	}
	return true, nil
}
