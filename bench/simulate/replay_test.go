package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReplay: a seed does the same in any process: with others before it, in another order, alone, and on a machine that has other
// work to do.
func TestReplay(t *testing.T) {
	root, err := repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	binary, err := testBinary(t.Context(), root, dir)
	if err != nil {
		t.Fatal(err)
	}
	w := worker{binary: binary, dir: filepath.Join(root, "dispatcher"), limit: 3 * time.Minute}
	traces := func(name string, seeds chunk) map[string]string {
		t.Helper()
		w.trace = filepath.Join(dir, name)
		r, err := w.run(t.Context(), seeds)
		if err != nil || r.broken != nil {
			t.Fatal(err, r.broken)
		}
		trace, err := os.ReadFile(w.trace)
		if err != nil {
			t.Fatal(err)
		}
		bySeed := map[string]string{}
		for part := range strings.SplitSeq("\n"+strings.TrimSpace(string(trace)), "\nseed ") {
			if seed, rest, ok := strings.Cut(part, "\n"); ok && seed != "" {
				bySeed[seed] = rest
			}
		}
		if len(bySeed) != len(seeds) {
			t.Fatalf("%d traces of %d seeds", len(bySeed), len(seeds))
		}
		return bySeed
	}
	seeds := fresh(1, 20)[0]
	want := traces("first", seeds)
	same := func(t *testing.T, got map[string]string) {
		t.Helper()
		for seed, trace := range got {
			if trace != want[seed] {
				t.Errorf("seed %s: %s", seed, difference(want[seed], trace))
			}
		}
	}
	t.Run("again", func(t *testing.T) { same(t, traces("again", seeds)) })
	t.Run("backwards", func(t *testing.T) {
		backwards := slices.Clone(seeds)
		slices.Reverse(backwards)
		same(t, traces("backwards", backwards))
	})
	t.Run("alone", func(t *testing.T) {
		for _, seed := range seeds[10:13] {
			same(t, traces(fmt.Sprint(seed), chunk{seed}))
		}
	})
	t.Run("under load", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		for range 8 {
			go func() {
				for ctx.Err() == nil {
				}
			}()
		}
		same(t, traces("load", seeds))
	})
}

// difference is the first line in which two traces differ.
func difference(a, b string) string {
	left, right := bytes.Split([]byte(a), []byte("\n")), bytes.Split([]byte(b), []byte("\n"))
	for i := range min(len(left), len(right)) {
		if !bytes.Equal(left[i], right[i]) {
			return fmt.Sprintf("line %d\n%s\n%s", i+1, left[i], right[i])
		}
	}
	return fmt.Sprintf("%d lines and %d", len(left), len(right))
}
