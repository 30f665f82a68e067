package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What a mutation is given before it counts as not found. The seeds are always the same, so that the table is, too.
const (
	mutationSeeds = 800
	mutationTime  = 5 * time.Minute // on a busy machine; 800 seeds take a minute
)

// catch is how a mutation was found.
type catch struct {
	by    violation
	after int // seeds
	err   error
}

var errNotFound = errors.New("no seed found it")

// TestMutations proves that the simulation bites.
func TestMutations(t *testing.T) {
	root, err := repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	control, err := testBinary(t.Context(), root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := hunt{root: root, control: worker{binary: control, dir: filepath.Join(root, "dispatcher"), limit: 3 * time.Minute}}
	catches := make([]*catch, len(mutations))
	t.Run("each", func(t *testing.T) {
		for i, m := range mutations {
			t.Run(fmt.Sprintf("%d %s", m.invariant, m.about), func(t *testing.T) {
				t.Parallel()
				c := h.find(t.Context(), m, t.TempDir())
				if catches[i] = &c; c.err != nil {
					t.Error(c.err)
				}
			})
		}
	})
	t.Log("\n" + table(catches))
}

// hunt looks for mutations.
type hunt struct {
	root    string
	control worker // of the product as it is
}

// find builds the mutated product and runs seeds until one finds it.
func (h hunt) find(ctx context.Context, m mutation, dir string) (c catch) {
	binary, err := testBinary(ctx, h.root, dir, m.edits...)
	if err != nil {
		return catch{err: err}
	}
	begun := time.Now()
	w := worker{binary: binary, dir: h.control.dir, limit: 3 * time.Minute, first: true}
	for todo := fresh(1, mutationSeeds); len(todo) > 0 && time.Since(begun) < mutationTime; {
		seeds := todo[0]
		r, err := w.run(ctx, seeds)
		if err != nil {
			return catch{err: err}
		}
		if r.broken == nil && len(r.violations) == 0 {
			c.after += len(seeds)
			todo = todo[1:]
			continue
		}
		suspects := seeds // where it did not come to its end, any of them may be why
		c.by = violation{seed: seeds[0], invariant: "-", text: "it does not come to its end"}
		if r.broken == nil {
			c.by, suspects = r.violations[0], chunk{r.violations[0].seed}
		}
		innocent, err := h.control.run(ctx, suspects)
		if err != nil {
			return catch{err: err}
		}
		c.after += slices.Index(seeds, suspects[len(suspects)-1]) + 1
		if innocent.broken == nil && len(innocent.violations) == 0 {
			return c
		}
		// The product as it is fails as well, so that this proves nothing.
		if todo[0] = seeds[slices.Index(seeds, suspects[len(suspects)-1])+1:]; len(todo[0]) == 0 {
			todo = todo[1:]
		}
	}
	c.err = fmt.Errorf("%w: %d were run", errNotFound, c.after)
	return c
}

// table is the table of mutations, for people.
func table(catches []*catch) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-9s  %-75s  %5s  %5s  %-8s  %s\n", "invariant", "mutation", "seed", "after", "found by", "as")
	for i, m := range mutations {
		invariant := strconv.Itoa(m.invariant)
		if m.invariant == 0 {
			invariant = "fence"
		}
		switch c := catches[i]; {
		case c == nil: // -run leaves it out
		case c.err != nil:
			fmt.Fprintf(&b, "%-9s  %-75s  not found: %s\n", invariant, m.about, firstLine(c.err.Error()))
		default:
			fmt.Fprintf(&b, "%-9s  %-75s  %5d  %5d  %-8s  %.110s\n", invariant, m.about, c.by.seed, c.after, c.by.invariant, c.by.text)
		}
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
