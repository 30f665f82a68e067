package lease

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// Extender renews leases; every Source is one.
type Extender interface {
	Extend(ctx context.Context, leases []*Lease) []error
}

// KeeperConfig says how a Keeper works. The zero value of a field means its default.
type KeeperConfig struct {
	// Timeout bounds one Extend call. Default 10 s.
	Timeout time.Duration
	// BatchSize is the most leases in one Extend call. Default 256.
	BatchSize int
	// Concurrency is the most Extend calls under way at once. Default 4.
	Concurrency int
	// Renewed is told of each Extend call's outcome: how many leases were renewed, and the error of each that was not.
	Renewed func(renewed int, failed []error)
	// Lost is told of each lease that ended while it was held, with the reason. It is called at most once a lease, from
	// the Keeper's goroutines, and must not block.
	Lost func(*Lease, error)
}

// Keeper renews the leases it holds, in batches, a third of their duration after the last renewal, so that two renewals
// can fail before the trust is gone. One that fails is tried again until the lease's deadline; then the lease is lost. Where the source asks for
// quiet, all leases wait that can.
//
// Work is done when a lease is due and not before: holding a lease costs one heap entry.
type Keeper struct {
	extender Extender
	cfg      KeeperConfig
	wake     chan struct{} // capacity 1: something came that may be due earlier, or an Extend call ended

	mu      sync.Mutex
	held    map[*Lease]*entry
	due     dueHeap // entries that are not being extended
	running int     // Extend calls under way
	// quietUntil is when the source wants to be asked again.
	quietUntil time.Time
}

// entry is a held lease. The Keeper's mutex guards it.
type entry struct {
	lease    *Lease
	at       time.Time     // when to act next
	urgent   bool          // it cannot wait for as long as the source asks
	lastErr  error         // why the last renewal failed
	index    int           // position in the heap; -1 while it is being extended
	extended chan struct{} // closed when the Extend call that is under way ends
	// released says that it was let go while it was being extended. It is remembered until that call ends, so that whoever asks again waits again.
	released bool
}

// errNotRenewed is why a lease is lost that no Extend call got to in time.
var errNotRenewed = errors.New("not renewed before its deadline")

// NewKeeper makes a Keeper that renews with extender. It renews nothing until Run is called.
func NewKeeper(extender Extender, cfg KeeperConfig) *Keeper {
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.BatchSize == 0 {
		cfg.BatchSize = 256
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 4
	}
	if cfg.Renewed == nil {
		cfg.Renewed = func(int, []error) {}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(*Lease, error) {}
	}
	return &Keeper{extender: extender, cfg: cfg, wake: make(chan struct{}, 1), held: make(map[*Lease]*entry)}
}

// Hold takes the leases on.
func (k *Keeper) Hold(leases ...*Lease) {
	k.mu.Lock()
	for _, l := range leases {
		if e, ok := k.held[l]; ok {
			e.released = false
			continue
		}
		renewAt, _ := l.schedule()
		e := &entry{lease: l, at: renewAt}
		k.held[l] = e
		heap.Push(&k.due, e)
	}
	k.mu.Unlock()
	k.signal()
}

// Release lets the leases go, and returns once no Extend call is using them: from then on they are the caller's to
// settle. Those that are not held are passed over. It fails only when ctx ends first; they are let go all the same, and may be released again, or held.
func (k *Keeper) Release(ctx context.Context, leases ...*Lease) error {
	for _, extended := range k.remove(leases) {
		select {
		case <-extended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Drop lets the leases go, to expire. An Extend call may still be using them, so nothing else may be done with them.
func (k *Keeper) Drop(leases ...*Lease) { k.remove(leases) }

// remove takes the leases out, and returns what to wait for until no Extend call is using them.
func (k *Keeper) remove(leases []*Lease) (busy []chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range leases {
		e, ok := k.held[l]
		if !ok {
			continue
		}
		if e.index < 0 {
			e.released = true
			busy = append(busy, e.extended)
			continue
		}
		delete(k.held, l)
		heap.Remove(&k.due, e.index)
	}
	return busy
}

// Held is how many leases are held, with those that were let go while a call uses them.
func (k *Keeper) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held)
}

// Run renews until ctx ends, and returns when the last Extend call has ended.
func (k *Keeper) Run(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		batch, lost, next := k.take(time.Now())
		for _, e := range lost {
			k.lose(e)
		}
		if len(batch) > 0 {
			calls.Go(func() { k.extend(ctx, batch) })
			continue
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
	}
}

// together is how far ahead of its time a lease is renewed so as to share a call with those that are due.
const together = 100 * time.Millisecond

// take removes what is due from the heap: the leases past their deadline, and a batch to extend now, if a call may be
// made. Without a batch, next is how long nothing will be due.
func (k *Keeper) take(now time.Time) (batch, lost []*entry, next time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	free := k.running < k.cfg.Concurrency
	var extended chan struct{}
	for len(k.due) > 0 && len(batch) < k.cfg.BatchSize {
		e := k.due[0]
		_, deadline := e.lease.schedule()
		if !now.Before(deadline) {
			heap.Pop(&k.due)
			delete(k.held, e.lease)
			lost = append(lost, e)
			continue
		}
		ahead := now
		if len(batch) > 0 {
			ahead = now.Add(together)
		}
		if e.at.After(ahead) {
			next = e.at.Sub(now)
			break
		}
		if now.Before(k.quietUntil) && !e.urgent {
			k.postpone(e, now, deadline)
			continue
		}
		if !free {
			// Every call slot is taken, perhaps by a server that hangs. The end of a call wakes us; a deadline must
			// be noticed all the same.
			next = deadline.Sub(now)
			break
		}
		if extended == nil {
			extended = make(chan struct{})
		}
		heap.Pop(&k.due)
		e.extended = extended
		batch = append(batch, e)
	}
	if len(k.due) == 0 {
		next = time.Hour
	}
	if len(batch) > 0 {
		k.running++
	}
	return batch, lost, next
}

// postpone lets a lease that is at the head of the heap wait until the source wants to be asked again, or for half of the time that is left to
// it, so that there is time for more than one try.
func (k *Keeper) postpone(e *entry, now, deadline time.Time) {
	quiet, most := k.quietUntil.Sub(now), deadline.Sub(now)/2
	e.urgent = quiet > most
	if !e.urgent {
		// Not all at once, when the quiet is over.
		most = min(quiet+time.Duration(float64(quiet)/5*rand.Float64()), most) //nolint:gosec // no secret depends on it
	}
	e.at = now.Add(most)
	heap.Fix(&k.due, e.index)
}

// extend makes one Extend call and puts back what is still held.
func (k *Keeper) extend(ctx context.Context, batch []*entry) {
	leases := make([]*Lease, len(batch))
	for i, e := range batch {
		leases[i] = e.lease
	}
	callCtx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	errs := k.extender.Extend(callCtx, leases)
	cancel()

	var failed []error
	var lost []*entry
	now := time.Now()
	k.mu.Lock()
	k.running--
	for i, e := range batch {
		var err error
		if errs != nil {
			err = errs[i]
		}
		renewAt, deadline := e.lease.schedule()
		e.lastErr, e.urgent = err, false
		if until := now.Add(RetryAfter(err)); until.After(k.quietUntil) && until.After(now) {
			k.quietUntil = until
		}
		switch {
		case err == nil:
			e.at = renewAt
		case errors.Is(err, ErrLost):
			failed = append(failed, err)
			e.lease.forfeit()
		default:
			failed = append(failed, err)
			// A quarter of what is left, so that the tries come closer together as the deadline nears.
			e.at = now.Add(max(deadline.Sub(now)/4, together))
		}
		switch {
		case e.released:
			delete(k.held, e.lease)
		case errors.Is(err, ErrLost):
			delete(k.held, e.lease)
			lost = append(lost, e)
		default:
			heap.Push(&k.due, e)
		}
	}
	close(batch[0].extended)
	k.mu.Unlock()

	k.cfg.Renewed(len(batch)-len(failed), failed)
	for _, e := range lost {
		k.lose(e)
	}
	k.signal()
}

func (k *Keeper) lose(e *entry) {
	err := e.lastErr
	switch {
	case err == nil:
		err = errNotRenewed
	case !errors.Is(err, ErrLost):
		err = errors.Join(errNotRenewed, err)
	}
	k.cfg.Lost(e.lease, err)
}

func (k *Keeper) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// dueHeap orders entries by when to act next; for container/heap.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	last := len(old) - 1
	e := old[last]
	old[last] = nil
	*h = old[:last]
	e.index = -1
	return e
}
