package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	// recoveryPatience is how long it may take after a fault is mended until the next Job is created.
	recoveryPatience = time.Minute
	// injecting is for how long faults are injected at most: what is left of the time is for the rest of the messages.
	injecting = 7 * time.Minute
)

// An event is a fault that was injected.
type event struct {
	effect
	kind      string
	at        time.Time     // when it was mended
	mended    time.Duration // from the beginning of the fault
	recovered time.Duration // from its end until a Job was created; negative where no message was left
}

// breakThings injects the faults in their order, so many rounds, and further ones until the messages are through. Messages are fed in
// step, so that each fault meets some.
func (c *chaos) breakThings(ctx context.Context) error {
	for n := 0; ; n++ {
		least := c.rounds * len(faults)
		c.allow(float64(n+3) / float64(least))
		if n >= least && (c.through() || time.Since(c.began) > injecting) {
			return nil
		}
		from, to := 300*time.Millisecond, 1500*time.Millisecond
		if n >= least {
			from, to = 3*time.Second, 6*time.Second // the machine is slow: what is left gets more time between the faults
		}
		if err := c.pauseBetween(ctx, from, to); err != nil {
			return err
		}
		if err := c.inject(ctx, faults[n%len(faults)]); err != nil {
			return err
		}
	}
}

func (c *chaos) inject(ctx context.Context, f fault) error {
	at := time.Now()
	e, err := f.inject(c, ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", f.kind, err)
	}
	mended := time.Now()
	ev := event{effect: e, kind: f.kind, at: mended, mended: mended.Sub(at)}
	recovered := false
	err = poll(ctx, "a Job after "+f.kind, recoveryPatience, func(context.Context) (bool, error) {
		recovered = c.watcher.createdSince(mended)
		return recovered || c.idle(), nil
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		c.complain(err)
	}
	ev.recovered = -1
	if recovered {
		ev.recovered = time.Since(mended)
	}
	c.events = append(c.events, ev)
	c.say("%s", ev)
	return nil
}

func (e event) String() string {
	parts := []string{fmt.Sprintf("%-24s%-20s%s", e.kind, e.target, "mended after "+short(e.mended))}
	if e.recovered >= 0 {
		parts = append(parts, "next Job "+short(e.recovered)+" later")
	}
	for _, t := range e.takeovers {
		parts = append(parts, "taken over after "+short(t))
	}
	if e.missing > 0 {
		parts = append(parts, fmt.Sprintf("no Job in %d shards", e.missing))
	}
	return strings.Join(parts, ", ")
}

func (c *chaos) allow(part float64) {
	for _, f := range c.feeds() {
		f.allow(part)
	}
}

func (c *chaos) sent() int {
	n := 0
	for _, f := range c.feeds() {
		n += int(f.sent.Load())
	}
	return n
}

func (c *chaos) settled() int {
	n := 0
	for _, f := range c.feeds() {
		n += f.settled()
	}
	return n
}

// idle says that nothing is left to do at the moment. An event that is done and waits for one before it, which holds the checkpoint back, counts as left.
func (c *chaos) idle() bool { return c.settled() == c.sent() }

// through says that all messages are sent and all but few settled.
func (c *chaos) through() bool {
	all := c.messages
	return c.sent() == all && c.settled() >= all-all/20
}
