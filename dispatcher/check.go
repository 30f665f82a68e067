package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

// candidate is an annotated object: what it asks for, not yet whether that can be had.
type candidate struct {
	ref      jobs.Ref
	object   *corev1.ObjectReference
	created  metav1.Time
	specs    []*annotation.Spec
	template *jobs.Template
}

// errNotOurs means that an object carries no annotation of ours.
var errNotOurs = errors.New("no annotations of ours")

// readCandidate judges an object by itself. The candidate has its object even when there is an error, so that an Event can be put
// there.
func readCandidate(ref jobs.Ref, obj metav1.Object) (*candidate, error) {
	c := &candidate{ref: ref, created: obj.GetCreationTimestamp(), object: &corev1.ObjectReference{
		APIVersion: batchv1.SchemeGroupVersion.String(), Kind: ref.Kind,
		Namespace: ref.Namespace, Name: ref.Name, UID: obj.GetUID(),
	}}
	if !annotation.Has(obj.GetAnnotations()) || obj.GetDeletionTimestamp() != nil {
		return c, errNotOurs
	}
	specs, err := annotation.Parse(ref.Kind, obj.GetAnnotations())
	if err != nil {
		return c, err
	}
	c.specs = specs
	switch o := obj.(type) {
	case *batchv1.CronJob:
		c.template, err = jobs.FromCronJob(o, annotation.Strip)
	case *batchv1.Job:
		c.template, err = jobs.FromJob(o, annotation.Strip)
	default:
		err = fmt.Errorf("a %T cannot be a template", obj)
	}
	return c, err
}

// credentials reads the Secrets that a set of annotations refers to.
func credentials(ctx context.Context, secrets corev1client.SecretsGetter, namespace string, spec *annotation.Spec) (c Credentials, err error) {
	c.Source, err = secretValue(ctx, secrets, namespace, spec.Key(annotation.KeyConnectionSecret), spec.ConnectionSecret)
	if err != nil || spec.CheckpointSecret == (annotation.SecretKey{}) {
		return c, err
	}
	c.Checkpoints, err = secretValue(ctx, secrets, namespace, spec.Key(annotation.KeyCheckpointSecret), spec.CheckpointSecret)
	return c, err
}

// secretValue reads the Secret that one annotation refers to.
func secretValue(ctx context.Context, secrets corev1client.SecretsGetter, namespace, annotationKey string, ref annotation.SecretKey) (string, error) {
	fail := func(problem, remedy string) error {
		return &annotation.Error{Key: annotationKey, Value: ref.String(), Problem: problem, Remedy: remedy}
	}
	name, key := ref.Name, ref.Key
	secret, err := secrets.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", fail(fmt.Sprintf("names a Secret that does not exist in namespace %s", namespace), "create it, or correct the annotation")
	case apierrors.IsForbidden(err):
		return "", fail("cannot be read: "+err.Error(), "give the dispatcher's service account the right to get this Secret")
	case err != nil:
		return "", fmt.Errorf("reading Secret %s/%s: %w", namespace, name, err)
	}
	value, ok := secret.Data[key]
	if !ok {
		return "", fail(fmt.Sprintf("names a key that Secret %s does not have", name), "add the key "+key+" to the Secret, or correct the annotation")
	}
	if len(value) == 0 {
		return "", fail("names a key that is empty", "put the connection string there")
	}
	return string(value), nil
}

// openSource makes the source of a set of annotations, and checks that it is there and lets us in.
func (d *discovery) openSource(ctx context.Context, spec *annotation.Spec, c Credentials) (lease.Source, error) {
	source, err := d.cfg.OpenSource(spec, Connection{Credentials: c, Level: d.term.level()})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Tuning.SourceTimeout)
	defer cancel()
	if err := source.Check(ctx); err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return source, nil
}

// dryRun asks the API server whether it takes Jobs of the template.
func (d *discovery) dryRun(ctx context.Context, c *candidate, spec *annotation.Spec, identity string) error {
	// The API server may not have heard yet that the lock is ours.
	retry := backoff{base: 50 * time.Millisecond, limit: 400 * time.Millisecond}
	for {
		err := d.tryDryRun(ctx, d.launcher, c, spec, identity)
		if !jobs.Fenced(err) || d.term.fenced(ctx) || !sleep(ctx, retry.next()) || retry.failures > 5 {
			return err
		}
	}
}

func (d *discovery) tryDryRun(ctx context.Context, launcher *jobs.Launcher, c *candidate, spec *annotation.Spec, identity string) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Tuning.LaunchTimeout)
	defer cancel()
	return launcher.DryRun(ctx, c.template, identity, jobs.PayloadMode(spec.Payload))
}

// findFence finds out whether the API server would refuse a Job of another term than ours, by trying with a Job that it takes in ours.
func (d *discovery) findFence(ctx context.Context, c *candidate, spec *annotation.Spec, identity string) {
	err := d.tryDryRun(ctx, jobs.NewLauncher(d.cfg.Client, d.term.noTerm()), c, spec, identity)
	switch {
	case jobs.Fenced(err):
		d.term.log.Info("fenced: the API server refuses the Jobs of former leaders")
	case err == nil:
		d.term.log.Info("not fenced: should this process be paused for long and another take over, a Job that it was about to create can still be created; "+
			"the policy that the command prints, for kubectl apply, rules that out",
			"command", "lighterman fence --lock-namespace "+d.cfg.Lock.Namespace)
	default:
		d.fenceFound.Store(false) // the next template may tell
		return
	}
	d.cfg.Metrics.SetFenced(d.term.LeaseMeta.Name, err != nil)
}
