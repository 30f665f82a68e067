package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/lighterman-dev/lighterman/jobs"
)

// A task is a message and what became of it. Times are ours: the API server tells them in whole seconds.
type task struct {
	payload string
	sent    time.Time
	created time.Time // when we saw its first Job
	done    time.Time // when we saw that the message was settled after its Job had succeeded
	jobs    []string  // all that were ever seen
	failed  bool      // a Job failed, or the message was given up
	ended   bool      // its latest Job has ended, whether or not the message is settled
}

// A follower keeps the books: what was sent, and which Jobs were seen.
type follower struct {
	mu       sync.Mutex
	tasks    map[string]*task // by the message's id; guarded by mu
	strange  []string         // Jobs that no message of ours accounts for; guarded by mu
	changed  chan struct{}    // holds a token when there is news
	factory  informers.SharedInformerFactory
	expected int
}

// startFollower watches the Jobs of the namespace until ctx ends, and shutdown is called.
func startFollower(ctx context.Context, client kubernetes.Interface, namespace string, expected int) (*follower, error) {
	f := &follower{tasks: make(map[string]*task, expected), changed: make(chan struct{}, 1), expected: expected}
	f.factory = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = jobs.Selector() }))
	informer := f.factory.Batch().V1().Jobs().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f.see(obj) },
		UpdateFunc: func(_, obj any) { f.see(obj) },
	})
	if err != nil {
		return nil, err
	}
	// An informer tries for ever what it may not do; a plain request says so.
	if _, err := client.BatchV1().Jobs(namespace).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return nil, fmt.Errorf("listing Jobs: %w", err)
	}
	f.factory.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		f.factory.Shutdown()
		return nil, fmt.Errorf("listing Jobs: %w", context.Cause(ctx))
	}
	return f, nil
}

// sent notes a message; its Job may have been seen already.
func (f *follower) sent(id, payload string, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.task(id)
	t.payload, t.sent = payload, at
}

func (f *follower) task(id string) *task {
	if f.tasks[id] == nil {
		f.tasks[id] = &task{}
	}
	return f.tasks[id]
}

func (f *follower) see(obj any) {
	job, ok := obj.(*batchv1.Job)
	if !ok {
		return
	}
	now := time.Now()
	defer func() {
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	id, err := jobs.IdentityOf(job)
	if err != nil {
		f.strange = append(f.strange, err.Error())
		return
	}
	f.task(string(id.Messages)).see(job, now)
}

// see takes in a Job of the task, of which it may have seen older versions.
func (t *task) see(job *batchv1.Job, now time.Time) {
	known := false
	for _, name := range t.jobs {
		known = known || name == job.Name
	}
	if !known {
		t.jobs = append(t.jobs, job.Name)
		t.ended = false
	}
	if t.created.IsZero() {
		t.created = now
	}
	switch jobs.StatusOf(job).Phase {
	case jobs.Failed:
		t.failed, t.ended = true, true
	case jobs.Succeeded:
		t.ended = true
		if job.Labels[jobs.LabelSettled] != "" && t.done.IsZero() {
			t.done = now
		}
	}
}

// counts says where the messages are: each is in one of the four.
func (f *follower) counts() counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	var c counts
	for _, t := range f.tasks {
		switch {
		case t.failed:
			c.failed++
		case !t.done.IsZero():
			c.done++
		case !t.created.IsZero():
			c.running++
		}
	}
	c.queued = f.expected - c.failed - c.done - c.running
	return c
}

// snapshot returns all tasks by the ids of their messages, once nothing changes them any more.
func (f *follower) snapshot() (map[string]*task, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if len(f.strange) > 0 {
		err = fmt.Errorf("%d Jobs are not what they should be; the first: %w", len(f.strange), errors.New(f.strange[0]))
	}
	return f.tasks, err
}

// waiting names a Job that has not ended.
func (f *follower) waiting() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tasks {
		if len(t.jobs) > 0 && !t.ended {
			return t.jobs[len(t.jobs)-1]
		}
	}
	return ""
}
