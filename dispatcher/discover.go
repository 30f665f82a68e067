package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// discovery keeps the lanes of one shard in line with the templates, for as long as this process leads it. Handlers only enqueue names; sync does the
// work, one template at a time, from what the caches and the API server say then.
type discovery struct {
	*Dispatcher
	shard    int
	term     *leadership
	launcher *jobs.Launcher
	report   *reporter
	queue    workqueue.TypedRateLimitingInterface[jobs.Ref]
	// fenceFound says that it is known whether there is a fence.
	fenceFound atomic.Bool

	lanes sync.WaitGroup

	mu        sync.Mutex
	templates map[jobs.Ref]*template
	holders   map[string]*holder // by source identity
}

// template is an annotated object that was looked at, and its lanes, by set. Only the sync of its name touches it, but for shown.
type template struct {
	seen  *candidate
	lanes map[string]*openLane
	// shown are the sets that have metrics. The discovery's mutex guards it.
	shown map[string]bool
}

// openLane is a lane that takes messages, with what it was opened with.
type openLane struct {
	*lane
	spec        annotation.Spec
	credentials Credentials
}

// holder is the lane that has a source. It keeps it after it was retired, until it has ended.
type holder struct {
	lane    *lane
	ref     jobs.Ref
	set     string
	created metav1.Time
	// waiting are those who want the source and were refused.
	waiting map[jobs.Ref]struct{}
}

// run discovers until ctx ends, and returns when all lanes have ended.
func (d *discovery) run(ctx context.Context) {
	for kind, informer := range map[string]cache.SharedIndexInformer{
		annotation.KindCronJob: d.cronJobs, annotation.KindJob: d.jobTemplates,
	} {
		for _, obj := range informer.GetStore().List() {
			if o, ok := obj.(metav1.Object); ok {
				d.enqueue(jobs.RefOf(kind, o), o)
			}
		}
	}
	stop := context.AfterFunc(ctx, d.queue.ShutDown)
	defer stop()
	d.work(ctx)
	d.lanes.Wait()
	for ref, t := range d.templates {
		d.dropMetrics(ref, t)
	}
}

// enqueue has a template looked at, unless it neither is one nor was.
func (d *discovery) enqueue(ref jobs.Ref, obj metav1.Object) {
	if !annotation.Has(obj.GetAnnotations()) {
		d.mu.Lock()
		_, known := d.templates[ref]
		d.mu.Unlock()
		if !known {
			return
		}
	}
	d.queue.Add(ref)
}

// work looks at each template in a goroutine of its own, since any number of sources may hang at once: those of one server do. The queue sees
// to it that a template is looked at by one at a time.
func (d *discovery) work(ctx context.Context) {
	var syncing sync.WaitGroup
	defer syncing.Wait()
	for {
		ref, shutdown := d.queue.Get()
		if shutdown {
			return
		}
		syncing.Go(func() {
			defer d.queue.Done(ref)
			if d.sync(ctx, ref) {
				d.queue.Forget(ref)
			} else if ctx.Err() == nil {
				d.queue.AddRateLimited(ref)
			}
		})
	}
}

// sync brings the lanes of one template in line with it. It returns false when it should be tried again in a while: something that no
// watch tells of, such as a Secret or a queue, may have been mended by then.
func (d *discovery) sync(ctx context.Context, ref jobs.Ref) bool {
	obj := d.lookup(ref)
	d.mu.Lock()
	t := d.templates[ref]
	d.mu.Unlock()
	var c *candidate
	err := errNotOurs
	if obj != nil {
		c, err = readCandidate(ref, obj)
	}
	if !errors.Is(err, errNotOurs) && !d.keepOurs(c, err) {
		err = errNotOurs
	}
	if t != nil && (c == nil || c.object.UID != t.seen.object.UID || errors.Is(err, errNotOurs)) {
		d.forget(ref, t)
		t = nil
	}
	if errors.Is(err, errNotOurs) {
		return true
	}
	if t == nil {
		t = &template{lanes: make(map[string]*openLane)}
		d.mu.Lock()
		d.templates[ref] = t
		d.mu.Unlock()
	}
	t.seen = c
	if err != nil {
		d.retireExcept(t, nil)
		d.show(t, c, map[string]bool{"": true})
		d.misconfigured(ctx, c, "", err)
		return true // the object itself must change, and then we hear of it
	}
	d.retireExcept(t, c.specs)
	d.show(t, c, setsOf(c.specs))
	good := true
	for _, spec := range c.specs {
		if err := d.open(ctx, t, c, spec); err != nil {
			good = false
			d.misconfigured(ctx, c, spec.Set, err)
			continue
		}
		d.report.resolved(c.object, aboutTemplate(spec.Set))
	}
	return good
}

// keepOurs leaves a candidate those sets of annotations that this shard dispatches. It returns whether the template concerns the shard: one that cannot
// be read is told of by one shard.
func (d *discovery) keepOurs(c *candidate, err error) bool {
	if err != nil {
		return d.cfg.Lock.shardOf(c.ref.String()) == d.shard
	}
	c.specs = slices.DeleteFunc(c.specs, func(s *annotation.Spec) bool {
		// Of two templates on one source, one must be refused; so those that might be on one are in one shard. Event Hubs tells no cases apart.
		entity, group := s.Entity(), s.ConsumerGroup
		if s.Source == annotation.SourceAzureEventHubs {
			entity, group = strings.ToLower(entity), strings.ToLower(group)
		}
		return d.cfg.Lock.shardOf(s.Source, entity, group) != d.shard
	})
	return len(c.specs) > 0
}

// lookup finds the object in the caches; nil where there is none.
func (d *discovery) lookup(ref jobs.Ref) metav1.Object {
	informer := d.jobTemplates
	if ref.Kind == annotation.KindCronJob {
		informer = d.cronJobs
	}
	obj, exists, err := informer.GetStore().GetByKey(ref.Namespace + "/" + ref.Name)
	if err != nil || !exists {
		return nil
	}
	o, _ := obj.(metav1.Object)
	return o
}

// open brings the lane of one set of annotations about, or up to date. Everything is checked before a message is leased.
func (d *discovery) open(ctx context.Context, t *template, c *candidate, spec *annotation.Spec) error {
	current := t.lanes[spec.Set]
	if current != nil && !current.sameSource(spec) {
		// Nobody asks for that source any more, whether or not the new one can be had.
		current.retire()
		delete(t.lanes, spec.Set)
		current = nil
	}
	running := current != nil && !current.ended()
	opened, err := credentials(ctx, d.cfg.Client.CoreV1(), c.ref.Namespace, spec)
	if running && err != nil && !errors.As(err, new(*annotation.Error)) {
		opened = current.credentials // it could not be read just now, which says nothing against it
	} else if err != nil {
		return err
	}
	if running && current.credentials == opened {
		current.spec = *spec
		current.update(newSettings(c, spec, current.settings.Load()))
		refusal := d.dryRun(ctx, c, spec, current.identity)
		if jobs.Rejected(refusal) {
			current.block(refusal) // it resumes by itself
			refusal = nil
		}
		if err := errors.Join(err, refusal); err != nil {
			return &uncheckedError{err}
		}
		return nil
	}
	source, err := d.openSource(ctx, spec, opened)
	if err != nil {
		return &sourceError{problem: sourceProblem(spec, err), err: err}
	}
	identity := source.Identity()
	if err := d.dryRun(ctx, c, spec, identity); err != nil {
		return errors.Join(err, source.Close())
	}
	if current != nil && current.identity != identity {
		current.retire()
	}
	name := metricsName(c.ref, spec.Set)
	l := newLane(laneDeps{
		launcher: d.launcher, tracker: d.tracker, pods: d.cfg.Client.CoreV1(), slots: d.slots, report: d.report,
		metrics: d.cfg.Metrics.Template(c.ref.Namespace, name),
		log:     d.cfg.Log.With("namespace", c.ref.Namespace, "template", name),
		tuning:  d.cfg.Tuning,
		recheck: func() { d.queue.Add(c.ref) },
		term:    d.term, namespace: d.cfg.Namespace,
	}, source, newSettings(c, spec, nil))
	if err := d.claim(ctx, c, spec.Set, l); err != nil {
		return errors.Join(err, source.Close())
	}
	t.lanes[spec.Set] = &openLane{lane: l, spec: *spec, credentials: opened}
	d.lanes.Go(func() {
		l.run(ctx)
		d.release(l)
	})
	l.log.Info("dispatching", "source", identity)
	if d.fenceFound.CompareAndSwap(false, true) {
		d.lanes.Go(func() { d.findFence(ctx, c, spec, identity) })
	}
	return nil
}

// claim gives a source to a template's new lane, which the caller then runs, or says who has it: of two templates on one source, the
// older dispatches. It waits for a lane that must go to have gone, since two lanes would share messages.
func (d *discovery) claim(ctx context.Context, c *candidate, set string, l *lane) error {
	for {
		d.mu.Lock()
		h := d.holders[l.identity]
		if h == nil {
			d.holders[l.identity] = &holder{lane: l, ref: c.ref, set: set, created: c.created, waiting: make(map[jobs.Ref]struct{})}
			d.mu.Unlock()
			return nil
		}
		mine := h.ref == c.ref && h.set == set
		if !mine && !h.lane.isRetired() && !older(c, h) {
			h.waiting[c.ref] = struct{}{}
			d.mu.Unlock()
			return &annotation.Error{
				Key: annotation.Prefix + "/" + annotation.KeySource, Value: l.identity,
				Problem: fmt.Sprintf("is dispatched by %s already, which is older; two templates on one source would share its messages", h.ref),
				Remedy:  "use another queue or consumer group, or delete one of the two",
			}
		}
		if !mine {
			h.waiting[h.ref] = struct{}{} // it is looked at again, and told
		}
		d.mu.Unlock()
		h.lane.stop()
		select {
		case <-h.lane.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		d.release(h.lane)
	}
}

// older reports whether a template is older than the one that has the source. Those of one second are told apart by name.
func older(c *candidate, h *holder) bool {
	if !c.created.Equal(&h.created) {
		return c.created.Before(&h.created)
	}
	return strings.Compare(c.ref.String(), h.ref.String()) < 0
}

// release takes note that a lane has ended. Its source is free then, for those who wait.
func (d *discovery) release(l *lane) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.holders[l.identity]
	if h == nil || h.lane != l {
		return
	}
	delete(d.holders, l.identity)
	for ref := range h.waiting {
		d.queue.Add(ref)
	}
	if t := d.templates[h.ref]; t == nil || !t.shown[h.set] {
		d.dropSeries(h.ref, h.set, 0)
	}
}

// retireExcept lets go of the lanes that no set of annotations asks for.
func (d *discovery) retireExcept(t *template, specs []*annotation.Spec) {
	wanted := setsOf(specs)
	for set, l := range t.lanes {
		if !wanted[set] {
			l.retire()
			delete(t.lanes, set)
		}
	}
}

func setsOf(specs []*annotation.Spec) map[string]bool {
	sets := make(map[string]bool, len(specs))
	for _, spec := range specs {
		sets[spec.Set] = true
	}
	return sets
}

// show says which sets of a template there are to tell of. What was told of others is over; their metrics go at once, or with their
// lane.
func (d *discovery) show(t *template, c *candidate, sets map[string]bool) {
	d.mu.Lock()
	before := t.shown
	t.shown = sets
	held := make(map[string]bool)
	for _, h := range d.holders {
		if h.ref == c.ref {
			held[h.set] = true
		}
	}
	d.mu.Unlock()
	for set := range sets {
		if !before[set] {
			d.countSeries(c.ref, set, 1)
		}
	}
	for set := range before {
		if sets[set] {
			continue
		}
		d.report.resolved(c.object, aboutTemplate(set))
		if held[set] {
			d.countSeries(c.ref, set, -1)
		} else {
			d.dropSeries(c.ref, set, -1)
		}
	}
}

// countSeries counts who shows a set's metrics in this process, and returns how many do now.
func (d *Dispatcher) countSeries(ref jobs.Ref, set string, change int) int {
	name := seriesName{ref.Namespace, metricsName(ref, set)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.series[name] += change
	now := d.series[name]
	if now == 0 {
		delete(d.series, name)
	}
	return now
}

// dropSeries removes a set's metrics unless another shard shows them.
func (d *Dispatcher) dropSeries(ref jobs.Ref, set string, change int) {
	if d.countSeries(ref, set, change) == 0 {
		d.cfg.Metrics.DropTemplate(ref.Namespace, metricsName(ref, set))
	}
}

// forget lets go of a template that is gone. Its Jobs finish, and are settled.
func (d *discovery) forget(ref jobs.Ref, t *template) {
	d.retireExcept(t, nil)
	d.mu.Lock()
	delete(d.templates, ref)
	for _, h := range d.holders {
		delete(h.waiting, ref)
	}
	d.mu.Unlock()
	d.report.forget(t.seen.object.UID)
	d.dropMetrics(ref, t)
}

// misconfigured tells the user what to mend, or to wait for.
func (d *discovery) misconfigured(ctx context.Context, c *candidate, set string, err error) {
	if ctx.Err() != nil {
		return // it only failed because we are stopping
	}
	m := d.cfg.Metrics.Template(c.ref.Namespace, metricsName(c.ref, set))
	m.Error(metrics.StageDiscover, class(err))
	if errors.As(err, new(*uncheckedError)) {
		d.report.problem(c.object, uncheckedProblem(set, err))
		return
	}
	m.SetState(metrics.StateMisconfigured)
	d.report.problem(c.object, templateProblem(set, err))
}

func (d *discovery) dropMetrics(ref jobs.Ref, t *template) {
	d.mu.Lock()
	shown := t.shown
	d.mu.Unlock()
	for set := range shown {
		d.dropSeries(ref, set, -1)
	}
}

// uncheckedError is why a template that dispatches could not be checked. That passes, and says nothing against the template.
type uncheckedError struct{ error }

func (e *uncheckedError) Unwrap() error { return e.error }

// sourceError is a source's error with the annotation that it comes from.
type sourceError struct {
	problem
	err error
}

func (e *sourceError) Error() string { return e.text }
func (e *sourceError) Unwrap() error { return e.err }

// class names the kind of error for the metrics.
func class(err error) string {
	if one := (&annotation.Error{}); errors.As(err, &one) || errors.Is(err, jobs.ErrTemplate) {
		return "invalid"
	}
	if errors.As(err, new(*sourceError)) {
		return lease.Class(err)
	}
	return jobs.Class(err)
}

// sameSource reports whether a set of annotations still asks for the source that the lane was opened with.
func (o *openLane) sameSource(spec *annotation.Spec) bool {
	was := &o.spec
	return was.Source == spec.Source && was.Entity() == spec.Entity() &&
		was.ConsumerGroup == spec.ConsumerGroup && was.Poison() == spec.Poison() && was.LeaseDuration == spec.LeaseDuration &&
		was.CheckpointContainer == spec.CheckpointContainer && was.Start == spec.Start
}

// metricsName names a set of a template's annotations in metrics and logs.
func metricsName(ref jobs.Ref, set string) string {
	name := strings.ToLower(ref.Kind) + "/" + ref.Name
	if set != "" {
		name += "/" + set
	}
	return name
}
