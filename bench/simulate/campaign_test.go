package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestFreshSeeds runs the seeds that found something once, and a thousand that nobody has run yet.
func TestFreshSeeds(t *testing.T) {
	root, err := repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := testBinary(t.Context(), root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kept, err := keptSeeds(filepath.Join(root, "dispatcher", "testdata", "simulation", "seeds"))
	if err != nil {
		t.Fatal(err)
	}
	c := campaign{
		worker:  worker{binary: binary, dir: filepath.Join(root, "dispatcher"), limit: 3 * time.Minute},
		workers: runtime.NumCPU(), out: t.Output(), progress: t.Logf,
	}
	found, err := c.run(t.Context(), append(chunks(kept), fresh(rand.Uint64()>>20, 1000)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(found)
	if !found.clean() {
		t.Fail()
	}
}

// pretend makes a worker of a shell script in the place of the simulation, which has the seeds in $LIGHTERMAN_SIMULATE.
func pretend(t *testing.T, script string) worker {
	t.Helper()
	file := filepath.Join(t.TempDir(), "simulation")
	if err := os.WriteFile(file, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return worker{binary: file, dir: t.TempDir(), limit: time.Minute}
}

func TestCampaignTellsWhatWasFound(t *testing.T) {
	var out bytes.Buffer
	w := pretend(t, `case $LIGHTERMAN_SIMULATE in
1:25) echo "violation seed=7 invariant=4: gone too soon"; echo "  its trace"; echo "simulated 25 seeds, 1 violations"; echo FAIL; exit 1;;
*) echo "simulated 5 seeds, 0 violations"; echo PASS;;
esac`)
	found, err := campaign{worker: w, workers: 2, out: &out, progress: t.Logf}.run(t.Context(), fresh(1, 30))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("violation seed=7 invariant=4: gone too soon\n  its trace\n", out.String()); diff != "" {
		t.Error(diff)
	}
	if got := found.String(); found.clean() || !strings.HasPrefix(got, "30 seeds, 1 violations, in ") || !strings.HasSuffix(got, "make simulate SEED=7") {
		t.Error(got)
	}
}

// TestCampaignFindsTheSeedThatHangs: it is killed, and the seeds that ran with it count all the same.
func TestCampaignFindsTheSeedThatHangs(t *testing.T) {
	var out bytes.Buffer
	w := pretend(t, `case $LIGHTERMAN_SIMULATE in
1:3|2:1) sleep 60;;
3:1) echo "panic: it ended badly" >&2; exit 2;;
*) echo "simulated 1 seeds, 0 violations";;
esac`)
	w.limit = 500 * time.Millisecond
	found, err := campaign{worker: w, workers: 1, out: &out, progress: t.Logf}.run(t.Context(), []chunk{{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint64{2, 3}, found.broken); diff != "" || found.seeds != 1 || found.clean() {
		t.Errorf("%d seeds ran; broken: %s", found.seeds, diff)
	}
	if said := out.String(); !strings.Contains(said, "broken seed=2:1: killed after 500ms") || !strings.Contains(said, "it ended badly") {
		t.Error(said)
	}
}

func TestChunk(t *testing.T) {
	for want, seeds := range map[string]chunk{"5:3": {5, 6, 7}, "7:1": {7}, "5,7": {5, 7}, "3,2": {3, 2}} {
		if got := seeds.String(); got != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
	if got := fresh(1, 60); len(got) != 3 || got[2].String() != "51:10" {
		t.Error(got)
	}
}

func TestKeptSeeds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "seeds")
	if err := os.WriteFile(file, []byte("# why\n\n12 # this\n18446744073709551615\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := keptSeeds(file)
	if diff := cmp.Diff([]uint64{12, 1<<64 - 1}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if err := os.WriteFile(file, []byte("12 13\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keptSeeds(file); err == nil {
		t.Error("no error")
	}
}
