// Package leasetest holds what tests of and with sources need.
//
// Memory is a source in memory, as strict as a real one: leases expire, receipts go stale, deliveries are counted. It
// tells time with package time, so in a testing/synctest bubble its clock is the bubble's.
//
// Faults wraps any source and makes it fail on demand: errors, delays, answers that get lost after their effect took
// place, batches that fail in part.
//
// Run is the conformance suite: what a lease.Source promises, as tests. A source is finished when Run passes against the
// real server. The suite itself is tested too, against sources that break one promise each.
//
// Package servers, below, starts the real servers.
package leasetest
