package dispatcher

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSimulation runs seeds of the simulation: the real dispatcher, two or three processes of it with real clients, between queues and an API
// server in memory, in the virtual time of a synctest bubble, while all goes wrong that can.
//
//	plan ──▶ world ─┬─ processes ──travel──▶ queues, API server ──▶ oracle
//	(of the seed)   └─ controller, TTL controller, person ──────────▶
//
// A seed decides the plan (simulation_plan_test.go): templates, messages and what fails of them, the processes, shards, clocks, whether there is the
// fence, and what goes wrong when: storms, in which requests go astray; mishaps, which befall a process at its n-th request of a kind; stalls, in
// which caches grow stale; mistakes of a person. Every request of a process travels (simulation_travel_test.go) to where it has its effect, and
// its answer back: either may be late or lost. Whenever something takes effect, the oracle (simulation_oracle_test.go) looks whether an invariant is
// broken. When the plan is over, all is healed, and the world must come to rest (simulation_rest_test.go): every message ended, every Job
// marked, nothing in flight, no goroutine left.
//
// Every decision is a pure function of the seed and of what it is about (simulation_chance_test.go). What remains to chance is the order of what
// happens in one instant, which is the Go runtime's; "make simulate" builds the simulation with a runtime that leaves nothing to chance, so that a
// seed replays exactly.
//
//	LIGHTERMAN_SIMULATE=7 go test ./dispatcher -run TestSimulation         one seed; also 1,5,9 and 100:50 (fifty from 100)
//	LIGHTERMAN_SIMULATE_FIRST=1                                            end with the first violation
//	LIGHTERMAN_SIMULATE_TRACE=file                                         write the whole trace of every seed
//
// A violation is printed with the history of its message and the last of what happened. A seed that found a bug of the product goes into
// testdata/simulation/seeds.
func TestSimulation(t *testing.T) {
	seeds, err := seedsToRun(os.Getenv("LIGHTERMAN_SIMULATE"))
	if err != nil {
		t.Fatal(err)
	}
	var trace *os.File
	if name := os.Getenv("LIGHTERMAN_SIMULATE_TRACE"); name != "" {
		if trace, err = os.Create(name); err != nil { //nolint:gosec // whoever runs the test says where
			t.Fatal(err)
		}
		defer func() {
			if err := trace.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // a seed leaves nothing behind
	ran, violations := 0, 0
	for _, seed := range seeds {
		w := simulate(t, seed)
		ran++
		violations += len(w.violations)
		fmt.Print(w.report(seed))
		if trace != nil {
			if _, err := trace.Write(w.wholeTrace(seed)); err != nil {
				t.Fatal(err)
			}
		}
		if len(w.violations) > 0 && os.Getenv("LIGHTERMAN_SIMULATE_FIRST") == "1" {
			break
		}
	}
	fmt.Printf("simulated %d seeds, %d violations\n", ran, violations)
	if violations > 0 {
		t.Errorf("%d violations", violations)
	}
}

// fewSeeds is how many seeds a plain go test runs, beside those that found something once.
const fewSeeds = 30

// keptSeeds are those that found something once, one a line, with a comment.
const keptSeeds = "testdata/simulation/seeds"

// seedsToRun reads which seeds to run: "from:count", or a list with commas; by default a few, and those that are kept.
func seedsToRun(asked string) (seeds []uint64, err error) {
	if asked == "" {
		for seed := range uint64(fewSeeds) {
			seeds = append(seeds, seed+1)
		}
		kept, err := readSeeds()
		return append(seeds, kept...), err
	}
	if from, count, ok := strings.Cut(asked, ":"); ok {
		first, err := strconv.ParseUint(from, 10, 64)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(count, 10, 32)
		for i := range n {
			seeds = append(seeds, first+i)
		}
		return seeds, err
	}
	for s := range strings.SplitSeq(asked, ",") {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return nil, err
		}
		seeds = append(seeds, seed)
	}
	return seeds, nil
}

func readSeeds() (seeds []uint64, err error) {
	f, err := os.Open(keptSeeds)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keptSeeds, err)
		}
		seeds = append(seeds, seed)
	}
	return seeds, lines.Err()
}

// line is one line of the trace.
type line struct {
	at                        time.Duration
	actor, op, object, result string
}

func (l line) String() string {
	return fmt.Sprintf("%10.3fs  %-12s %-14s %-18s %s", l.at.Seconds(), l.actor, l.op, l.object, l.result)
}

// note adds to the trace. The caller holds the mutex.
func (w *simulation) note(actor, op, object, result string) {
	w.lines = append(w.lines, line{time.Since(w.begun), actor, op, object, result})
}

// What is printed of a trace at most: of the message in question, and of all that went on in the end.
const (
	mostOfMessage = 120
	mostOfEnd     = 60
)

// report tells of the violations.
func (w *simulation) report(seed uint64) string {
	out := &bytes.Buffer{}
	for _, v := range w.violations {
		fmt.Fprintf(out, "violation seed=%d invariant=%d: %s\n", seed, v.invariant, v.text)
		w.print(out, v)
	}
	return out.String()
}

// print writes what led to a violation: the world's kind, the history of the message in question, and what went on in the end.
func (w *simulation) print(out *bytes.Buffer, v violation) {
	fmt.Fprintf(out, "  %s: %d processes, %d shards, fence %v, lock %v, timeout %v, clock skew %v, %d slots, healed after %v\n",
		w.style, w.replicas, w.shards, w.fenced, w.lock, w.timeout, w.skew, w.slots, w.length)
	for _, t := range w.templates {
		fmt.Fprintf(out, "  %s: %s, %d messages\n", t.name, strings.Join(t.annotations(), " "), len(t.sends))
	}
	for _, s := range w.storms {
		fmt.Fprintf(out, "  %+v\n", s)
	}
	until := 0
	for i, l := range w.lines {
		if l.op == "VIOLATION" && strings.HasSuffix(l.result, v.text) {
			until = i + 1
			break
		}
	}
	before := w.lines[:until]
	if v.about != nil {
		var own []line
		for _, l := range before {
			if mentions(l.object, v.about.name) || l.op == "crash" || l.op == "pause" || l.op == "resume" ||
				l.op == "usurped" || l.op == "stop" || l.op == "start" || l.op == "spoil" || l.op == "mend" || l.op == "watches" {
				own = append(own, l)
			}
		}
		fmt.Fprintf(out, "  the history of %s:\n", v.about.name)
		printLines(out, own, mostOfMessage)
	}
	fmt.Fprintln(out, "  the last that happened:")
	printLines(out, before, mostOfEnd)
}

func printLines(out *bytes.Buffer, lines []line, most int) {
	if len(lines) > most {
		fmt.Fprintf(out, "  (%d lines before)\n", len(lines)-most)
		lines = lines[len(lines)-most:]
	}
	for _, l := range lines {
		fmt.Fprintf(out, "  %v\n", l)
	}
}

// wholeTrace is all of the trace.
func (w *simulation) wholeTrace(seed uint64) []byte {
	out := &bytes.Buffer{}
	fmt.Fprintf(out, "seed %d\n", seed)
	for _, l := range w.lines {
		fmt.Fprintln(out, l)
	}
	return out.Bytes()
}
