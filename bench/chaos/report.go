package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// table sums a run up.
func (c *chaos) table(v *verdict) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-34s%s\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString("\n")
	row("seed", "%d", c.seed)
	row("duration", "%s", short(time.Since(c.began)))
	counts, slowest := make(map[string]int), make(map[string]time.Duration)
	for _, e := range c.events {
		counts[e.kind]++
		slowest[e.kind] = max(slowest[e.kind], e.recovered)
	}
	row("faults injected", "%d", len(c.events))
	for _, f := range faults {
		row("  "+f.kind, "%-4d next Job at most %s after it was mended%s", counts[f.kind], short(slowest[f.kind]), c.nextOfEvents(f.kind))
	}
	queues, streams, events := len(c.queueFeed.messages), len(c.streamFeed.messages), len(c.eventFeed.messages)
	row("messages", "%d (%d in %d queues, %d in %d streams, %d in %d event hubs with %d partitions each)", queues+streams+events,
		queues, queueCount, streams, queueCount, events, hubCount, partitionCount)
	row("executions", "%d of %d attempts", v.runs, v.attempts)
	row("lost", "%d", v.lost)
	row("doubled", "%d", v.doubled)
	row("packs", "%d Jobs with %d messages; %d failed, %d named what failed", v.packs, v.packedMessages, v.crashed, v.named)
	row("Secrets with payloads", "%d at the end, before their Jobs were deleted", v.provided)
	row("second pods of one Job", "%d (by the Job controller)", v.twins)
	row("poisoned", "%d", v.poisoned)
	row("second copies of poisoned ones", "%d (Storage Queue cannot copy and delete at once), and %d of events (whose checkpoint is not in the queue)",
		v.poisonTwin-v.eventTwin, v.eventTwin)
	row("checkpoints at the last event", "%d of %d partitions", v.passed, hubCount*partitionCount)
	row("refused by the fence", "%d Jobs%s", c.watcher.fencedCount(), map[bool]string{false: "; there was none"}[c.fence])
	row("goroutines before and after", "%.0f, %.0f", c.goroutines[0], c.goroutines[1])
	for _, kind := range []string{"kill -9 leader", "SIGSTOP leader", "leader cut off", "SIGTERM leader"} {
		var all []time.Duration
		missing := 0
		for _, e := range c.events {
			if e.kind == kind {
				all = append(all, e.takeovers...)
				missing += e.missing
			}
		}
		if len(all) == 0 {
			row("takeover after "+kind, "not seen")
			continue
		}
		var words []string
		for _, t := range all {
			words = append(words, short(t))
		}
		limit := lockDuration + 2*time.Second
		if kind == "SIGTERM leader" {
			limit = 2 * time.Second
		}
		note := ""
		if missing > 0 {
			note = fmt.Sprintf("; %d without a Job in %v", missing, takeoverPatience)
		}
		row("takeover after "+kind, "max %s of %s (goal: %v%s)", short(slices.Max(all)), strings.Join(words, ", "), limit, note)
	}
	return b.String()
}

// nextOfEvents adds how long it took until the next Job of an event, where a fault is one of the event hubs. Unlike that of any Job, it is not
// waited for, and there may have been no event.
func (c *chaos) nextOfEvents(kind string) string {
	if !strings.HasPrefix(kind, "Event Hubs:") && kind != kindLost {
		return ""
	}
	slowest, setBack := time.Duration(-1), 0
	for _, e := range c.events {
		setBack += e.setBack
		if e.kind == kind {
			if after, ok := c.watcher.firstSince(e.at, sourceOf[eventKind]); ok {
				slowest = max(slowest, after)
			}
		}
	}
	if kind == kindLost {
		return fmt.Sprintf(", that of an event %s, %d checkpoints set back", short(slowest), setBack)
	}
	return ", that of an event " + short(slowest)
}

// short rounds to what is worth reading.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
