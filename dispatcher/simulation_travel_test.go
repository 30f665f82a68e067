package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"
)

// fate is what becomes of a request on its way.
type fate struct {
	out, back  time.Duration // how long it takes
	refused    int           // it is answered by this status, or error, without effect
	retryAfter time.Duration
	lost       bool // its answer does not arrive
	late       bool // it takes effect although its sender has given up; else it is dropped then
}

// errOnTheWay is what a sender sees of a lost answer.
var errOnTheWay = errors.New("connection reset by the simulation")

// fate draws a request's fate. The caller holds the mutex.
func (p *simProcess) fate(source int, op, object string) (f fate) {
	w := p.w
	now, percent := time.Since(w.begun), 0
	for _, s := range w.storms {
		if now < s.from || now > s.to || s.process != everyone && s.process != p.number ||
			source == nothing && !s.api || source != nothing && s.source != everyone && s.source != source {
			continue
		}
		percent = max(percent, s.percent)
	}
	if w.healed || percent == 0 {
		return f
	}
	key := p.actor + " " + op + " " + object
	w.times[key]++
	d := w.of("fate", key, strconv.Itoa(w.times[key]))
	if !d.percent(percent) {
		return f
	}
	switch d.below(6) {
	case 0:
		f.out, f.back = d.between(0, 2*time.Second), d.between(0, 2*time.Second)
	case 1: // it may come after its sender has given up
		f.out, f.late = d.between(0, w.timeout), true
	case 2:
		f.back = d.between(0, 2*w.timeout)
	case 3, 4:
		f.refused = pick(&d, 500, 503, 429, 409)
		f.retryAfter = time.Duration(d.from(0, 3)) * time.Second
	case 5:
		f.lost, f.out = true, pick(&d, 0, d.between(0, time.Second))
	}
	return f
}

// travel takes a request to where it has its effect, and its answer back. An effect may come after the sender has given up.
func travel[T any](ctx context.Context, p *simProcess, op, object string, f fate, inTime func(age time.Duration) bool, effect func() T) (answer T, err error) {
	w := p.w
	w.mu.Lock()
	n, total := p.step(op)
	w.calls++
	p.befall(op, n, total, true)
	stuck := p.resume != nil
	frozen := w.frozen || w.overrun()
	w.mu.Unlock()
	switch {
	case frozen:
		select {
		case <-ctx.Done():
		case <-w.over:
		}
		return answer, cmp.Or(ctx.Err(), errCut)
	case p.crashed():
		return answer, errCut
	case f == fate{} && !stuck:
		answer = effect()
	default:
		sent := time.Now()
		arrived := make(chan T, 1)
		go func() {
			p.awake(p.dead) // what it had sent stays with it meanwhile
			time.Sleep(f.out)
			if ctx.Err() != nil && !f.late && !stuck || stuck && p.crashed() || !inTime(time.Since(sent)) {
				return
			}
			result := effect()
			time.Sleep(f.back)
			if !f.lost {
				arrived <- result
			}
		}()
		var lost <-chan time.Time
		if f.lost {
			lost = time.After(f.out)
		}
		select {
		case answer = <-arrived:
		case <-lost:
			err = errOnTheWay
		case <-p.dead:
			err = errCut
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			w.mu.Lock()
			w.note(p.actor, op, object, "no answer: "+err.Error())
			w.mu.Unlock()
		}
	}
	w.mu.Lock()
	p.befall(op, n, total, false)
	w.mu.Unlock()
	p.awake(ctx.Done())
	if p.crashed() {
		err = errCut
	}
	return answer, err
}
