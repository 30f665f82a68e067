package dispatcher

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// lane is the way of one source's messages to the Jobs of one template and back. Its goroutines, a file each:
//
//	receive ──▶ tasks ──▶ launch ──▶ (the Job runs; the tracker calls observe) ──▶ settle ──▶ mark
//	              │         ▲                                       │               ▲
//	              └──▶ pack ┘                                       └──▶ judge ─────┘
//	               (with tasks-per-job)                   (which messages of the pack failed)
//	              ▲                                                                   │
//	              └── keeper renews the lease of every task until it is settled ◀──────┘
//
// What it knows of a message is in tasks; what must outlive it is in the Jobs.
type lane struct {
	laneDeps
	source lease.Source
	// confirmer is the source, where its settlements are not final at once; nil where they are.
	confirmer lease.Confirmer
	// identity is the source's.
	identity string
	traits   lease.Traits
	keeper   *lease.Keeper

	settings atomic.Pointer[settings]

	// Each wakes one goroutine; capacity 1.
	wakeReceive, wakeLaunch, wakeSettle, wakeMark, wakeStart, wakeProbe, wakeJudge, wakeProvide, wakeCatchUp chan struct{}

	mu       sync.Mutex
	tasks    map[string]*task // by message id
	inFlight int              // tasks that take up a slot
	unready  int              // tasks whose Job has no ready pod
	queue    []*task          // to launch, in order; may hold tasks that are no longer queued
	waiting  int              // tasks whose state is queued
	packs    packs            // what tasks-per-job needs
	toSettle []*task
	busy     int    // settlements under way or due for another try
	toMark   []mark // settled Jobs
	marking  int    // marks under way or due for another try
	// marks are the Jobs that are to be marked, or are being marked, by UID.
	marks map[types.UID]struct{}
	// unconfirmed is what became of the messages that are settled, and may come again all the same; confirmed says that no more is waited for.
	unconfirmed map[string]outcome
	confirmed   bool
	starts      []start
	stalled     string    // why Jobs do not start; empty while they do
	blocked     error     // why the API server takes no Job of the template; nil when it does
	refusals    int       // Jobs in a row that were refused
	created     int       // Jobs that were created or adopted so far
	outage      bool      // the last creation that ended failed in passing
	scoutAt     time.Time // when a message may be received all the same
	// outageTold says that the outage was reported and no creation has succeeded since.
	outageTold bool
	retired    bool // receives nothing more, and ends with its last task
	stopping   bool // launches nothing more
	stoppedAt  time.Time

	// markedFinalAt is when markFinal last looked. It is readBacklog's.
	markedFinalAt time.Time

	quit     chan struct{} // closed by stop
	stopOnce sync.Once
	done     chan struct{} // closed when run has returned
}

// laneDeps is what a lane needs of its surroundings.
type laneDeps struct {
	// term is the turn at leading that the lane belongs to.
	term     *leadership
	launcher *jobs.Launcher
	tracker  *jobs.Tracker
	pods     corev1client.PodsGetter
	slots    *slots
	report   *reporter
	metrics  *metrics.Template
	log      *slog.Logger
	tuning   Tuning
	// recheck has the template looked at again: something that it refers to may have changed.
	recheck func()
	// namespace is where Jobs are; empty: everywhere.
	namespace string
}

// settings are what can change while a lane runs.
type settings struct {
	spec     *annotation.Spec
	template *jobs.Template
	// object is where Events go.
	object *corev1.ObjectReference
	pace   pace
}

func newLane(deps laneDeps, source lease.Source, s *settings) *lane {
	l := &lane{
		laneDeps:    deps,
		source:      source,
		identity:    source.Identity(),
		traits:      source.Traits(),
		wakeReceive: make(chan struct{}, 1),
		wakeLaunch:  make(chan struct{}, 1),
		wakeSettle:  make(chan struct{}, 1),
		wakeMark:    make(chan struct{}, 1),
		wakeStart:   make(chan struct{}, 1),
		wakeProbe:   make(chan struct{}, 1),
		wakeJudge:   make(chan struct{}, 1),
		wakeProvide: make(chan struct{}, 1),
		wakeCatchUp: make(chan struct{}, 1),
		tasks:       make(map[string]*task),
		marks:       make(map[types.UID]struct{}),
		unconfirmed: make(map[string]outcome),
		quit:        make(chan struct{}),
		done:        make(chan struct{}),
	}
	l.confirmer, _ = source.(lease.Confirmer)
	l.keeper = lease.NewKeeper(source, lease.KeeperConfig{Lost: l.lost, Renewed: l.renewed})
	l.settings.Store(s)
	return l
}

// newSettings puts together what a lane goes by. The pace of old is kept where the rate is the same, so that an edit of something else
// does not grant a burst.
func newSettings(c *candidate, spec *annotation.Spec, old *settings) *settings {
	s := &settings{spec: spec, template: c.template, object: c.object}
	if old != nil && old.spec.JobsPerSecond == spec.JobsPerSecond {
		s.pace = old.pace
	} else {
		s.pace = newPace(spec.JobsPerSecond)
	}
	return s
}

// update changes the settings. The next message is treated by them.
func (l *lane) update(s *settings) {
	old := l.settings.Swap(s)
	if old.pace != s.pace {
		old.pace.drop()
	}
	l.mu.Lock()
	if s.spec.Paused {
		l.giveBackQueued()
	}
	for _, t := range l.tasks {
		if t.state == running && t.pending && (!t.needsSecret || t.provided) {
			l.awaitStart(t) // start-timeout may be new
		}
	}
	if (old.spec.TasksPerJob > 1) != l.packing() {
		l.requeueAll()
	}
	l.syncPools()
	l.mu.Unlock()
	l.setState()
	l.wakeAll()
}

// stop makes run return, after it has wound up.
func (l *lane) stop() { l.stopOnce.Do(func() { close(l.quit) }) }

// ended reports whether the lane has stopped, or is about to.
func (l *lane) ended() bool {
	select {
	case <-l.quit:
		return true
	case <-l.done:
		return true
	default:
		return l.isRetired()
	}
}

func (l *lane) isRetired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retired
}

// retire makes the lane receive nothing more. It gives back what it has not launched, and ends when the last of its Jobs has
// finished and is settled.
func (l *lane) retire() {
	l.mu.Lock()
	l.retired = true
	l.giveBackQueued()
	for _, t := range l.tasks {
		if t.state == resting {
			l.remove(t)
		}
		l.leaveStarved(t)
	}
	l.mu.Unlock()
	l.wakeAll()
	l.endIfEmpty()
}

// run is the lane's life. When ctx ends, it stops receiving, gives back what was not launched, settles what is decided, and
// returns. Jobs that run are left to run, and their messages given back as well: who leases them next finds the Jobs, and need not wait for
// our leases to expire.
func (l *lane) run(ctx context.Context) {
	defer close(l.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.setState()
	l.metrics.SetStalled("", 0) // what an earlier lane may have left
	drain, cancelDrain := lingering(ctx, l.tuning.DrainTimeout)
	defer cancelDrain()

	var renewing, reading, working, ending sync.WaitGroup
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	renewing.Go(func() { l.keeper.Run(keeping) })
	settled := make(chan struct{})
	ending.Go(func() {
		defer close(settled)
		l.settle(drain)
	})
	ending.Go(func() { l.confirm(drain, settled) })
	ending.Go(func() { l.mark(drain) })

	l.follow()
	working.Go(func() { l.receive(ctx) })
	working.Go(func() { l.launch(ctx) })
	working.Go(func() { l.watchStarts(ctx) })
	working.Go(func() { l.probe(ctx) })
	working.Go(func() { l.audit(ctx) })
	working.Go(func() { l.keepHistory(ctx) })
	working.Go(func() { l.watchStalled(ctx) })
	working.Go(func() { l.judge(ctx) })
	working.Go(func() { l.provide(ctx) })
	working.Go(func() { l.catchUp(ctx) })
	reading.Go(func() { l.readBacklog(ctx) })

	select {
	case <-l.quit:
	case <-ctx.Done():
	}
	cancel()
	working.Wait()
	l.mu.Lock()
	l.stopping, l.stoppedAt = true, time.Now()
	l.giveBackQueued()
	l.handOver()
	l.mu.Unlock()
	l.wakeAll()
	ending.Wait()
	l.tracker.Unfollow(l.identity)
	stopKeeping()
	renewing.Wait()
	reading.Wait()
	l.freeSlots()
	if err := l.source.Close(); err != nil {
		l.log.Warn("closing the source failed", "err", err)
	}
}

// room is how many messages may be received now (invariant 6): never more than can be launched.
func (l *lane) room() int {
	s := l.settings.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holdsBack() {
		return 0
	}
	n := s.spec.MaxInFlight - l.inFlight
	waiting := l.waitingJobs()
	if s.spec.MaxPending > 0 {
		n = min(n, s.spec.MaxPending-l.unready-waiting)
	}
	if rate := s.spec.JobsPerSecond; rate > 0 {
		// A second's worth: more would only wait here, hidden from other dispatchers. Not before half of it is gone: a call to the
		// source for each message would cost more than it is worth.
		most := max(int(math.Ceil(rate)), 1)
		free := most - waiting
		if free < (most+1)/2 {
			return 0
		}
		n = min(n, free)
	}
	if l.packing() {
		n = l.packRoom(n)
	}
	if l.outage {
		if l.waiting > 0 || time.Now().Before(l.scoutAt) {
			return 0
		}
		n = min(n, 1)
	}
	return max(n, 0)
}

// holdsBack reports whether nothing may be launched, so that messages belong in the source. The caller holds the mutex.
func (l *lane) holdsBack() bool {
	return l.retired || l.stopping || l.blocked != nil || l.settings.Load().spec.Paused
}

// move changes a task's state, and keeps count of those that wait to be launched. Nothing else writes the state. The caller holds
// the mutex.
func (l *lane) move(t *task, to state) {
	if t.state == queued {
		l.waiting--
		l.leavePool(t)
		wake(l.wakeReceive) // there is room for another
	}
	if to == queued {
		l.waiting++
	}
	t.state = to
}

// remove ends a task. The caller holds the mutex.
func (l *lane) remove(t *task) {
	if l.tasks[t.key()] == t {
		delete(l.tasks, t.key())
	}
	l.setPending(t, false)
	l.move(t, ended)
	l.dropSlot(t)
	l.leavePack(t)
}

// takeSlot counts a task as in flight that did not come by a reserved slot. The caller holds the mutex.
func (l *lane) takeSlot(t *task) {
	if t.slot {
		return
	}
	t.slot = true
	l.inFlight++
	l.slots.take(1)
	l.showInFlight()
}

// showInFlight tells the metrics how many tasks there are. A retired lane may share its series with the one that follows it, whose
// numbers they are then. The caller holds the mutex.
func (l *lane) showInFlight() {
	if !l.retired {
		l.metrics.InFlight.Set(float64(l.inFlight))
	}
}

// dropSlot lets a task no longer count as in flight. The caller holds the mutex.
func (l *lane) dropSlot(t *task) {
	if !t.slot {
		return
	}
	t.slot = false
	l.inFlight--
	l.slots.release(1)
	l.showInFlight()
	wake(l.wakeReceive)
	if l.packing() {
		wake(l.wakeLaunch) // a pack may have waited for it
	}
}

// setPending counts a task among those whose Job has no ready pod, or is being created. The caller holds the mutex.
func (l *lane) setPending(t *task, pending bool) {
	if t.pending == pending {
		return
	}
	t.pending = pending
	if pending {
		l.unready++
		l.showPending()
		return
	}
	l.unready--
	l.showPending()
	wake(l.wakeReceive)
}

// showPending is showInFlight for the tasks without a ready pod. The caller holds the mutex.
func (l *lane) showPending() {
	if !l.retired {
		l.metrics.Pending.Set(float64(l.unready))
	}
}

// giveBackQueued returns all tasks that wait to be launched, without counting an attempt. The caller holds the mutex.
func (l *lane) giveBackQueued() {
	for _, t := range l.queue {
		if t.state == queued {
			l.decided(t, settlement{outcome: returned})
		}
	}
	l.queue = nil
	l.giveBackPools()
}

// handOver gives back the messages of Jobs that run. The caller holds the mutex.
func (l *lane) handOver() {
	for _, t := range l.tasks {
		if t.lease != nil && (t.state == running || t.state == packed || t.state == judging) {
			l.decided(t, settlement{outcome: returned, handOver: true})
		}
	}
}

// freeSlots gives up the slots of Jobs that still run when the lane ends.
func (l *lane) freeSlots() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tasks {
		l.remove(t)
	}
}

// endIfEmpty ends a retired lane that has no task left.
func (l *lane) endIfEmpty() {
	l.mu.Lock()
	empty := l.retired && len(l.tasks) == 0 && l.busy == 0 && l.marking == 0 && len(l.toMark) == 0 && len(l.toSettle) == 0
	l.mu.Unlock()
	if empty {
		l.stop()
	}
}

// lost is told by the keeper that a lease ended. What is not launched yet is forgotten: the message comes again. A running Job
// runs on (invariant 5).
func (l *lane) lost(held *lease.Lease, err error) {
	l.metrics.LeasesLost.Inc()
	l.log.Debug("lease lost", "message_id", held.ID, "err", err)
	l.report.problem(l.settings.Load().object, leaseProblem(held.ID, err))
	l.mu.Lock()
	if t := l.tasks[held.ID]; t != nil && t.lease == held {
		t.lease = nil
		if t.state == queued {
			l.remove(t)
		}
	}
	if l.packing() {
		wake(l.wakeReceive) // fewer are held
	}
	l.mu.Unlock()
	l.endIfEmpty()
}

func (l *lane) renewed(n int, failed []error) {
	l.metrics.Renewed.Add(float64(n))
	l.metrics.NotRenewed.Add(float64(len(failed)))
	for _, err := range failed {
		l.metrics.Error(metrics.StageExtend, lease.Class(err))
		l.log.Debug("renewing a lease failed", "err", err)
	}
}

func (l *lane) wakeAll() {
	for _, c := range []chan struct{}{
		l.wakeReceive, l.wakeLaunch, l.wakeSettle, l.wakeMark, l.wakeStart, l.wakeProbe, l.wakeJudge, l.wakeProvide, l.wakeCatchUp,
	} {
		wake(c)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lingering is a context that outlives ctx by linger.
func lingering(ctx context.Context, linger time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var timer atomic.Pointer[time.Timer]
	stop := context.AfterFunc(ctx, func() { timer.Store(time.AfterFunc(linger, cancel)) })
	return longer, func() {
		stop()
		cancel()
		if t := timer.Load(); t != nil {
			t.Stop()
		}
	}
}
