package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"

	"github.com/lighterman-dev/lighterman/jobs"
)

// A creation is a Job that the API server created on the request of one of our processes.
type creation struct {
	at      time.Time
	process string
	source  string // what kind its message comes from
	shard   string // the leader lock under which it was created
	term    int    // of that lock
}

// A watcher knows which Jobs there are and have been: from the answers to those who create them, and from a watch of its own that no
// fault touches.
type watcher struct {
	mu        sync.Mutex
	fenced    int                               // guarded by mu
	creations []creation                        // guarded by mu
	uids      map[string]map[types.UID]struct{} // guarded by mu; by the Job's name, of which each attempt has one
	done      map[string]struct{}               // guarded by mu; settled messages
	settled   map[string]int                    // guarded by mu; how many of them, by the kind of source
	grown     chan struct{}                     // guarded by mu; closed and replaced at each creation
}

func newWatcher() *watcher {
	return &watcher{uids: make(map[string]map[types.UID]struct{}), done: make(map[string]struct{}), settled: make(map[string]int), grown: make(chan struct{})}
}

// answered looks at an answer of the API server on its way to a process.
func (w *watcher) answered(process string, r *http.Response) error {
	if r.Request.Method != http.MethodPost || !strings.HasSuffix(r.Request.URL.Path, "/jobs") || r.Request.URL.Query().Has("dryRun") ||
		r.StatusCode != http.StatusCreated && r.StatusCode != http.StatusForbidden {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err // the API server has died in the middle of it
	}
	_ = r.Body.Close()
	r.Body = io.NopCloser(bytes.NewReader(body))
	if r.StatusCode == http.StatusForbidden {
		w.refused(body)
		return nil
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return fmt.Errorf("reading a Job that was created: %w", err)
	}
	job, ok := object.(*batchv1.Job)
	if !ok {
		return fmt.Errorf("creating a Job returned a %T", object)
	}
	c := creation{at: time.Now(), process: process}
	c.source, _, _ = strings.Cut(job.Annotations[jobs.AnnotationSource], ":")
	if c.shard, c.term, err = termOf(job); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteUID(job)
	w.creations = append(w.creations, c)
	close(w.grown)
	w.grown = make(chan struct{})
	return nil
}

func (w *watcher) refused(body []byte) {
	if bytes.Contains(body, []byte(jobs.FenceDenied)) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.fenced++
	}
}

// fencedCount is how many Jobs of former leaders the API server has refused.
func (w *watcher) fencedCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fenced
}

// termOf is the leader lock under which a Job was created, and its term.
func termOf(job *batchv1.Job) (shard string, term int, err error) {
	fence := job.Annotations[jobs.AnnotationFence]
	at := strings.LastIndexByte(fence, '/')
	term, err = strconv.Atoi(fence[at+1:])
	if at < 0 || err != nil {
		return "", 0, fmt.Errorf("the Job %s carries no term but %q", job.Name, fence)
	}
	return fence[:at], term, nil
}

func (w *watcher) noteUID(job *batchv1.Job) {
	if w.uids[job.Name] == nil {
		w.uids[job.Name] = make(map[types.UID]struct{}, 1)
	}
	w.uids[job.Name][job.UID] = struct{}{}
}

// run follows the Jobs until ctx ends.
func (w *watcher) run(ctx context.Context, client kubernetes.Interface, namespace string) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = jobs.Selector() }),
		informers.WithTransform(func(obj any) (any, error) {
			if job, ok := obj.(*batchv1.Job); ok {
				return &batchv1.Job{ObjectMeta: job.ObjectMeta}, nil
			}
			return obj, nil
		}))
	informer := factory.Batch().V1().Jobs().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    w.see,
		UpdateFunc: func(_, obj any) { w.see(obj) },
		DeleteFunc: w.see,
	}); err != nil {
		return fmt.Errorf("watching Jobs: %w", err)
	}
	informer.RunWithContext(ctx)
	return nil
}

func (w *watcher) see(obj any) {
	if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = unknown.Obj
	}
	job, ok := obj.(*batchv1.Job)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteUID(job)
	if job.Labels[jobs.LabelSettled] != "" {
		w.noteSettled(job)
	}
}

// noteSettled takes note that the message of a Job, or all of its pack, are settled. The caller holds mu.
func (w *watcher) noteSettled(job *batchv1.Job) {
	id, err := jobs.IdentityOf(job)
	if err != nil {
		return // its message stays unsettled, which is told at the end
	}
	kind, _, _ := strings.Cut(id.Source, ":")
	for message := range id.Messages.All() {
		key := id.Source + " " + message
		if _, known := w.done[key]; !known {
			w.done[key] = struct{}{}
			w.settled[kind]++
		}
	}
}

// settledCount is how many messages of a kind of source are known to be settled.
func (w *watcher) settledCount(source string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.settled[source]
}

func (w *watcher) createdCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.creations)
}

// createdSince says whether a Job was created after a time.
func (w *watcher) createdSince(at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.creations) > 0 && w.creations[len(w.creations)-1].at.After(at)
}

// firstSince is how long after a time the first Job for a kind of source was created.
func (w *watcher) firstSince(at time.Time, source string) (after time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.creations {
		if c.source == source && c.at.After(at) {
			return c.at.Sub(at), true
		}
	}
	return 0, false
}

// sameNames are the Jobs of which there was more than one of the same name: one attempt that was run again after its Job was gone.
func (w *watcher) sameNames() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := make(map[string]int)
	for name, uids := range w.uids {
		if len(uids) > 1 {
			found[name] = len(uids)
		}
	}
	return found
}

// termsOf are the shards in which a process has created Jobs since then, and the terms in which it did.
func (w *watcher) termsOf(process string, since time.Time) map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	terms := make(map[string]int)
	for _, c := range w.creations {
		if c.process == process && c.at.After(since) {
			terms[c.shard] = c.term
		}
	}
	return terms
}

// next waits for a creation after a time that is as wanted.
func (w *watcher) next(ctx context.Context, after time.Time, wanted func(creation) bool) (creation, error) {
	for from := 0; ; {
		w.mu.Lock()
		grown, known := w.grown, w.creations
		w.mu.Unlock()
		for ; from < len(known); from++ {
			if known[from].at.After(after) && wanted(known[from]) {
				return known[from], nil
			}
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return creation{}, context.Cause(ctx)
		}
	}
}
