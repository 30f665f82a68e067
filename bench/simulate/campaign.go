package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// chunkSize is how many seeds a process runs: enough for its start not to count, few enough for one that hangs to be found soon.
const chunkSize = 25

func chunks(seeds []uint64) []chunk {
	var cut []chunk
	for part := range slices.Chunk(seeds, chunkSize) {
		cut = append(cut, part)
	}
	return cut
}

// fresh is n seeds that follow each other.
func fresh(from uint64, n int) []chunk {
	seeds := make([]uint64, n)
	for i := range seeds {
		seeds[i] = from + uint64(i)
	}
	return chunks(seeds)
}

// keptSeeds reads the seeds that found something once: one a line, with a comment after #.
func keptSeeds(file string) (seeds []uint64, err error) {
	f, err := os.Open(file) //nolint:gosec // a file of the repository
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
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		seeds = append(seeds, seed)
	}
	return seeds, lines.Err()
}

// campaign runs many seeds.
type campaign struct {
	worker
	workers  int
	out      io.Writer // for violations and their traces
	progress func(format string, args ...any)
}

// findings is what a campaign came to.
type findings struct {
	seeds      int
	violations []violation
	broken     []uint64 // seeds that did not come to their end
	took       time.Duration
}

func (f *findings) clean() bool { return len(f.violations) == 0 && len(f.broken) == 0 }

// String is the line of totals, and how to see the first that went wrong again.
func (f *findings) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %d violations", f.seeds, len(f.violations))
	if len(f.broken) > 0 {
		fmt.Fprintf(&b, ", %d seeds that broke the simulation down", len(f.broken))
	}
	fmt.Fprintf(&b, ", in %v", f.took.Round(time.Second))
	switch {
	case len(f.violations) > 0:
		fmt.Fprintf(&b, "\nreplay the first with: make simulate SEED=%d", f.violations[0].seed)
	case len(f.broken) > 0:
		fmt.Fprintf(&b, "\nreplay the first with: make simulate SEED=%d", f.broken[0])
	}
	return b.String()
}

const progressEvery = 10 * time.Second

// run runs the chunks, in order, and passes on what they find as it comes.
func (c campaign) run(ctx context.Context, chunks []chunk) (*findings, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begun := time.Now()
	total := 0
	todo := make(chan chunk, len(chunks))
	for _, seeds := range chunks {
		total += len(seeds)
		todo <- seeds
	}
	close(todo)

	var mu sync.Mutex
	found := &findings{}
	note := func(seeds chunk, r result) {
		mu.Lock()
		defer mu.Unlock()
		found.seeds += r.ran
		found.violations = append(found.violations, r.violations...)
		_, err := c.out.Write(r.said)
		if r.broken != nil {
			found.broken = append(found.broken, seeds...)
			_, err = fmt.Fprintf(c.out, "broken seed=%v: %v\n", seeds, r.broken)
		}
		if err != nil {
			cancel(err)
		}
	}
	var working, telling sync.WaitGroup
	for range c.workers {
		working.Go(func() {
			for seeds := range todo {
				if err := c.one(ctx, seeds, note); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	telling.Go(func() {
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				mu.Lock()
				c.progress("%d of %d seeds, %d violations, %v",
					found.seeds, total, len(found.violations), time.Since(begun).Round(time.Second))
				mu.Unlock()
			case <-done:
				return
			}
		}
	})
	working.Wait()
	close(done)
	telling.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	found.took = time.Since(begun)
	return found, nil
}

// one runs a chunk. Where that does not come to its end, each of its seeds is run alone, so that the one at fault is known and the
// others count.
func (c campaign) one(ctx context.Context, seeds chunk, note func(chunk, result)) error {
	r, err := c.worker.run(ctx, seeds)
	if err != nil {
		return err
	}
	if r.broken == nil || len(seeds) == 1 {
		note(seeds, r)
		return nil
	}
	c.progress("seeds %v did not come to their end; they are run one by one", seeds)
	alone := true
	for _, seed := range seeds {
		r, err := c.worker.run(ctx, chunk{seed})
		if err != nil {
			return err
		}
		alone = alone && r.broken == nil
		note(chunk{seed}, r)
	}
	if alone {
		r.said, r.violations = nil, nil // they have been counted
		r.broken = fmt.Errorf("together only, and not one by one: %w", r.broken)
		note(seeds, r)
	}
	return nil
}
