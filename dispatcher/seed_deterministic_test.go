//go:build deterministic

package dispatcher

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	_ "unsafe" // for go:linkname
)

// simulationSeed is in the runtime that bench/simulate builds the simulation with.
//
//go:linkname simulationSeed runtime.simulationSeed
func simulationSeed(seed uint64)

// seedRuntime makes all that Go leaves to chance in the next bubble follow from the seed. It is called before the bubble begins. That is
// also when garbage is collected: in a bubble it would stop goroutines wherever they happen to be.
func seedRuntime(seed uint64) {
	debug.SetGCPercent(-1)
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	if heap[0].Value.Uint64() > 256<<20 {
		runtime.GC()
	}
	simulationSeed(seed)
}
