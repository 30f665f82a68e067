package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// chunk is the seeds that one worker process runs, one after another.
type chunk []uint64

// String is what TestSimulation takes: "from:count", or a list.
func (c chunk) String() string {
	listed := make([]string, len(c))
	for i, seed := range c {
		if seed != c[0]+uint64(i) {
			for i, seed := range c {
				listed[i] = strconv.FormatUint(seed, 10)
			}
			return strings.Join(listed, ",")
		}
	}
	return fmt.Sprintf("%d:%d", c[0], len(c))
}

// worker runs seeds in processes.
type worker struct {
	binary string
	dir    string        // where the process runs
	limit  time.Duration // of real time for a chunk
	trace  string        // the file for the whole trace; empty: none
	first  bool          // stop at the first violation
}

// violation is one broken promise.
type violation struct {
	seed      uint64
	invariant string
	text      string
}

// result is what a worker process made of its chunk.
type result struct {
	violations []violation
	said       []byte // the violations with their traces, for people
	ran        int    // seeds
	// broken says that the process did not come to its end; then the rest is of no use.
	broken error
}

// run runs a chunk. It fails only where there was no process to speak of.
func (w worker) run(ctx context.Context, seeds chunk) (result, error) {
	limited, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	cmd := exec.CommandContext(limited, w.binary, "-test.run=^TestSimulation$", "-test.timeout=0") //nolint:gosec // what we have just built
	cmd.Dir = w.dir
	// The environment is the same wherever it runs. One processor, and no garbage collection but what is asked for: see goruntime.go. The
	// memory limit is for a seed that runs away.
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=4GiB", "LIGHTERMAN_SIMULATE=" + seeds.String(), "TMPDIR=" + os.TempDir()}
	if w.trace != "" {
		cmd.Env = append(cmd.Env, "LIGHTERMAN_SIMULATE_TRACE="+w.trace)
	}
	if w.first {
		cmd.Env = append(cmd.Env, "LIGHTERMAN_SIMULATE_FIRST=1")
	}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // it has a process group of its own
	if err := spawn.Start(cmd); err != nil {
		return result{}, fmt.Errorf("starting the simulation: %w", err)
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		return result{}, context.Cause(ctx)
	}
	r := read(out.Bytes())
	switch {
	case limited.Err() != nil:
		r.broken = fmt.Errorf("killed after %v", w.limit)
	case r.ran == 0, err != nil && len(r.violations) == 0:
		r.broken = fmt.Errorf("%w\n%s", cmp.Or(err, errNoTotals), tail(out.String()+log.String()))
	}
	return r, nil
}

var errNoTotals = errors.New("it ended without its line of totals")

var (
	violationLine = regexp.MustCompile(`^violation seed=(\d+) invariant=(\S+?): ?(.*)$`)
	totalsLine    = regexp.MustCompile(`^simulated (\d+) seeds?, (\d+) violations?$`)
)

// read takes the output of TestSimulation apart.
func read(out []byte) (r result) {
	var said bytes.Buffer
	for line := range bytes.Lines(out) {
		text := strings.TrimSuffix(string(line), "\n")
		if m := totalsLine.FindStringSubmatch(text); m != nil {
			r.ran, _ = strconv.Atoi(m[1])
			break
		}
		if m := violationLine.FindStringSubmatch(text); m != nil {
			seed, err := strconv.ParseUint(m[1], 10, 64)
			if err == nil {
				r.violations = append(r.violations, violation{seed, m[2], m[3]})
			}
		}
		said.Write(line)
	}
	r.said = said.Bytes()
	return r
}

// tail is the end of an output, where what matters of a panic or a failed test is not far.
func tail(s string) string {
	const most = 8 << 10
	if len(s) <= most {
		return s
	}
	return s[:most/2] + "\n…\n" + s[len(s)-most/2:]
}
