package jobs

import (
	"context"
	"fmt"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Follower is told of the Jobs of one source. Its methods are called one after another by the Tracker, and must not
// block.
type Follower interface {
	// JobChanged is called for each Job that appears or changes, and once for each at the start.
	JobChanged(id Identity, job *batchv1.Job)
	// JobGone is called when a Job has been removed; job is its last known state.
	JobGone(id Identity, job *batchv1.Job)
}

// Tracker watches our Jobs, and those only, in one cache that keeps no more of each than is needed.
type Tracker struct {
	informer cache.SharedIndexInformer

	mu        sync.RWMutex
	followers map[string]Follower // by source identity
}

const (
	byMessage = "message"
	bySource  = "source"
)

// NewTracker makes a Tracker of the Jobs in a namespace, or in all where it is empty.
func NewTracker(client kubernetes.Interface, namespace string) (*Tracker, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = Selector() }),
		informers.WithTransform(trim),
	)
	t := &Tracker{informer: factory.Batch().V1().Jobs().Informer(), followers: make(map[string]Follower)}
	if err := t.informer.AddIndexers(cache.Indexers{
		byMessage: indexBy(messageKeys),
		bySource:  indexBy(func(id Identity) []string { return []string{id.Source} }),
	}); err != nil {
		return nil, fmt.Errorf("indexing Jobs: %w", err)
	}
	if _, err := t.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    t.changed,
		UpdateFunc: func(_, obj any) { t.changed(obj) },
		DeleteFunc: t.gone,
	}); err != nil {
		return nil, fmt.Errorf("watching Jobs: %w", err)
	}
	return t, nil
}

// Run watches until ctx ends.
func (t *Tracker) Run(ctx context.Context) { t.informer.RunWithContext(ctx) }

// WaitForSync waits until the cache holds all Jobs that there are.
func (t *Tracker) WaitForSync(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), t.informer.HasSynced) {
		return fmt.Errorf("waiting for the Jobs to be listed: %w", context.Cause(ctx))
	}
	return nil
}

// Synced reports whether the cache holds all Jobs that there were at the start.
func (t *Tracker) Synced() bool { return t.informer.HasSynced() }

// Follow tells f of the changes to the source's Jobs from now on. A source has one follower.
func (t *Tracker) Follow(source string, f Follower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.followers[source] = f
}

// Unfollow ends what Follow began.
func (t *Tracker) Unfollow(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.followers, source)
}

// OfMessage is all known Jobs of a message, in no order.
func (t *Tracker) OfMessage(source, messageID string) []*batchv1.Job {
	return t.byIndex(byMessage, messageKey(source, messageID))
}

// OfSource is all known Jobs of a source, in no order.
func (t *Tracker) OfSource(source string) []*batchv1.Job { return t.byIndex(bySource, source) }

// Knows reports whether the Job of an identity is known, in a namespace.
func (t *Tracker) Knows(namespace string, id Identity) bool {
	obj, exists, err := t.informer.GetIndexer().GetByKey(namespace + "/" + id.Name())
	if err != nil || !exists {
		return false
	}
	known, err := IdentityOf(obj.(*batchv1.Job))
	return err == nil && known == id
}

// Current is what is known of a Job by now; nil where it is gone.
func (t *Tracker) Current(job *batchv1.Job) *batchv1.Job {
	obj, exists, err := t.informer.GetIndexer().Get(job)
	if err != nil || !exists {
		return nil
	}
	return obj.(*batchv1.Job)
}

func (t *Tracker) byIndex(index, key string) []*batchv1.Job {
	objs, err := t.informer.GetIndexer().ByIndex(index, key)
	if err != nil {
		panic(err) // the index was added in NewTracker
	}
	if len(objs) == 0 {
		return nil
	}
	found := make([]*batchv1.Job, len(objs))
	for i, obj := range objs {
		found[i] = obj.(*batchv1.Job)
	}
	return found
}

func (t *Tracker) changed(obj any) {
	job := obj.(*batchv1.Job)
	if id, f := t.follower(job); f != nil {
		f.JobChanged(id, job)
	}
}

func (t *Tracker) gone(obj any) {
	// A watch that broke off can miss a deletion; then the cache hands out the last state it knew.
	if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = unknown.Obj
	}
	job, ok := obj.(*batchv1.Job)
	if !ok {
		return
	}
	if id, f := t.follower(job); f != nil {
		f.JobGone(id, job)
	}
}

func (t *Tracker) follower(job *batchv1.Job) (Identity, Follower) {
	id, err := IdentityOf(job)
	if err != nil {
		return Identity{}, nil // it carries our label and is not ours
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return id, t.followers[id.Source]
}

func messageKey(source, messageID string) string { return source + "\x00" + messageID }

func messageKeys(id Identity) []string {
	keys := make([]string, 0, id.Messages.Len())
	for message := range id.Messages.All() {
		keys = append(keys, messageKey(id.Source, message))
	}
	return keys
}

func indexBy(keys func(Identity) []string) cache.IndexFunc {
	return func(obj any) ([]string, error) {
		job, ok := obj.(*batchv1.Job)
		if !ok {
			return nil, nil
		}
		id, err := IdentityOf(job)
		if err != nil {
			return nil, nil //nolint:nilerr // a Job that is not ours is in no index
		}
		return keys(id), nil
	}
}

// trim keeps of a Job what the dispatcher reads: the payload and the pod template would be most of its memory.
func trim(obj any) (any, error) {
	job, ok := obj.(*batchv1.Job)
	if !ok {
		return obj, nil
	}
	kept := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:         job.Namespace,
			Name:              job.Name,
			UID:               job.UID,
			ResourceVersion:   job.ResourceVersion,
			CreationTimestamp: job.CreationTimestamp,
			DeletionTimestamp: job.DeletionTimestamp,
			Labels:            only(job.Labels, LabelTemplate, LabelSettled),
			Annotations: only(job.Annotations, AnnotationSource, AnnotationMessageID, AnnotationMessageIDs, AnnotationAttempt,
				AnnotationTemplate, AnnotationEnded, AnnotationPayload),
		},
		Spec:   batchv1.JobSpec{Suspend: job.Spec.Suspend, TTLSecondsAfterFinished: job.Spec.TTLSecondsAfterFinished},
		Status: job.Status,
	}
	kept.Status.UncountedTerminatedPods = nil
	return kept, nil
}

func only(m map[string]string, keys ...string) map[string]string {
	kept := make(map[string]string, len(keys))
	for _, key := range keys {
		if v, ok := m[key]; ok {
			kept[key] = v
		}
	}
	return kept
}
