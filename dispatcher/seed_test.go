//go:build !deterministic

package dispatcher

// seedRuntime is seed_deterministic_test.go's where bench/simulate builds the tests. Elsewhere the runtime cannot be seeded, and what a seed
// does may differ a little from one run to the next.
func seedRuntime(uint64) {}
