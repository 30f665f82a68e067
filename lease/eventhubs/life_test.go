package eventhubs

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// takeAll receives and completes n events, whatever fails meanwhile, and returns their bodies in order.
func takeAll(t *testing.T, s lease.Source, n int) []string {
	t.Helper()
	var bodies []string
	var failure error
	for deadline := time.Now().Add(90 * time.Second); len(bodies) < n && time.Now().Before(deadline); {
		leases, err := s.Receive(t.Context(), 100)
		if err != nil {
			failure = err
			timer := time.NewTimer(50 * time.Millisecond)
			<-timer.C
		}
		for _, l := range leases {
			bodies = append(bodies, string(l.Body))
		}
		if err := errors.Join(s.Complete(t.Context(), leases)...); err != nil {
			t.Fatalf("Complete: %v", err)
		}
	}
	if len(bodies) < n {
		t.Fatalf("received %q, want %d events; the last failure: %v", bodies, n, failure)
	}
	slices.Sort(bodies)
	return bodies
}

func flushed(t *testing.T, s lease.Source) {
	t.Helper()
	must(t, s.(lease.Confirmer).Flush(t.Context()))
}

// TestHubMadeAnew: a hub that is deleted and made again, with fewer events by then, is read from its beginning, by way of the unmodified client.
func TestHubMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hub := w.newHubOn(t, 1)
	s := newSource(t, w.config(hub))
	must(t, s.Check(t.Context()))
	must(t, w.broker.Send(hub, "0", bodies(5)...))
	takeAll(t, s, 5)
	flushed(t, s)
	must(t, w.broker.DeleteHub(hub))
	must(t, w.broker.CreateHub(hub, 1))
	must(t, w.broker.Send(hub, "0", eventhub.Event{Body: []byte("new 0")}, eventhub.Event{Body: []byte("new 1")}))
	if got := takeAll(t, s, 2); !slices.Equal(got, []string{"new 0", "new 1"}) {
		t.Errorf("received %q of the new hub", got)
	}
	flushed(t, s)
	b, err := s.Backlog(t.Context())
	must(t, err)
	if b.Messages != 0 || len(b.Notices) == 0 || !errors.Is(b.Notices[0], lease.ErrReset) {
		t.Errorf("Backlog = %+v; want nothing left, and a notice", b)
	}
}

// TestHubGrows: partitions that are added are found and read.
func TestHubGrows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hub := w.newHubOn(t, 1)
	s := newSource(t, w.config(hub))
	must(t, s.Check(t.Context()))
	must(t, w.broker.Send(hub, "0", bodies(2)...))
	takeAll(t, s, 2)
	must(t, w.broker.AddPartitions(hub, 1))
	must(t, w.broker.Send(hub, "1", eventhub.Event{Body: []byte("added")}))
	if got := takeAll(t, s, 1); got[0] != "added" {
		t.Errorf("received %q", got)
	}
}

// TestPositions: where a checkpoint is before the first event, beyond the last, or there is none.
func TestPositions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hub := w.newHubOn(t, 3)
	for _, p := range []string{"0", "1"} {
		must(t, w.broker.Send(hub, p, bodies(10)...))
	}
	must(t, w.broker.Truncate(hub, "0", 7))
	c := openCheckpoints(t, w.settings(t, hub))
	must(t, c.Check(t.Context()))
	for p, at := range map[string]partitioned.Checkpoint{"0": {Sequence: 2, Offset: "2"}, "1": {Sequence: 8, Offset: "8"}} {
		_, err := c.Store(t.Context(), p, at, "")
		must(t, err)
	}
	s := newSource(t, w.config(hub))
	must(t, s.Check(t.Context()))
	if b, err := s.Backlog(t.Context()); err != nil || b.Messages != 4 {
		t.Errorf("Backlog = %+v, %v; want 3 messages of partition 0 and 1 of partition 1", b, err)
	}
	if got := takeAll(t, s, 4); strings.Join(got, " ") != "7 8 9 9" {
		t.Errorf("received %q", got)
	}
	flushed(t, s)
	b, err := s.Backlog(t.Context())
	must(t, err)
	if b.Messages != 0 || len(b.Notices) != 1 || !strings.Contains(b.Notices[0].Error(), "4 events of partition 0") {
		t.Errorf("Backlog = %+v; want nothing left, and a notice of 4 events that expired", b)
	}
	must(t, w.broker.Send(hub, "2", eventhub.Event{Body: []byte("first of an empty one")}))
	takeAll(t, s, 1)
}
