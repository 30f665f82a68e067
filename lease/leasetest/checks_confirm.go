package leasetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

// checkTakeover is for exclusive sources: the messages go over to whichever source came last, and the leases of the one before are lost.
func checkTakeover(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	if !s.Traits().Exclusive {
		t.Logf("does not apply: the source is not exclusive")
		return
	}
	q.Send(t, "a", "b", "c")
	before := receive(t, s, 3, patience)
	other := q.Source(t, 20*h.Lease)
	after := receive(t, other, 3, patience)
	var ids, again []string
	for i := range before {
		ids, again = append(ids, before[i].ID), append(again, after[i].ID)
	}
	slices.Sort(ids)
	if slices.Sort(again); !slices.Equal(ids, again) {
		t.Errorf("the new source received %v, want %v", again, ids)
	}
	toldLost(t, s, before)
	for _, op := range operations() {
		lostAll(t, op.name+" after a takeover", op.do(t.Context(), s, before), 3)
	}
	// The former one gets nothing back, however long it tries.
	for deadline := time.Now().Add(2 * h.Lease); time.Now().Before(deadline); {
		if got, _ := s.Receive(t.Context(), 10); len(got) > 0 {
			t.Fatalf("the former source received message %s", got[0].ID)
		}
	}
	succeed(t, "Extend by the new source", other.Extend(t.Context(), after))
	succeed(t, "Complete by the new source", other.Complete(t.Context(), after))
	gone(t, other)
}

// confirmer returns a source as a lease.Confirmer; nil, with a word, where it is none.
func confirmer(t T, s lease.Source) lease.Confirmer {
	t.Helper()
	c, ok := s.(lease.Confirmer)
	if !ok {
		t.Logf("does not apply: what the source settles is final at once")
	}
	return c
}

// confirmed collects n confirmations.
func confirmed(t T, c lease.Confirmer, n int) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	undone := make(map[string]bool)
	for len(undone) < n {
		some, err := c.Confirmed(ctx)
		if err != nil {
			t.Fatalf("Confirmed: %v, after %d of %d", err, len(undone), n)
		}
		for _, one := range some {
			if _, twice := undone[one.ID]; twice {
				t.Errorf("message %s was confirmed twice", one.ID)
			}
			undone[one.ID] = one.Undone
		}
	}
	return undone
}

// checkConfirmation is for sources whose settlements are final only later: they become final by themselves, or by Flush, and what is final is not
// handed out to anybody again.
func checkConfirmation(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	c := confirmer(t, s)
	if c == nil {
		return
	}
	q.Send(t, "a", "b", "c", "d")
	leases := receive(t, s, 4, patience)
	// Not in order: what comes before must be settled first.
	succeed(t, "Complete", s.Complete(t.Context(), leases[2:3]))
	succeed(t, "Poison", s.Poison(t.Context(), poisons(leases[:1])))
	succeed(t, "Complete", s.Complete(t.Context(), leases[1:2]))
	for id, undone := range confirmed(t, c, 3) {
		if undone || !c.Final(id) {
			t.Errorf("message %s: undone: %v, Final: %v; want it settled for good", id, undone, c.Final(id))
		}
	}
	if c.Final(leases[3].ID) {
		t.Errorf("message %s is not settled, and final all the same", leases[3].ID)
	}
	succeed(t, "Requeue", s.Requeue(t.Context(), returns(leases[3:])))
	last := receive(t, s, 1, patience)
	succeed(t, "Complete", s.Complete(t.Context(), last))
	if err := c.Flush(t.Context()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
	if !c.Final(last[0].ID) {
		t.Errorf("message %s is not final after Flush", last[0].ID)
	}
	other := q.Source(t, 20*h.Lease)
	nothing(t, other, h.Lease)
	gone(t, other)
	if oc := confirmer(t, other); oc != nil && !oc.Final(last[0].ID) {
		t.Errorf("message %s, which was settled by another source, is not final", last[0].ID)
	}
}

// checkUndone is for such sources too: what was not final when another source took over is told to be undone, and handed out to that one.
func checkUndone(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)
	c := confirmer(t, s)
	if c == nil {
		return
	}
	var sent []string
	for i := range 40 {
		sent = append(sent, fmt.Sprintf("body %02d", i))
	}
	q.Send(t, sent...)
	leases := receive(t, s, len(sent), patience)
	// Held back, in every partition, by the first message of it.
	var done []*lease.Lease
	seen := make(map[string]bool)
	slices.SortFunc(leases, func(a, b *lease.Lease) int { return slices.Compare(a.Body, b.Body) })
	for _, l := range leases {
		if partition := l.ID[:1]; seen[partition] {
			done = append(done, l)
		} else {
			seen[partition] = true
		}
	}
	succeed(t, "Complete", s.Complete(t.Context(), done))
	other := q.Source(t, 20*h.Lease)
	again := receive(t, other, len(sent), patience)
	for id, undone := range confirmed(t, c, len(done)) {
		if !undone {
			t.Errorf("message %s was confirmed, although another source has it again", id)
		}
	}
	succeed(t, "Complete", other.Complete(t.Context(), again))
	gone(t, other)
}
