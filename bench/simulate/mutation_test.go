package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What a mutation is given before it counts as not found. The seeds are always the same, so that the table is, too.
const (
	mutationSeeds = 1500
	mutationTime  = 90 * time.Second
)

// catch is how a mutation was found.
type catch struct {
	by    violation
	after int // seeds
	took  time.Duration
	err   error
}

var errNotFound = errors.New("no seed found it")

// TestMutations proves that the simulation bites.
func TestMutations(t *testing.T) {
	root, err := repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	catches := make([]catch, len(mutations))
	t.Run("each", func(t *testing.T) {
		for i, m := range mutations {
			t.Run(fmt.Sprintf("%d %s", m.invariant, m.about), func(t *testing.T) {
				t.Parallel()
				catches[i] = m.find(t.Context(), root, t.TempDir())
				if err := catches[i].err; err != nil {
					t.Error(err)
				}
			})
		}
	})
	t.Log("\n" + table(catches))
}

// find builds the mutated product and runs seeds until one finds it.
func (m mutation) find(ctx context.Context, root, dir string) (c catch) {
	begun := time.Now()
	defer func() { c.took = time.Since(begun) }()
	binary, err := testBinary(ctx, root, dir, m.edits...)
	if err != nil {
		return catch{err: err}
	}
	w := worker{binary: binary, dir: filepath.Join(root, "dispatcher"), limit: 30 * time.Second, first: true}
	for _, seeds := range fresh(1, mutationSeeds) {
		if time.Since(begun) > mutationTime {
			break
		}
		r, err := w.run(ctx, seeds)
		if err != nil {
			return catch{err: err}
		}
		switch {
		case len(r.violations) > 0:
			v := r.violations[0]
			return catch{by: v, after: int(v.seed)} //nolint:gosec // they begin with 1
		case r.broken != nil:
			// The mutation may hang the simulation, or end it: that is found, too, if not by a check.
			return catch{by: violation{seed: seeds[0], invariant: "-", text: firstLine(r.broken.Error())}, after: int(seeds[len(seeds)-1])} //nolint:gosec // they begin with 1
		}
		c.after += len(seeds)
	}
	c.err = fmt.Errorf("%w: %d were run", errNotFound, c.after)
	return c
}

// table is the table of mutations, for people.
func table(catches []catch) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-9s  %-75s  %5s  %5s  %-6s  %s\n", "invariant", "mutation", "seed", "after", "by", "as")
	for i, m := range mutations {
		c := catches[i]
		if c.err != nil {
			fmt.Fprintf(&b, "%-9d  %-75s  not found: %s\n", m.invariant, m.about, firstLine(c.err.Error()))
			continue
		}
		fmt.Fprintf(&b, "%-9d  %-75s  %5d  %5d  %-6s  %.110s\n", m.invariant, m.about, c.by.seed, c.after, c.by.invariant, c.by.text)
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
