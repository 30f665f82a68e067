package dispatcher

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// With tasks-per-job, messages wait in pools until there are enough for a pack, or batch-wait is over. While they have a Job, the pack is a task of
// its own, by the name of all their ids, and does what a single message's task does; its members have the state packed. When the Job has finished, each
// of them goes its own way again.
//
//	queued in a pool ──takePack, form──▶ packed, in a pack that is launching, running ──▶ (judging) ──▶ settling ──▶ …
//
// One message's Job is found by its name, whoever creates it. A pack has another name with each set of messages, so that names do not keep a message
// from being in two. What does: a leader packs nothing before it has seen every Job of the terms before (catchup.go), which the fence has ended by
// then; and messages of a pack whose Job may or may not have been created go nowhere else until that is known (doubt.go).

// packs is what a lane knows of packs. The lane's mutex guards it.
type packs struct {
	pools []*pool
	slots int // for what is in the pools; part of inFlight
	// forming is how many packs were taken out of the pools and have no slot of their own yet.
	forming int
	// most is the most messages in a pack, where the API server took no more; 0: as many as the template says.
	most int
	// fit is how many messages of the size of the last pack's fit one; 0: as many as the template says.
	fit int
	// records are the Jobs of packs of whose messages some are settled, by name.
	records map[string]*packRecord
	// caughtUp says that every Job of former terms is known; notBefore is when that may be found out at the earliest.
	caughtUp  bool
	notBefore time.Time

	toJudge   []*judgement
	toProvide []*task
}

// packRecord is how far the messages of a pack's Job are settled.
type packRecord struct {
	left  int
	mixed bool // not all were completed
}

// mixed is the outcome of a pack of which some messages were completed, and others not; only on Jobs.
const mixed outcome = "mixed"

// pool is where messages wait for others to be packed with: of the same attempt, since a Job counts for all of its messages.
type pool struct {
	attempt int
	alone   bool
	tasks   []*task // in order; may hold tasks that have gone
	n       int     // that have not
	bytes   int     // that they come to, about
}

// choice is a message for a pack, with the lease that its payload is in.
type choice struct {
	task *task
	held *lease.Lease
}

// packing reports whether Jobs are given packs.
func (l *lane) packing() bool { return l.settings.Load().spec.TasksPerJob > 1 }

// packSize is how many messages a pack of an attempt has at most: as many as the template says for the first, one for the last, and ever fewer in
// between. So a message that makes its whole pack fail is with fewer and fewer others, and uses up the last attempt of none but itself.
func packSize(spec *annotation.Spec, attempt int) int {
	if attempt >= spec.MaxAttempts {
		return 1
	}
	left := float64(spec.MaxAttempts-attempt) / float64(spec.MaxAttempts-1)
	return int(math.Ceil(math.Pow(float64(spec.TasksPerJob), left) - 1e-9))
}

// size is how many messages of a pool make a full pack. The caller holds the mutex.
func (l *lane) size(p *pool) int {
	if p.alone {
		return 1
	}
	n := max(packSize(l.settings.Load().spec, p.attempt), 1)
	for _, bound := range []int{l.packs.most, l.packs.fit} {
		if bound > 0 {
			n = min(n, bound)
		}
	}
	return n
}

// enterPool lets a task wait for others. The caller holds the mutex.
func (l *lane) enterPool(t *task) {
	l.dropSlot(t)
	var p *pool
	for _, one := range l.packs.pools {
		if one.attempt == t.attempt && one.alone == t.alone {
			p = one
		}
	}
	if p == nil {
		p = &pool{attempt: t.attempt, alone: t.alone}
		l.packs.pools = append(l.packs.pools, p)
	}
	t.pool = p
	p.tasks = append(p.tasks, t)
	p.n++
	p.bytes += lineSize(t)
	l.syncPools()
	if (p.attempt > 1 || p.alone) && l.inFlight > l.settings.Load().spec.MaxInFlight {
		// Fewer fit a pack of a later attempt than there was room made for.
		l.decided(t, settlement{outcome: returned, notBefore: time.Now().Add(spread(noRoomPause))})
	}
}

// lineSize is about how many bytes a message comes to in a pack, but for what JSON must escape. It is the same for as long as the message waits.
func lineSize(t *task) int { return t.size + len(t.messages) + lineExtra }

// lineExtra is for the names of the fields, the attempt and the time.
const lineExtra = 90

// noRoomPause is for how long a message is given back for which there is no Job.
const noRoomPause = 5 * time.Second

// requeueAll lets those that wait to be launched wait where they belong by now, with others or each by itself. The caller holds the mutex.
func (l *lane) requeueAll() {
	most := l.settings.Load().spec.MaxInFlight
	for _, t := range l.tasks {
		switch {
		case t.state != queued:
		case !l.packing() && l.inFlight-l.packs.slots >= most:
			l.decided(t, settlement{outcome: returned}) // a pack had room for more of them
		default:
			l.enqueue(t)
		}
	}
	l.dropEmptyPools()
	if l.packing() {
		// A Job of a single message may have been asked for whose answer did not come.
		l.packs.caughtUp, l.packs.notBefore = false, time.Now().Add(l.tuning.LaunchTimeout+lingers)
	}
}

// leavePool lets a task not wait for others any more. The caller holds the mutex.
func (l *lane) leavePool(t *task) {
	if t.pool == nil {
		return
	}
	t.pool.n--
	t.pool.bytes -= lineSize(t)
	t.pool = nil
	l.syncPools()
}

// syncPools takes as many slots as the messages in the pools will need Jobs, or gives up what is too many. The caller holds the mutex.
func (l *lane) syncPools() {
	need := 0
	for _, p := range l.packs.pools {
		size := l.size(p)
		need += (p.n + size - 1) / size
	}
	more := need - l.packs.slots
	if more == 0 {
		return
	}
	l.packs.slots = need
	l.inFlight += more
	if more > 0 {
		l.slots.take(more)
	} else {
		l.slots.release(-more)
		wake(l.wakeReceive)
	}
	l.showInFlight()
}

// waitingJobs is how many Jobs those that wait to be launched will need. The caller holds the mutex.
func (l *lane) waitingJobs() int {
	pooled := 0
	for _, p := range l.packs.pools {
		pooled += p.n
	}
	return l.waiting - pooled + l.packs.slots
}

// perSlot is how many messages a slot stands for.
func (l *lane) perSlot() int { return max(l.settings.Load().spec.TasksPerJob, 1) }

// packRoom is how many messages may be received while there is room for so many Jobs: with those for the packs that have begun. Whatever is held
// counts as well, with settlements that hang. The caller holds the mutex.
func (l *lane) packRoom(free int) int {
	if !l.packs.caughtUp || free < 0 {
		return 0
	}
	spec := l.settings.Load().spec
	size, begun := spec.TasksPerJob, 0
	for _, p := range l.packs.pools {
		if p.attempt == 1 && !p.alone {
			size = l.size(p)
			begun = (size - p.n%size) % size
		}
	}
	return min(free*size+begun, spec.MaxInFlight*spec.TasksPerJob-l.keeper.Held()-l.busy)
}

// mayLaunch reports whether there is room for one more Job of a pack. The caller holds the mutex.
func (l *lane) mayLaunch() bool {
	return l.packs.caughtUp && l.inFlight-l.packs.slots+l.packs.forming < l.settings.Load().spec.MaxInFlight
}

// nextPack is how long it takes until there is a pack to launch, and how many messages wait for one. The caller holds the mutex.
func (l *lane) nextPack(now time.Time) (waiting int, due time.Duration) {
	due = time.Hour
	for _, p := range l.packs.pools {
		if waiting += p.n; p.n > 0 {
			due = min(due, l.dueIn(p, now))
		}
	}
	if !l.mayLaunch() {
		due = time.Hour // a Job that ends wakes us
	}
	return waiting, due
}

// dueIn is how long a pool may wait for more. The caller holds the mutex, and the pool is not empty.
func (l *lane) dueIn(p *pool, now time.Time) time.Duration {
	for p.tasks[0].pool != p {
		p.tasks[0] = nil
		p.tasks = p.tasks[1:]
	}
	if p.n >= l.size(p) || p.bytes >= jobs.MaxPackLines {
		return 0
	}
	return max(p.tasks[0].receivedAt.Add(l.settings.Load().spec.BatchWait).Sub(now), 0)
}

// takePack takes the messages for a pack out of the pool that has waited longest; none where there is no pack yet. The caller holds the mutex.
func (l *lane) takePack(now time.Time) (chosen []choice, attempt int) {
	if !l.mayLaunch() {
		return nil, 0
	}
	var from *pool
	for _, p := range l.packs.pools {
		if p.n > 0 && l.dueIn(p, now) == 0 && (from == nil || p.tasks[0].receivedAt.Before(from.tasks[0].receivedAt)) {
			from = p
		}
	}
	if from == nil {
		return nil, 0
	}
	size, bytes := l.size(from), 0
	for len(from.tasks) > 0 && len(chosen) < size {
		t := from.tasks[0]
		if bytes += lineSize(t); bytes > jobs.MaxPackLines && len(chosen) > 0 {
			break
		}
		from.tasks[0] = nil
		from.tasks = from.tasks[1:]
		if t.pool == from && t.lease != nil {
			l.move(t, launching)
			chosen = append(chosen, choice{t, t.lease})
		}
	}
	l.dropEmptyPools()
	if len(chosen) > 0 {
		l.packs.forming++
	}
	return chosen, from.attempt
}

// dropEmptyPools forgets the pools that nobody waits in. The caller holds the mutex.
func (l *lane) dropEmptyPools() {
	l.packs.pools = slices.DeleteFunc(l.packs.pools, func(p *pool) bool { return p.n == 0 })
}

// form makes a pack of what was chosen, as much as fits. ok is false where there is nothing to launch.
func (l *lane) form(o order) (formed order, ok bool) {
	spec := l.settings.Load().spec
	slices.SortFunc(o.chosen, func(a, b choice) int { return strings.Compare(a.held.ID, b.held.ID) })
	pack := jobs.NewPack(jobs.PayloadMode(spec.Payload), o.attempt)
	var in, over []choice
	refused := map[*task]error{}
	for _, c := range o.chosen {
		m, err := packedMessage(spec, c.held)
		switch {
		case err != nil:
			refused[c.task] = err
		case pack.Add(m):
			in = append(in, c)
		case !jobs.NewPack(jobs.PayloadAsFile, o.attempt).Add(m):
			refused[c.task] = jobs.TooLargeForPack(m.Body)
		default:
			over = append(over, c)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.packs.forming--
	defer wake(l.wakeLaunch)
	for t, err := range refused {
		if t.state != launching {
			continue
		}
		l.metrics.Error(metrics.StageLaunch, "payload")
		l.report.problem(l.settings.Load().object, payloadProblem(t.key(), err))
		l.decided(t, settlement{outcome: poisoned, reason: err.Error()})
	}
	if pack.Len() > 0 {
		l.packs.fit = max(jobs.MaxPackLines*pack.Len()/pack.Size(), 1)
		l.syncPools()
		defer l.giveBackExcess()
	}
	l.putBack(over)
	if slices.ContainsFunc(in, func(c choice) bool { return c.task.state != launching || c.task.lease != c.held }) {
		l.putBack(in) // one was lost, or came again, meanwhile
		return o, false
	}
	if len(in) == 0 {
		return o, false
	}
	o.chosen, o.content = nil, pack.Content()
	if o.task = in[0].task; len(in) > 1 {
		o.task = l.newPack(in, o.attempt)
	} else {
		o.held = in[0].held
	}
	l.takeSlot(o.task)
	l.setPending(o.task, true)
	return o, true
}

// packedMessage is what a pack says of a message.
func packedMessage(spec *annotation.Spec, held *lease.Lease) (jobs.Message, error) {
	body, err := bodyOf(spec, held)
	return jobs.Message{ID: held.ID, Body: body, EnqueuedAt: held.EnqueuedAt, TraceParent: traceParent(held), Properties: held.Properties}, err
}

// putBack lets messages wait again that were chosen for a pack: they were here before others. The caller holds the mutex.
func (l *lane) putBack(chosen []choice) {
	if len(chosen) == 0 {
		return
	}
	for _, c := range chosen {
		if c.task.state == launching {
			l.waitAnew(c.task)
		}
	}
	for _, p := range l.packs.pools {
		slices.SortStableFunc(p.tasks, func(a, b *task) int { return cmp.Compare(a.receivedAt.UnixNano(), b.receivedAt.UnixNano()) })
	}
}

// newPack makes one task of several. The caller holds the mutex.
func (l *lane) newPack(in []choice, attempt int) *task {
	members := make([]*task, len(in))
	ids := make([]string, len(in))
	for i, c := range in {
		members[i], ids[i] = c.task, c.held.ID
	}
	p := &task{messages: jobs.NewMessageSet(ids...), attempt: attempt, state: launching}
	l.tasks[p.key()] = p
	l.board(p, members)
	return p
}

// board has messages ride in a pack. The caller holds the mutex.
func (l *lane) board(p *task, members []*task) {
	p.members, p.left = members, len(members)
	for _, m := range members {
		if p.receivedAt.IsZero() || m.receivedAt.Before(p.receivedAt) && !m.receivedAt.IsZero() {
			p.receivedAt = m.receivedAt
		}
		l.leavePack(m)
		l.move(m, packed)
		l.dropSlot(m)
		m.pack, m.attempt = p, p.attempt
	}
}

// leavePack lets a message go its own way. With the last one, the pack ends. The caller holds the mutex.
func (l *lane) leavePack(m *task) {
	p := m.pack
	if p == nil {
		return
	}
	m.pack = nil
	if p.left--; p.left == 0 {
		l.remove(p)
	}
}

// riding is the members of a pack that have not gone their own way.
func (t *task) riding() []*task {
	return slices.DeleteFunc(slices.Clone(t.members), func(m *task) bool { return m.pack != t || m.state != packed })
}

// messagesOf is the messages of a task: itself, or the members of a pack.
func (t *task) messagesOf() []*task {
	if t.members == nil {
		return []*task{t}
	}
	return t.riding()
}

// decidedAll is decided for a pack: what becomes of one of its messages becomes of all. The caller holds the mutex.
func (l *lane) decidedAll(p *task, s settlement) {
	l.move(p, settling)
	for _, m := range p.riding() {
		l.decided(m, s)
	}
}

// dissolve ends a pack that was not launched: its messages wait anew, those that are still ours. The caller holds the mutex.
func (l *lane) dissolve(p *task) {
	l.move(p, settling)
	for _, m := range p.riding() {
		l.waitAnew(m)
	}
}

// waitAnew has a message that was not launched wait again, if it is still ours and belongs here. The caller holds the mutex.
func (l *lane) waitAnew(t *task) {
	switch {
	case t.lease == nil:
		l.remove(t)
	case l.holdsBack():
		l.decided(t, settlement{outcome: returned})
	default:
		l.enqueue(t)
	}
}

// shrink makes packs of half the size from now on, since the API server does not take one of this.
func (l *lane) shrink(o order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.current() {
		l.packs.most = max(len(o.task.members)/2, 1)
		l.log.Info("a pack is too large for the API server; packs are made smaller", "messages", len(o.task.members), "tasks_per_job", l.packs.most)
		l.dissolve(o.task)
	}
}

// giveBackExcess returns the messages that came last, where those in the pools turn out to need more Jobs than may run. The caller holds the mutex.
func (l *lane) giveBackExcess() {
	most := l.settings.Load().spec.MaxInFlight
	for _, p := range slices.Backward(l.packs.pools) {
		for _, t := range slices.Backward(p.tasks) {
			if l.inFlight <= most {
				return
			}
			if t.pool == p {
				l.decided(t, settlement{outcome: returned})
			}
		}
	}
}

// giveBackPools returns the messages that wait for a pack. The caller holds the mutex.
func (l *lane) giveBackPools() {
	for _, p := range l.packs.pools {
		for _, t := range p.tasks {
			if t != nil && t.pool == p {
				l.decided(t, settlement{outcome: returned})
			}
		}
	}
	l.dropEmptyPools()
}

// packAppeared takes note of a pack's Job that this lane knows nothing of: a former leader launched it. The caller holds the mutex.
func (l *lane) packAppeared(id jobs.Identity, job *batchv1.Job, status jobs.Status) {
	if !status.Phase.Finished() {
		l.adoptPack(id, job, status)
		return
	}
	for message := range id.Messages.All() {
		if t := l.tasks[message]; t != nil && t.attempt <= id.Attempt && t.state == queued {
			t.attempt = id.Attempt
			l.resume(t, job)
		}
	}
}

// adoptPack takes on a pack's Job that runs. Its messages are ours once they come again, but for those that have. The caller holds the mutex.
func (l *lane) adoptPack(id jobs.Identity, job *batchv1.Job, status jobs.Status) {
	var members []*task
	for message := range id.Messages.All() {
		t := l.tasks[message]
		switch {
		case t == nil:
			t = &task{messages: jobs.NewMessageSet(message), state: received}
			l.tasks[message] = t
		case t.attempt > id.Attempt || t.state != queued && t.state != received && t.state != resting:
			continue // it goes another way
		}
		members = append(members, t)
	}
	if len(members) == 0 {
		return
	}
	p := &task{messages: id.Messages, attempt: id.Attempt, state: running, launchedAt: job.CreationTimestamp.Time}
	l.tasks[p.key()] = p
	l.board(p, members)
	l.takeSlot(p)
	l.progress(p, job, status)
	l.provideAgain(p)
}

// ride has a message go on with the Job that it has, which runs. The caller holds the mutex.
func (l *lane) ride(t *task, job *batchv1.Job, status jobs.Status) {
	id, err := jobs.IdentityOf(job)
	if err != nil || id.Messages.Len() == 1 || t.members != nil {
		l.move(t, running)
		l.takeSlot(t)
		t.launchedAt = job.CreationTimestamp.Time
		l.progress(t, job, status)
		l.provideAgain(t)
		return
	}
	p := l.tasks[string(id.Messages)]
	if p == nil {
		l.adoptPack(id, job, status)
		return
	}
	// It left the pack, and has come again.
	p.members = append(p.members, t)
	p.left++
	l.move(t, packed)
	l.dropSlot(t)
	t.pack, t.attempt = p, p.attempt
	l.provideAgain(p)
}

// resumePack goes on with a pack whose Job turned out to have finished long ago. The caller holds the mutex.
func (l *lane) resumePack(p *task, job *batchv1.Job, status jobs.Status) {
	p.finishedAt = time.Now()
	if status.Phase == jobs.Succeeded {
		l.judgeLater(job, status, p)
		return
	}
	spec := l.settings.Load().spec
	l.move(p, settling)
	for _, m := range p.riding() {
		// Our cache does not know the Job: what it tells is to be remembered here.
		m.finishedAt, m.failed, m.recordLost = p.finishedAt, true, true
		l.resumeFinished(m, job, decidePart(spec, m, job, status, false))
	}
}

// decidePart is decide for one of the messages that a Job was given. Unless its task named it, a message that had company does not use up its last
// attempt, should there be fewer than there were when it was launched: it comes again alone.
func decidePart(spec *annotation.Spec, t *task, job *batchv1.Job, status jobs.Status, named bool) settlement {
	if spec.MaxAttempts <= t.attempt && jobs.PackLen(job) > 1 && !named {
		more := *spec
		more.MaxAttempts = t.attempt + 1
		spec = &more
	}
	return decide(spec, t.key(), t.attempt, job.Name, status)
}

// packSettled takes note that a message of a Job is settled. It returns whether all are, and how. The caller holds the mutex.
func (l *lane) packSettled(job *batchv1.Job, o outcome) (all outcome, settled bool) {
	// Should a former leader have settled some, this never comes to its end, and the Job is marked when the source is empty (markGone).
	r := l.packs.records[job.Name]
	if r == nil {
		n := jobs.PackLen(job)
		if n == 1 {
			return o, true
		}
		r = &packRecord{left: n}
		if l.packs.records == nil {
			l.packs.records = make(map[string]*packRecord)
		}
		l.packs.records[job.Name] = r
	}
	r.left--
	if r.mixed = r.mixed || o != completed; r.mixed {
		o = mixed
	}
	if r.left > 0 {
		return o, false
	}
	delete(l.packs.records, job.Name)
	return o, true
}

// anyTask reports whether any message of a Job is on its way. The caller holds the mutex.
func (l *lane) anyTask(id jobs.Identity) bool {
	for message := range id.Messages.All() {
		if l.tasks[message] != nil {
			return true
		}
	}
	return false
}
