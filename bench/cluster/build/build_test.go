package build

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// testSet is keyed by this package's own sources, and built by a function.
func testSet(recipe func(context.Context, *builder) error) set {
	return set{title: "a test", folder: "cluster/build", key: []string{"*.go"}, make: recipe}
}

func writeProgram(_ context.Context, b *builder) error {
	return os.WriteFile(filepath.Join(b.out, "program"), []byte("built"), 0o600)
}

func TestBuildersOfOneSetShareOneBuild(t *testing.T) {
	t.Setenv(CacheVariable, t.TempDir())
	var builds atomic.Int32
	s := testSet(func(ctx context.Context, b *builder) error {
		builds.Add(1)
		return writeProgram(ctx, b)
	})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			dir, err := ensure(t.Context(), &bytes.Buffer{}, s)
			if err != nil {
				t.Error(err)
				return
			}
			if text, err := os.ReadFile(filepath.Join(dir, "program")); err != nil || string(text) != "built" {
				t.Errorf("the program is %q, %v", text, err)
			}
		})
	}
	group.Wait()
	if builds.Load() != 1 {
		t.Errorf("it was built %d times, want once", builds.Load())
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	cache := t.TempDir()
	t.Setenv(CacheVariable, cache)
	failure := errors.New("interrupted")
	_, err := ensure(t.Context(), &bytes.Buffer{}, testSet(func(ctx context.Context, b *builder) error {
		return errors.Join(writeProgram(ctx, b), failure)
	}))
	if !errors.Is(err, failure) || !strings.Contains(err.Error(), "building a test") {
		t.Errorf("the error is %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, "bin", "*"))
	hidden, _ := filepath.Glob(filepath.Join(cache, "bin", ".b*"))
	if len(left) != 1 || filepath.Ext(left[0]) != ".lock" || len(hidden) != 0 {
		t.Errorf("%v and %v are left, want a lock file only", left, hidden)
	}
	if _, err := ensure(t.Context(), &bytes.Buffer{}, testSet(writeProgram)); err != nil {
		t.Errorf("building again: %v", err)
	}
}

func TestCompilersMessagesAreInTheError(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module example.test/broken\n", "main.go": "package main\nfunc main() { undefinedThing() }\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var progress bytes.Buffer
	meter := startMeter(&progress, "broken")
	err := (&builder{source: dir, out: t.TempDir(), meter: meter}).goBuild(t.Context(), ".")
	meter.stop(err)
	if err == nil || !strings.Contains(err.Error(), "undefined: undefinedThing") {
		t.Errorf("the error is %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	meter = startMeter(&progress, "cancelled")
	if err := (&builder{source: dir, out: t.TempDir(), meter: meter}).goBuild(ctx, "."); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled build gave %v", err)
	}
	meter.stop(context.Canceled)
}
