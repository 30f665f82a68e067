package main

import (
	"fmt"
	"path/filepath"
)

// In a synctest bubble on one processor, what is left to chance is the Go runtime's own: the order in which select looks at its cases, where
// the iteration of a map begins, which of two timers of one time is first, math/rand; addresses, which are hashed where a pointer is the
// key of a map; and the real time, which preempts a goroutine that runs for long and has a mutex that was waited for change hands in
// another way. These edits of the installed Go's source, made when a test binary is built, take all of it from one generator that starts
// anew with each seed, or out of the way. So a seed replays exactly, on its own or after others.
//
// What they leave: garbage collection, which stops goroutines wherever they are. The worker's environment turns it off, and it
// is done between two seeds (dispatcher/seed_deterministic_test.go). And more than one processor: GOMAXPROCS is 1.

// simulationSource is added to package runtime. Its linknames are what dispatcher/seed_deterministic_test.go and crypto/rand call.
const simulationSource = `package runtime

import _ "unsafe" // for go:linkname

// simulation has two generators, so that what goes on beside the bubble does not disturb it. There is one processor, and one bubble
// at a time.
var simulation struct {
	begun                bool
	seed, inside, beside uint64
}

//go:linkname simulationSeed
func simulationSeed(seed uint64) {
	simulation.begun = true
	simulation.seed, simulation.inside, simulation.beside = seed, seed, ^seed
}

// simulationMix is the end of splitmix64.
func simulationMix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

//go:linkname simulationRand
func simulationRand() uint64 {
	state := &simulation.beside
	if getg().bubble != nil {
		state = &simulation.inside
	}
	*state += 0x9e3779b97f4a7c15
	return simulationMix(*state)
}

func simulationRandn(n uint32) uint32 {
	return uint32(uint64(uint32(simulationRand())) * uint64(n) >> 32)
}

// simulationOffset is where an iteration begins. It draws from no generator, since there is code that iterates once in the life of a process
// and would shift all that the first seed draws after it.
func simulationOffset() uint64 {
	if b := getg().bubble; b != nil {
		return simulationMix(simulation.seed ^ uint64(b.now))
	}
	return 0
}

//go:linkname sysrand_simulationRead crypto/internal/sysrand.simulationRead
func sysrand_simulationRead(b []byte) {
	for i := range b {
		b[i] = byte(simulationRand())
	}
}

// simulationWord takes addresses in the heap for one and the same, so that the hash of a pointer does not depend on where it points.
func simulationWord(x uint64) uint64 {
	if x>>40 == 0 && x>>32 >= 0x40 {
		return 0
	}
	return x
}
`

// runtimeEdits are of files below GOROOT/src.
var runtimeEdits = []edit{
	// rand is the seed of each map, by the compiler's doing, and must not differ: maps outlive the seed that they were made in.
	{"runtime/rand.go", "func rand() uint64 {\n", "func rand() uint64 {\n\tif true {\n\t\treturn 1\n\t}\n"},
	{"runtime/rand.go", "func maps_rand() uint64 {\n\treturn rand()", "func maps_rand() uint64 {\n\treturn simulationOffset()"},
	{"internal/runtime/maps/map.go", "\t\tm = new(Map)\n\t}\n\n\tm.seed = uintptr(rand())\n", "\t\tm = new(Map)\n\t}\n\n\tm.seed = 1\n"},
	{"internal/runtime/maps/map.go", "\tm := new(Map)\n\tm.seed = uintptr(rand())\n", "\tm := new(Map)\n\tm.seed = 1\n"},
	{"internal/runtime/maps/map.go", "\t\tm.seed = uintptr(rand())\n", "\t\tm.seed = 1\n"},
	{"internal/runtime/maps/map.go", "See https://go.dev/issue/25237.\n\tm.seed = uintptr(rand())\n", "See https://go.dev/issue/25237.\n\tm.seed = 1\n"},
	{"math/rand/rand.go", "//go:linkname runtime_rand runtime.rand\n", "//go:linkname runtime_rand runtime.simulationRand\n"},
	{"math/rand/v2/rand.go", "//go:linkname runtime_rand runtime.rand\n", "//go:linkname runtime_rand runtime.simulationRand\n"},
	{"os/tempfile.go", "//go:linkname runtime_rand runtime.rand\n", "//go:linkname runtime_rand runtime.simulationRand\n"},
	{"runtime/select.go", "j := cheaprandn(uint32(norder + 1))", "j := simulationRandn(uint32(norder + 1))"},
	{"runtime/time.go", "t.rand = cheaprand()", "t.rand = uint32(simulationRand())"},
	// Hashes: always the portable ones, with a key that is the same in each process.
	{"runtime/alg.go", "func alginit() {\n", "func alginit() {\n\tif true {\n\t\tfor i := range hashkey {\n\t\t\thashkey[i] = uintptr(0x9e3779b9)*uintptr(i+1) | 1\n\t\t}\n\t\treturn\n\t}\n"},
	{"runtime/hash64.go", "return uintptr(readUnaligned64(p))", "return uintptr(simulationWord(readUnaligned64(p)))"},
	{"runtime/malloc.go", "randomizeHeapBase = goexperiment.RandomizedHeapBase64 &&", "randomizeHeapBase = false && goexperiment.RandomizedHeapBase64 &&"},
	// Nobody is preempted, or loses the processor in a system call.
	{"runtime/proc.go", "func retake(now int64) uint32 {\n", "func retake(now int64) uint32 {\n\tif simulation.begun {\n\t\treturn 0\n\t}\n"},
	// How often the queue of all processors has its turn before that of this one depends on what ran before.
	{"runtime/proc.go", "if pp.schedtick%61 == 0 && !sched.runq.empty() {", "if !simulation.begun && pp.schedtick%61 == 0 && !sched.runq.empty() {"},
	// By this clock sync.Mutex decides whether a waiter starves.
	{"runtime/sema.go", "func internal_sync_nanotime() int64 {\n", "func internal_sync_nanotime() int64 {\n\tif b := getg().bubble; b != nil {\n\t\treturn b.now\n\t}\n"},
	{"crypto/internal/sysrand/rand.go", "func fatal(string)\n", "func fatal(string)\n\n//go:linkname simulationRead\nfunc simulationRead([]byte)\n"},
	{"crypto/internal/sysrand/rand.go", "func Read(b []byte) {\n", "func Read(b []byte) {\n\tif true {\n\t\tsimulationRead(b)\n\t\treturn\n\t}\n"},
}

// deterministicRuntime adds the runtime of the simulation to an overlay.
func deterministicRuntime(o overlay, goroot, version string) error {
	src := filepath.Join(goroot, "src")
	if err := o.apply(src, runtimeEdits); err != nil {
		return fmt.Errorf("making the runtime of %s deterministic: %w\nadapt bench/simulate/goruntime.go to this version of Go", version, err)
	}
	o[filepath.Join(src, "runtime", "simulation.go")] = simulationSource
	return nil
}
