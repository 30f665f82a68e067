package dispatcher

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// checkCalm is asked when a message has ended: with a template that nothing goes wrong with, it must have been in time. The caller holds the
// mutex.
func (w *simulation) checkCalm(m *simMessage) {
	if allowed := w.allowed(m); allowed > 0 && time.Since(m.sentAt) > allowed {
		w.violate(w.patient(), m, "it took %v, want %v at most, since nothing went wrong with its template", time.Since(m.sentAt), allowed)
	}
}

// patient is the invariant by which a calm template's messages must be done in time: whatever happens to another template, and once a person
// has mended what was wrong.
func (w *simulation) patient() int {
	if w.style == "mistakes" {
		return 7
	}
	return 8
}

// allowed is how long a message may take from when it was sent; 0: there is no telling.
func (w *simulation) allowed(m *simMessage) time.Duration {
	q := m.queue
	if !q.calm {
		return 0
	}
	ready := w.begun.Add(2*w.lock + 5*time.Second) // the processes have shared the shards by then
	for _, mistake := range w.mistakes {
		if w.queues[mistake.template] == q || mistake.what == "secret" {
			ready = later(ready, w.begun.Add(mistake.to+time.Minute+q.lease)) // a message whose name is taken rests for a lease's time
		}
	}
	took := max(ready.Sub(m.sentAt), 0) + 10*time.Second
	if q.pack > 1 { // its neighbours may make it fail until it is alone, and a Job takes as long as the first of them says
		each := 17*time.Second + q.lease + q.batchWait + q.backoff[1] + max(w.skew, 0) + 15*time.Second
		return took + time.Duration(q.maxAttempts)*each
	}
	for attempt := 1; attempt <= min(m.plan.failures+1, q.maxAttempts); attempt++ {
		// The delay counts from when the Job finished, by the API server's clock.
		took += w.fateOf(m, attempt).done + q.backoff[1] + max(w.skew, 0) + 5*time.Second
	}
	return took
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// checkRest is asked when the world has had its time to come to rest.
func (w *simulation) checkRest() {
	unrest := w.unrest()
	w.mu.Lock()
	defer w.mu.Unlock()
	if unrest != "" {
		var about *simMessage
		for _, q := range w.queues {
			for _, id := range slices.Sorted(maps.Keys(q.messages)) {
				if about == nil && q.messages[id].ended == "" {
					about = q.messages[id]
				}
			}
		}
		w.violate(1, about, "the world does not come to rest within %v: %s", restWithin, unrest)
		return
	}
	for _, p := range w.processes {
		for _, l := range p.lanes() {
			if wrong := l.miscounted(); wrong != "" {
				w.violate(6, nil, "%s: %s", p.actor, wrong)
			}
		}
	}
}

// inHand says what a lane still has to do.
func (l *lane) inHand() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	busy := 0
	for _, t := range l.tasks {
		if t.state != resting {
			busy++
		}
	}
	if busy+l.inFlight+l.waiting+l.unready+l.busy+l.marking+len(l.toMark)+len(l.toSettle)+len(l.unconfirmed) == 0 {
		return ""
	}
	return fmt.Sprintf("%s has %d tasks, %d in flight, %d waiting, %d unready, %d to settle, %d to confirm, %d to mark",
		l.identity, busy, l.inFlight, l.waiting, l.unready, l.busy+len(l.toSettle), len(l.unconfirmed), l.marking+len(l.toMark))
}

// checkStopped looks at the processes after they have stopped.
func (w *simulation) checkStopped() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.all {
		if p.err != nil && !p.crashed() {
			w.violate(8, nil, "%s ended with an error: %v", p.identity, p.err)
		}
		p.slots.mu.Lock()
		free := p.slots.free
		p.slots.mu.Unlock()
		if free != w.slots {
			w.violate(6, nil, "%s has stopped, and %d of %d slots are free", p.identity, free, w.slots)
		}
	}
}
