package jobs

import (
	"context"
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Exists asks the API server, and no cache, whether there is a Job by the name of this identity. It need not say any more whose it is: somebody may
// have removed our label or annotations from a Job that still runs.
func (l *Launcher) Exists(ctx context.Context, namespace string, id Identity) (bool, error) {
	job, err := l.Find(ctx, namespace, id)
	return job != nil, err
}

// Find asks the API server, and no cache, for the Job by the name of this identity, whosever it is; nil where there is none.
func (l *Launcher) Find(ctx context.Context, namespace string, id Identity) (*batchv1.Job, error) {
	job, err := l.client.Jobs(namespace).Get(ctx, id.Name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none, and nothing went wrong
	}
	if err != nil {
		return nil, fmt.Errorf("reading Job %s/%s: %w", namespace, id.Name(), err)
	}
	return job, nil
}

// Located is an identity, and the namespace that its Job is in.
type Located struct {
	Identity
	Namespace string
}

// listPage is how many Jobs are asked for at a time.
const listPage = 500

// List asks the API server, and no cache, for all Jobs of a source, in a namespace or in all where it is empty. What it returns was all there at one
// moment after it was called.
func (l *Launcher) List(ctx context.Context, namespace, source string) ([]Located, error) {
	var found []Located
	options := metav1.ListOptions{LabelSelector: Selector(), Limit: listPage}
	for {
		page, err := l.client.Jobs(namespace).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("listing Jobs: %w", err)
		}
		for i := range page.Items {
			if id, err := IdentityOf(&page.Items[i]); err == nil && id.Source == source {
				found = append(found, Located{id, page.Items[i].Namespace})
			}
		}
		if options.Continue = page.Continue; options.Continue == "" {
			return found, nil
		}
	}
}
