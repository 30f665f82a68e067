package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// simLog is a log of the simulation, with its checkpoints. The processes lease its events by the real engine (package partitioned), whose requests travel
// like all others; what it does in memory is done at once. Its messages end when a checkpoint passes them.
type simLog struct {
	*leasetest.Log
	partitions int
	identity   string

	// The world's mutex guards these.
	passed map[string]int64                // the checkpoints, by partition
	proved map[string]map[string]time.Time // when it was last true that a checkpoint is an owner's, by partition and owner
}

func newSimLog(t *templatePlan) *simLog {
	l := &simLog{
		Log: leasetest.NewLog(t.name, t.partitions), partitions: t.partitions,
		passed: map[string]int64{}, proved: map[string]map[string]time.Time{},
	}
	l.identity = l.Config(0, 0).Identity
	for i := range t.partitions {
		l.passed[strconv.Itoa(i)] = -1
		l.proved[strconv.Itoa(i)] = map[string]time.Time{}
	}
	return l
}

// send adds the i-th message.
func (l *simLog) send(i int, body string) string {
	return l.SendTo(strconv.Itoa(i%l.partitions), partitioned.Event{Body: []byte(body)})[0]
}

// identity is the source's.
func (q *simQueue) identity() string {
	if q.log != nil {
		return q.log.identity
	}
	return q.memory.Identity()
}

// left is how many messages are left in the source. The caller holds the mutex.
func (q *simQueue) left() int {
	if q.log == nil {
		return q.memory.Len()
	}
	n := 0
	for _, m := range q.messages {
		if m.ended == "" {
			n++
		}
	}
	return n
}

// cut has something happen to the readers of a log, or ends that.
func (w *simulation) cut(c cut, begin bool) {
	w.mu.Lock()
	q, healed := w.queues[c.template], w.healed
	w.note("broker", map[bool]string{true: "cut", false: "mend"}[begin], q.name, "partition "+strconv.Itoa(c.partition))
	w.mu.Unlock()
	switch {
	case q.calm:
	case c.partition != everyone:
		q.log.Seize(strconv.Itoa(c.partition), begin && !healed)
	case begin && !healed:
		q.log.Detach(errSourceFailed)
	}
}

// simLogSource is one process's way to a log.
type simLogSource struct {
	*partitioned.Source
	*simHolder
	owner string
}

func openLog(h *simHolder, level int64) *simLogSource {
	c := h.q.log.Config(h.lease, level)
	s := &simLogSource{simHolder: h, owner: c.Owner}
	c.Log = simLogHandle{c.Log, h}
	c.Checkpoints = simCheckpoints{c.Checkpoints, h, c.Owner}
	c.Poison = simPoison{c.Poison, h}
	s.Source = partitioned.New(c)
	return s
}

// Check implements lease.Source.
func (s *simLogSource) Check(ctx context.Context) error {
	if s.bad {
		return lease.ErrUnauthorized
	}
	return s.Source.Check(ctx)
}

// local has something happen within a process. That can be the moment of a mishap too.
func local[T any](ctx context.Context, s *simHolder, op, object string, effect func() T) (answer T, err error) {
	w, p := s.w, s.p
	w.mu.Lock()
	n, total := p.step(op)
	p.befall(op, n, total, true)
	w.mu.Unlock()
	p.awake(ctx.Done())
	if err := cmp.Or(ctx.Err(), crashError(p)); err != nil {
		return answer, err
	}
	answer = effect()
	w.mu.Lock()
	w.note(p.actor, op, s.q.name+"/"+object, "in memory")
	p.befall(op, n, total, false)
	w.mu.Unlock()
	p.awake(ctx.Done())
	return answer, crashError(p)
}

func crashError(p *simProcess) error {
	if p.crashed() {
		return errCut
	}
	return nil
}

// Receive implements lease.Source.
func (s *simLogSource) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	w := s.w
	w.mu.Lock()
	w.checkRoom(s.simHolder, limit)
	w.calls++
	w.mu.Unlock()
	var failure error
	leases, err := local(ctx, s.simHolder, "receive", "", func() (leases []*lease.Lease) {
		leases, failure = s.Source.Receive(ctx, limit)
		return leases
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range leases {
		w.note(s.p.actor, "receive", s.q.name+"/"+l.ID, fmt.Sprintf("delivery %d", l.Deliveries))
		s.held[l.ID] = &holding{lease: l, until: l.Deadline()}
		s.checkProved(l)
	}
	return leases, cmp.Or(failure, err)
}

// checkProved looks whether a lease is trusted for no longer than from when the partition was the owner's.
func (s *simLogSource) checkProved(l *lease.Lease) {
	partition := l.ID[:1]
	if most := s.q.log.proved[partition][s.owner].Add(s.lease - s.lease/8); l.Deadline().After(most) {
		s.w.violate(5, s.q.messages[l.ID], "%s has a lease until %v after it was certain that the partition is its own", s.p.actor, l.Deadline().Sub(most)+s.lease)
	}
}

// operate carries out an operation in memory.
func (s *simLogSource) operate(ctx context.Context, op string, leases []*lease.Lease, do func() []error) []error {
	if len(leases) == 0 {
		return nil
	}
	s.w.mu.Lock()
	name := s.begin(op, leases)
	s.w.mu.Unlock()
	errs, err := local(ctx, s.simHolder, op, name, do)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.end(op, leases, errs, err == nil)
	if err != nil {
		return slices.Repeat([]error{err}, len(leases))
	}
	for i, l := range leases {
		ok := errs == nil || errs[i] == nil
		if m := s.q.messages[l.ID]; (op == "complete" || op == "poison") && ok && !m.done {
			m.done = true
			s.w.checkCalm(m) // what comes before it may hold back the checkpoint
		}
		if h := s.held[l.ID]; h != nil && h.lease == l && l.Deadline().After(h.until) { // to poison is to extend first
			h.lapsed = h.lapsed || time.Now().After(h.until)
			h.until = l.Deadline()
			s.checkProved(l)
		}
	}
	return errs
}

// Extend implements lease.Source.
func (s *simLogSource) Extend(ctx context.Context, leases []*lease.Lease) []error {
	return s.operate(ctx, "extend", leases, func() []error { return s.Source.Extend(ctx, leases) })
}

// Complete implements lease.Source.
func (s *simLogSource) Complete(ctx context.Context, leases []*lease.Lease) []error {
	return s.operate(ctx, "complete", leases, func() []error { return s.Source.Complete(ctx, leases) })
}

// Requeue implements lease.Source.
func (s *simLogSource) Requeue(ctx context.Context, returns []lease.Return) []error {
	leases := make([]*lease.Lease, len(returns))
	for i, r := range returns {
		leases[i] = r.Lease
	}
	return s.operate(ctx, "requeue", leases, func() []error { return s.Source.Requeue(ctx, returns) })
}

// Poison implements lease.Source.
func (s *simLogSource) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	leases := make([]*lease.Lease, len(poisoned))
	for i, p := range poisoned {
		leases[i] = p.Lease
	}
	return s.operate(ctx, "poison", leases, func() []error { return s.Source.Poison(ctx, poisoned) })
}

// answer is a value with its error, to travel together.
type answer[T any] struct {
	value T
	err   error
}

// request takes a request of the engine to the log or its store, and the answer back.
func request[T any](ctx context.Context, s *simHolder, op, object string, effect func(ctx context.Context) (T, error)) (T, error) {
	w := s.w
	w.mu.Lock()
	f := s.p.fate(s.q.number, op, s.q.name+"/"+object)
	w.mu.Unlock()
	a, err := travel(ctx, s.p, op, s.q.name+"/"+object, f, alwaysInTime, func() (a answer[T]) {
		inTransit := ctx
		if f != (fate{}) { // it has its effect whoever waits for it
			var cancel context.CancelFunc
			inTransit, cancel = context.WithTimeout(context.WithoutCancel(ctx), w.timeout)
			defer cancel()
		}
		if f.refused == 0 {
			a.value, a.err = effect(inTransit)
		}
		return a
	})
	if f.refused != 0 {
		err = cmp.Or(err, errSource(f))
	}
	return a.value, cmp.Or(err, a.err)
}

type simLogHandle struct {
	partitioned.Log
	s *simHolder
}

func (l simLogHandle) Describe(ctx context.Context) (partitioned.Description, error) {
	return request(ctx, l.s, "describe", "", l.Log.Describe)
}

func (l simLogHandle) Ends(ctx context.Context, partition string) (partitioned.Ends, error) {
	return request(ctx, l.s, "ends", partition, func(ctx context.Context) (partitioned.Ends, error) { return l.Log.Ends(ctx, partition) })
}

func (l simLogHandle) Open(ctx context.Context, partition string, from partitioned.Start, level int64) (partitioned.Reader, error) {
	r, err := request(ctx, l.s, "open", partition, func(ctx context.Context) (partitioned.Reader, error) {
		return l.Log.Open(ctx, partition, from, level)
	})
	if err != nil {
		return nil, err
	}
	return simReader{r, l.s, partition}, nil
}

type simReader struct {
	partitioned.Reader
	s         *simHolder
	partition string
}

func (r simReader) Read(ctx context.Context, most int) ([]partitioned.Event, error) {
	return request(ctx, r.s, "read", r.partition, func(ctx context.Context) ([]partitioned.Event, error) { return r.Reader.Read(ctx, most) })
}

// simCheckpoints is one owner's way to the store.
type simCheckpoints struct {
	partitioned.Checkpoints
	s     *simHolder
	owner string
}

func (c simCheckpoints) Load(ctx context.Context, partition string) (partitioned.Stored, error) {
	return request(ctx, c.s, "load", partition, func(ctx context.Context) (partitioned.Stored, error) {
		c.s.w.mu.Lock()
		defer c.s.w.mu.Unlock()
		stored, err := c.Checkpoints.Load(ctx, partition)
		if err == nil && stored.Owner == c.owner {
			c.s.q.log.proved[partition][c.owner] = time.Now()
		}
		return stored, err
	})
}

func (c simCheckpoints) Store(ctx context.Context, partition string, to partitioned.Checkpoint, version string) (string, error) {
	return request(ctx, c.s, "store", partition, func(ctx context.Context) (string, error) {
		w := c.s.w
		w.mu.Lock()
		defer w.mu.Unlock()
		version, err := c.Checkpoints.Store(ctx, partition, to, version)
		w.note(c.s.p.actor, "store", c.s.q.name+"/"+partition, fmt.Sprintf("%d: %v", to.Sequence, said(err)))
		if err == nil {
			c.s.q.log.proved[partition][c.owner] = time.Now()
			w.checkpointMoved(c.s, partition, to.Sequence)
		}
		return version, err
	})
}

// checkpointMoved is told that a checkpoint was written: the messages that it passes have ended. It must never go back.
func (w *simulation) checkpointMoved(s *simHolder, partition string, to int64) {
	from := s.q.log.passed[partition]
	if to < from {
		w.violate(1, nil, "%s sets the checkpoint of %s/%s back from %d to %d", s.p.actor, s.q.name, partition, from, to)
	}
	s.q.log.passed[partition] = to
	for sequence := from + 1; sequence <= to; sequence++ {
		m := s.q.event(partition, sequence)
		switch {
		case m == nil:
			w.violate(1, nil, "the checkpoint of %s/%s is at %d, beyond the end", s.q.name, partition, to)
		case m.copied:
			w.ended(m, "poisoned")
		default:
			w.completed(m)
		}
	}
}

// event finds the message with a sequence number.
func (q *simQueue) event(partition string, sequence int64) *simMessage {
	prefix := partition + "/" + strconv.FormatInt(sequence, 10) + "/"
	for id, m := range q.messages {
		if len(id) > len(prefix) && id[:len(prefix)] == prefix {
			return m
		}
	}
	return nil
}

type simPoison struct {
	partitioned.Poison
	s *simHolder
}

func (p simPoison) Copy(ctx context.Context, c partitioned.Copy) error {
	_, err := request(ctx, p.s, "copy", c.Lease.ID, func(ctx context.Context) (bool, error) {
		w := p.s.w
		w.mu.Lock()
		defer w.mu.Unlock()
		err := p.Poison.Copy(ctx, c)
		if m := p.s.q.messages[c.Lease.ID]; err == nil {
			w.note(p.s.p.actor, "copy", m.name, "")
			w.copiedAside(m, c.Lease.Body, c.Reason)
			m.copied = true
		}
		return true, err
	})
	return err
}
