package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// A summary is what the demo ends with when all went well.
type summary struct {
	tasks            int
	took             time.Duration // from the first message sent to the last one settled
	toCreated, toEnd []time.Duration
	left             string // the queue's own words
	atOnce           string // max-in-flight
}

func summarise(tasks map[string]*task, words, atOnce string) summary {
	s := summary{tasks: len(tasks), left: words, atOnce: atOnce}
	var first, last time.Time
	for _, t := range tasks {
		if first.IsZero() || t.sent.Before(first) {
			first = t.sent
		}
		if t.done.After(last) {
			last = t.done
		}
		s.toCreated = append(s.toCreated, t.created.Sub(t.sent))
		s.toEnd = append(s.toEnd, t.done.Sub(t.sent))
	}
	s.took = last.Sub(first)
	return s
}

func (s summary) String() string {
	var b strings.Builder
	rate := float64(s.tasks) / max(s.took.Seconds(), 0.001)
	fmt.Fprintf(&b, "%d of %d done in %s, %.1f Jobs/s; one Job for each message, every answer right\n", s.tasks, s.tasks, short(s.took), rate)
	fmt.Fprintf(&b, "nothing is left: %s\n\n", s.left)
	fmt.Fprintf(&b, "%-26s%9s%9s%9s%9s\n", "latency", "p50", "p90", "p99", "max")
	for _, row := range []struct {
		name  string
		times []time.Duration
	}{
		{"enqueued → Job created", s.toCreated},
		{"enqueued → message done", s.toEnd},
	} {
		p := percentiles(row.times, 50, 90, 99, 100)
		// The arrow is one column wide, but three bytes.
		fmt.Fprintf(&b, "%-28s%9s%9s%9s%9s\n", row.name, short(p[0]), short(p[1]), short(p[2]), short(p[3]))
	}
	fmt.Fprintf(&b, "(with max-in-flight %s, as the template says: the others wait in the queue)\n", s.atOnce)
	return b.String()
}

// percentiles are by nearest rank: the smallest of the values that at least p of 100 do not exceed. They are values that
// occurred, none in between. Zeros where there are no values.
func percentiles(values []time.Duration, ps ...float64) []time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	result := make([]time.Duration, len(ps))
	for i, p := range ps {
		if len(sorted) > 0 {
			rank := int(math.Ceil(p / 100 * float64(len(sorted))))
			result[i] = sorted[max(rank, 1)-1]
		}
	}
	return result
}

// short rounds to what is worth reading.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
