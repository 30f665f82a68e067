// Command simulate runs the deterministic simulation of the dispatcher (TestSimulation in package dispatcher) over many seeds: from inside
// bench/, `go run ./simulate -n 10000`. docs/simulation.md says what is simulated and what to do with what it finds.
//
//	the installed Go's runtime ──edits──▶ overlay ──go test -c──▶ test binary ──▶ a worker per core, GOMAXPROCS=1, some seeds at a time
//	(goruntime.go)                        (overlay.go)            (build.go)      (worker.go, campaign.go)
//
// The same seed does the same thing, line by line, on any machine with the same Go. mutation.go has the ways to break the product that
// the simulation must find.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

// errFound ends a run that found something; what it found has been said by then.
var errFound = errors.New("the product broke its promises, or the simulation broke down; see above")

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("simulate", flag.ExitOnError)
	n := flags.Int("n", 1000, "how many seeds to run, beside those that are kept")
	from := flags.Uint64("from", 0, "the first of the seeds; they follow each other (default: random)")
	seed := flags.Uint64("seed", 0, "replay this seed, and nothing else")
	trace := flags.String("trace", "", "with -seed: the file for the whole trace (default: .cache/simulate/<seed>.trace in the repository)")
	workers := flags.Int("workers", runtime.NumCPU(), "how many seeds to run at once")
	limit := flags.Duration("limit", 3*time.Minute, "how long a worker may take for its seeds before it is killed")
	_ = flags.Parse(args) // exits by itself
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; it takes flags only", flags.Arg(0))
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })

	dir, err := os.MkdirTemp("", "simulate-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := repository(ctx)
	if err != nil {
		return err
	}
	say("building the simulation; the first time, Go's standard library is compiled for it, which takes minutes")
	binary, err := testBinary(ctx, root, dir)
	if err != nil {
		return err
	}
	w := worker{binary: binary, dir: filepath.Join(root, "dispatcher"), limit: *limit}
	if given["seed"] {
		if *trace == "" {
			*trace = filepath.Join(root, ".cache", "simulate", fmt.Sprintf("%d.trace", *seed))
		}
		return replay(ctx, w, *seed, *trace)
	}
	if !given["from"] {
		*from = rand.Uint64() >> 20 //nolint:gosec // any seeds do; short ones are easier to pass on
	}
	kept, err := keptSeeds(filepath.Join(w.dir, "testdata", "simulation", "seeds"))
	if err != nil {
		return err
	}
	found, err := campaign{worker: w, workers: *workers, out: os.Stdout, progress: say}.run(ctx, append(chunks(kept), fresh(*from, *n)...))
	if err != nil {
		return err
	}
	fmt.Println(found)
	if !found.clean() {
		return errFound
	}
	return nil
}

// say tells the person at the terminal how it goes.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// replay runs one seed, and keeps its whole trace.
func replay(ctx context.Context, w worker, seed uint64, trace string) error {
	if err := os.MkdirAll(filepath.Dir(trace), 0o750); err != nil {
		return err
	}
	trace, err := filepath.Abs(trace) // the worker runs elsewhere
	if err != nil {
		return err
	}
	w.trace = trace
	result, err := w.run(ctx, chunk{seed})
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write(result.said); err != nil {
		return err
	}
	fmt.Printf("seed %d: %d violations; the whole trace is in %s\n", seed, len(result.violations), trace)
	if result.broken != nil {
		fmt.Printf("the simulation broke down: %v\n", result.broken)
	}
	if result.broken != nil || len(result.violations) > 0 {
		return errFound
	}
	return nil
}
