package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

// simProcess is a dispatcher of the simulation, from its start to its end. Its successor after a crash has the same number.
//
// A pause freezes its input and output: what it sends stays with it, and what it is sent waits before its door. Its timers go on meanwhile,
// which only makes it send more that arrives too late. A process that was usurped is one that has not noticed: its own renewals of the lock
// seem to succeed while the lock passes to another.
type simProcess struct {
	*Dispatcher
	w        *simulation
	number   int
	actor    string // its name in the trace
	identity string // in the lock
	gate     *watchGate
	cancel   context.CancelFunc
	done     chan struct{}
	err      error

	dead chan struct{} // closed by a crash

	// The world's mutex guards these.
	leaving bool                 // it was told to stop
	sources []*simHolder         // that it has opened so far
	resume  chan struct{}        // while it is paused; closed when that ends
	over    map[string]time.Time // the fences of the terms that it has ended itself, and when
	usurped map[objectKey]object // the locks as it believes them to be; nil while it sees them as they are
}

// start starts a process. The caller does not hold the mutex.
func (w *simulation) start(number int) {
	p := &simProcess{
		w: w, number: number, actor: "process-" + strconv.Itoa(number), gate: newWatchGate(),
		done: make(chan struct{}), dead: make(chan struct{}), over: map[string]time.Time{},
	}
	client := newClient(w.t, &simConnection{w: w, p: p})
	w.mu.Lock()
	p.identity = fmt.Sprintf("%s.%d", p.actor, len(w.all))
	w.processes[number] = p
	w.all = append(w.all, p)
	w.note(p.actor, "start", p.identity, "")
	w.mu.Unlock()
	d, err := New(Config{
		Client: client,
		OpenSource: func(spec *annotation.Spec, c Connection) (lease.Source, error) {
			return w.open(p, spec, c)
		},
		Lock: LockConfig{
			Client: client, Namespace: namespace, Name: "lock", Identity: p.identity, Shards: w.shards, LeaseDuration: w.lock,
		},
		MaxInFlight: w.slots,
		Tuning:      Tuning{LaunchTimeout: w.timeout, SourceTimeout: w.timeout, PollInterval: time.Second},
		Metrics:     metrics.New(prometheus.NewRegistry()),
		Log:         slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Error(err)
		return
	}
	p.Dispatcher = d
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background()) // it must end with the world, not before
	go func() {
		defer close(p.done)
		p.err = d.Run(ctx)
	}()
}

// gone reports whether the process has ended, or is about to.
func (p *simProcess) gone() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.leaving || p.crashed()
}

func (p *simProcess) crashed() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// step counts a request of a process. The caller holds the mutex.
func (p *simProcess) step(op string) (n, total int) {
	who := strconv.Itoa(p.number) + " "
	p.w.steps[who+op]++
	p.w.steps[who]++
	return p.w.steps[who+op], p.w.steps[who]
}

// befall has the mishap that waits for this request happen. The caller holds the mutex.
func (p *simProcess) befall(op string, n, total int, before bool) {
	w := p.w
	if w.healed || p.leaving || p.crashed() {
		return
	}
	for _, m := range w.mishaps {
		if m.done || m.process != p.number || m.before != before || m.op != op && m.op != "" || m.op == op && m.n != n || m.op == "" && m.n != total {
			continue
		}
		m.done = true
		w.note(p.actor, m.what, p.identity, fmt.Sprintf("at %s %d, for %v", op, n, m.lasting))
		switch m.what {
		case "crash":
			close(p.dead)
			p.cancel()
			w.after(m.lasting, p.restart)
		case "stop":
			p.leaving = true
			p.cancel()
			w.after(m.lasting, p.restart)
		case "pause":
			if p.resume == nil {
				p.resume = make(chan struct{})
				p.gate.set(func(s *gateState) { s.held = true })
				w.after(m.lasting, p.wakeUp)
			}
		case "usurped":
			p.usurped = w.locksOf(p.identity)
			w.after(m.lasting, p.wakeUp)
		}
		return
	}
}

// restart starts the process's successor, unless there is one.
func (p *simProcess) restart() {
	<-p.done
	p.w.mu.Lock()
	again := p.w.processes[p.number] == p
	p.w.mu.Unlock()
	if again {
		p.w.start(p.number)
	}
}

// wakeUp ends a pause, and has the process see the locks as they are.
func (p *simProcess) wakeUp() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.usurped = nil
	if p.resume == nil {
		return
	}
	p.w.note(p.actor, "resume", p.identity, "")
	close(p.resume)
	p.resume = nil
	p.gate.set(func(s *gateState) { s.held = false })
}

// awake waits until the process is not paused, or until nobody waits any more.
func (p *simProcess) awake(stop <-chan struct{}) {
	for {
		p.w.mu.Lock()
		resume := p.resume
		p.w.mu.Unlock()
		if resume == nil {
			return
		}
		select {
		case <-resume:
		case <-stop:
			return
		case <-p.w.over: // what has no context, such as an Event, waits for it
			return
		}
	}
}

// locksOf copies the locks that a process holds. The caller holds the mutex.
func (w *simulation) locksOf(identity string) map[objectKey]object {
	locks := map[objectKey]object{}
	w.api.mu.Lock()
	defer w.api.mu.Unlock()
	for key, o := range w.api.objects {
		if key.resource == "leases" && text(o, "spec", "holderIdentity") == identity {
			locks[key] = o
		}
	}
	return locks
}

// belief answers a request for a lock from what the usurped process believes; ok is false where it believes nothing of its own. The caller
// holds the mutex.
func (p *simProcess) belief(r *apiRequest) (lock object, ok bool) {
	key := objectKey{r.resource, r.namespace, r.name}
	lock, ok = p.usurped[key]
	switch {
	case ok && r.verb == "update":
		lock = clone(r.body)
		version, _ := strconv.Atoi(text(r.body, "metadata", "resourceVersion"))
		child(lock, "metadata")["resourceVersion"] = strconv.Itoa(version + 1)
		p.usurped[key] = lock
	case ok && r.verb == "get":
	default:
		return nil, false
	}
	return lock, true
}

// stall makes the caches of a process grow stale, or ends that.
func (w *simulation) stall(s stall, begin bool) {
	w.mu.Lock()
	p := w.processes[s.process]
	skip := w.healed || p.resume != nil
	if !skip {
		w.note(p.actor, "watches", "", map[bool]string{true: "held back", false: "let go"}[begin])
	}
	w.mu.Unlock()
	if skip {
		return
	}
	p.gate.set(func(g *gateState) {
		g.held = begin
		if !begin && s.broken {
			g.breaks++
			g.expired = s.expired
		}
	})
}
