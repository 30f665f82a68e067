// Package dispatcher takes messages from where they wait to where they are worked on, and back: it finds the templates, decides which
// process dispatches, and runs a lane for each source.
//
//	CronJobs, Jobs ──watch──▶ templates ──check──▶ lane ┬─ receive ─▶ launch ─▶ Job ─▶ observe ─▶ settle ─▶ mark
//	(annotated)               (discover.go)             └─ the lease keeper renews from receive to settle
//
// Start reading at Dispatcher.Run, then discover.go (which lanes there are), then lane.go (what a lane is) and the files that its
// comment names, in that order.
//
// The templates are divided into shards, by what they take from. For each shard that this process leads (leader.go, lock.go, members.go) there is
// one discovery, with the lanes of its templates.
//
// Three clocks must not be mixed up: a message's lease, which the source grants and lease.Keeper renews; a leader lock, a
// Kubernetes Lease object, which leader.go renews; and how long a settled Job stays (lane.keep), which is longer than both.
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// Connection is what a source is opened with, beside what the annotations say.
type Connection struct {
	Credentials
	// Level is higher than that of every source that was opened in an earlier term of leadership.
	Level int64
}

// Credentials are what the Secrets hold that a set of annotations refers to.
type Credentials struct {
	// Source is the connection string of the source, and Checkpoints that of where its checkpoints are kept; empty where it has none.
	Source, Checkpoints string
}

// Config is what a Dispatcher needs. Fields without a default are required.
type Config struct {
	// Client is used for all but the leader locks. It should have no limit of its own on requests: the dispatcher paces
	// itself, and the API server protects itself by priority and fairness.
	Client kubernetes.Interface
	// Namespace restricts templates and Jobs to one namespace. Empty: all.
	Namespace string
	// OpenSource makes the source that a set of annotations names, without connecting.
	OpenSource func(spec *annotation.Spec, c Connection) (lease.Source, error)
	// Lock decides which process dispatches for which templates.
	Lock LockConfig
	// MaxInFlight is the most tasks in flight over all templates. Default 10,000.
	MaxInFlight int
	Tuning      Tuning
	Metrics     *metrics.Metrics
	Log         *slog.Logger
}

// Tuning is what rarely needs to be changed. The zero value of a field means its default.
type Tuning struct {
	// PollInterval is the longest pause between two looks at an empty source that cannot wait. Default 200 ms.
	PollInterval time.Duration
	// BacklogInterval is how often the backlog is read. Default 5 s.
	BacklogInterval time.Duration
	// LaunchConcurrency is how many Jobs of a template are created at once. Default 32.
	LaunchConcurrency int
	// LaunchTimeout bounds one request to the API server. Default 30 s.
	LaunchTimeout time.Duration
	// SourceTimeout bounds one call to a source. Default 30 s.
	SourceTimeout time.Duration
	// DrainTimeout is how long a lane that stops may take to settle what is decided. Default 6 s, so that a process stops
	// within 10 s.
	DrainTimeout time.Duration
	// LockDuration is the leader locks' lease duration; New sets it.
	LockDuration time.Duration
}

func (t *Tuning) setDefaults() {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&t.PollInterval, 200 * time.Millisecond},
		{&t.BacklogInterval, 5 * time.Second},
		{&t.LaunchTimeout, 30 * time.Second},
		{&t.SourceTimeout, 30 * time.Second},
		{&t.DrainTimeout, 6 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	if t.LaunchConcurrency == 0 {
		t.LaunchConcurrency = 32
	}
}

// Dispatcher dispatches for all templates that it finds.
type Dispatcher struct {
	cfg     Config
	tracker *jobs.Tracker
	slots   *slots

	cronJobs, jobTemplates cache.SharedIndexInformer

	mu      sync.Mutex
	leading map[int]*discovery // by shard, while this process leads it
	// series counts who shows the metrics of a template: two shards can, each for some of its sets, and for a moment for the same one.
	series map[seriesName]int
}

// seriesName names the metrics of a template's set.
type seriesName struct{ namespace, name string }

// New makes a Dispatcher. It does nothing until Run is called.
func New(cfg Config) (*Dispatcher, error) {
	cfg.Tuning.setDefaults()
	cfg.Lock.setDefaults()
	cfg.Tuning.LockDuration = cfg.Lock.LeaseDuration
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 10_000
	}
	tracker, err := jobs.NewTracker(cfg.Client, cfg.Namespace)
	if err != nil {
		return nil, err
	}
	d := &Dispatcher{
		cfg:     cfg,
		tracker: tracker,
		slots:   newSlots(cfg.MaxInFlight),
		leading: make(map[int]*discovery),
		series:  make(map[seriesName]int),
	}
	factory := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0,
		informers.WithNamespace(cfg.Namespace), informers.WithTransform(trimTemplate))
	d.cronJobs = factory.Batch().V1().CronJobs().Informer()
	// Our own Jobs are in the tracker's cache, and cannot be templates.
	others := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0,
		informers.WithNamespace(cfg.Namespace), informers.WithTransform(trimTemplate),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = jobs.NotSelector() }))
	d.jobTemplates = others.Batch().V1().Jobs().Informer()
	for kind, informer := range map[string]cache.SharedIndexInformer{
		annotation.KindCronJob: d.cronJobs, annotation.KindJob: d.jobTemplates,
	} {
		if _, err := informer.AddEventHandler(d.templateHandler(kind)); err != nil {
			return nil, fmt.Errorf("watching %ss: %w", kind, err)
		}
	}
	return d, nil
}

// trimTemplate empties the objects that cannot be templates: a cluster can have many of them.
func trimTemplate(obj any) (any, error) {
	switch o := obj.(type) {
	case *batchv1.CronJob:
		o.ManagedFields = nil
		if !annotation.Has(o.Annotations) {
			return &batchv1.CronJob{ObjectMeta: nameOnly(o)}, nil
		}
	case *batchv1.Job:
		o.ManagedFields = nil
		if !annotation.Has(o.Annotations) {
			return &batchv1.Job{ObjectMeta: nameOnly(o)}, nil
		}
	}
	return obj, nil
}

func nameOnly(o metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(),
	}
}

// Run watches, contends for the locks, and dispatches for the shards whose locks it holds, until ctx ends. It then stops receiving, settles what is
// decided, gives back the other messages and releases the locks, within 10 s.
func (d *Dispatcher) Run(ctx context.Context) error {
	// The caches must outlive the lanes, which learn from them how their Jobs ended until the last moment.
	caches, stopCaches := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { d.tracker.Run(caches) })
	watching.Go(func() { d.cronJobs.RunWithContext(caches) })
	watching.Go(func() { d.jobTemplates.RunWithContext(caches) })
	defer watching.Wait()
	defer stopCaches()

	if err := d.waitForSync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return d.contend(ctx)
}

func (d *Dispatcher) waitForSync(ctx context.Context) error {
	if err := d.tracker.WaitForSync(ctx); err != nil {
		return err
	}
	if !cache.WaitForCacheSync(ctx.Done(), d.cronJobs.HasSynced, d.jobTemplates.HasSynced) {
		return fmt.Errorf("waiting for the templates to be listed: %w", context.Cause(ctx))
	}
	return nil
}

// Ready reports, by an error, that the caches have not been filled yet.
func (d *Dispatcher) Ready() error {
	if !d.tracker.Synced() || !d.cronJobs.HasSynced() || !d.jobTemplates.HasSynced() {
		return errors.New("CronJobs and Jobs have not been listed yet; if that lasts, check the API server and the right to list and watch them")
	}
	return nil
}

// lead dispatches for a shard until ctx ends.
func (d *Dispatcher) lead(ctx context.Context, shard int, term *leadership) {
	broadcaster := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: d.cfg.Client.CoreV1().Events("")})
	defer broadcaster.Shutdown()
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "lighterman", Host: d.cfg.Lock.Identity})

	leading := &discovery{
		Dispatcher: d,
		shard:      shard,
		term:       term,
		launcher:   jobs.NewLauncher(d.cfg.Client, term.fence()),
		report:     newReporter(recorder, d.cfg.Log),
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[jobs.Ref](time.Second, 20*time.Second),
			workqueue.TypedRateLimitingQueueConfig[jobs.Ref]{Name: "templates"}),
		templates: make(map[jobs.Ref]*template),
		holders:   make(map[string]*holder),
	}
	defer leading.report.stop()
	d.mu.Lock()
	d.leading[shard] = leading
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.leading, shard)
		d.mu.Unlock()
	}()
	leading.run(ctx)
}

// templateHandler passes on the names of annotated objects that change, to the shards that this process leads.
func (d *Dispatcher) templateHandler(kind string) cache.ResourceEventHandler {
	enqueue := func(obj any) {
		if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = unknown.Obj
		}
		o, ok := obj.(metav1.Object)
		if !ok {
			return
		}
		d.mu.Lock()
		leading := slices.Collect(maps.Values(d.leading))
		d.mu.Unlock()
		for _, l := range leading {
			l.enqueue(jobs.RefOf(kind, o), o)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, obj any) { enqueue(obj) },
		DeleteFunc: enqueue,
	}
}
