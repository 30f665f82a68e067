package jobs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	batchclient "k8s.io/client-go/kubernetes/typed/batch/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// fieldManager is who the API server records as the writer.
const fieldManager = "lighterman"

// ErrForeign means that an object of the name that we need exists and is not ours.
var ErrForeign = errors.New("name is taken by an object that is not ours")

// FenceDenied is in the API server's answer to who creates a Job in a term that is over.
const FenceDenied = "the term of the leader lock in " + AnnotationFence + " is over"

// Fenced reports whether the API server refused a Job because another process has the leader lock by now. It comes as a cause of its own,
// with the text that our policy gives it.
func Fenced(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool {
		return strings.Contains(c.Message, FenceDenied)
	})
}

// Launcher creates Jobs, and the Secrets of their payloads.
type Launcher struct {
	client  batchclient.JobsGetter
	secrets corev1client.SecretsGetter
	fence   string
}

// NewLauncher makes a Launcher. Its Jobs carry the fence, unless that is empty.
func NewLauncher(client kubernetes.Interface, fence string) *Launcher {
	return &Launcher{client: client.BatchV1(), secrets: client.CoreV1(), fence: fence}
}

// Launch puts the fence on the Job and creates it, or finds that it exists: then adopted is true and the result is the Job as it is now, running
// or finished. A Job of that name which does not carry the same identity gives ErrForeign.
//
// An error of the kind that Transient knows says nothing about whether the Job was created; launching again finds out.
func (l *Launcher) Launch(ctx context.Context, job *batchv1.Job) (created *batchv1.Job, adopted bool, err error) {
	client := l.client.Jobs(job.Namespace)
	l.stamp(job)
	for range 3 {
		created, err = client.Create(ctx, job, metav1.CreateOptions{FieldManager: fieldManager})
		if err == nil {
			return created, false, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, false, fmt.Errorf("creating Job %s/%s: %w", job.Namespace, job.Name, err)
		}
		existing, err := client.Get(ctx, job.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			continue // it was deleted between the two requests
		case err != nil:
			return nil, false, fmt.Errorf("reading Job %s/%s, which exists already: %w", job.Namespace, job.Name, err)
		}
		if !sameIdentity(existing, job) {
			return nil, false, fmt.Errorf("creating Job %s/%s: %w; delete or rename it", job.Namespace, job.Name, ErrForeign)
		}
		return existing, true, nil
	}
	return nil, false, fmt.Errorf("creating Job %s/%s: it keeps existing and vanishing: %w", job.Namespace, job.Name, err)
}

// stamp puts the fence on a Job that is not shared yet.
func (l *Launcher) stamp(job *batchv1.Job) {
	if l.fence != "" {
		metav1.SetMetaDataAnnotation(&job.ObjectMeta, AnnotationFence, l.fence)
	}
}

func sameIdentity(existing, wanted *batchv1.Job) bool {
	have, err := IdentityOf(existing)
	if err != nil {
		return false
	}
	want, err := IdentityOf(wanted)
	return err == nil && have == want
}

// DryRun asks the API server whether it would take a Job of this template, and a Secret for it where the mode may need one: validation, admission
// and quota.
func (l *Launcher) DryRun(ctx context.Context, t *Template, source string, mode PayloadMode) error {
	content := &Content{env: []corev1.EnvVar{{Name: EnvPayload, Value: "dry run"}}}
	if mode != PayloadEnv {
		content = &Content{data: map[string][]byte{fileName: []byte("dry run")}, file: fileName}
	}
	job, secret, err := t.Job(Task{
		Identity: Identity{Source: source, Messages: NewMessageSet("dry-run-of-" + t.ref.annotation()), Attempt: 1},
		Content:  content,
	})
	if err != nil {
		return err
	}
	l.stamp(job)
	dry := metav1.CreateOptions{FieldManager: fieldManager, DryRun: []string{metav1.DryRunAll}}
	if _, err = l.client.Jobs(job.Namespace).Create(ctx, job, dry); err != nil {
		return fmt.Errorf("the API server would not take a Job of this template: %w", err)
	}
	if secret == nil {
		return nil
	}
	if _, err = l.secrets.Secrets(secret.Namespace).Create(ctx, secret, dry); err != nil {
		return fmt.Errorf("the API server would not take a Secret with the payload of a Job (with payload: env there would be none, but for large properties): %w", err)
	}
	return nil
}

// Rejected reports whether the API server refused the Job for what it is: what must change is the template, its
// namespace, a quota or a right, and the same request will fail until then. To be fenced says nothing about the Job.
func Rejected(err error) bool {
	return !Fenced(err) && (apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) ||
		apierrors.IsNotFound(err) || apierrors.IsUnauthorized(err) || apierrors.IsMethodNotSupported(err) ||
		apierrors.IsNotAcceptable(err) || apierrors.IsUnsupportedMediaType(err))
}

// TooLarge reports whether the API server refused the Job for its size, which is the payload's. What only etcd finds too large comes back as
// a plain 500 without a reason of its own (the second text is that of the API server's own etcd client), so that nothing but the text tells it
// from an error that passes.
func TooLarge(err error) bool {
	if apierrors.IsRequestEntityTooLargeError(err) {
		return true
	}
	return statusCode(err) == http.StatusInternalServerError &&
		(strings.Contains(err.Error(), "etcdserver: request is too large") || strings.Contains(err.Error(), "trying to send message larger than max"))
}

// Class names the kind of an API error for metrics, as one of a few fixed words: invalid, forbidden, not_found, conflict,
// throttled, timeout, unavailable, foreign, payload, canceled, fenced, other.
func Class(err error) string {
	switch {
	case Fenced(err):
		return "fenced"
	case errors.Is(err, ErrPayload), TooLarge(err):
		return "payload"
	case errors.Is(err, ErrForeign):
		return "foreign"
	case errors.Is(err, ErrTemplate), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return "invalid"
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return "forbidden"
	case apierrors.IsNotFound(err):
		return "not_found"
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return "conflict"
	case apierrors.IsTooManyRequests(err):
		return "throttled"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "timeout"
	case apierrors.IsServiceUnavailable(err), apierrors.IsInternalError(err), utilnet.IsConnectionRefused(err),
		utilnet.IsConnectionReset(err), utilnet.IsProbableEOF(err), statusCode(err) >= http.StatusInternalServerError:
		return "unavailable"
	}
	return "other"
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// statusCode is the HTTP status of an API error; 0 where the error did not come from the API server.
func statusCode(err error) int32 {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Code
	}
	return 0
}
