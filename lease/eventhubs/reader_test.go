package eventhubs

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

func TestStartPositions(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	must(t, b.Send("hub", "0", bodies(10)...))
	waitPastMillisecond(t)
	must(t, b.Send("hub", "0", bodies(10)...))
	events := b.Events("hub", "0")
	for name, test := range map[string]struct {
		from partitioned.Start
		want int64
	}{
		"earliest":          {partitioned.Start{After: -1}, 0},
		"less than nothing": {partitioned.Start{After: -7}, 0},
		"after the first":   {partitioned.Start{After: 0}, 1},
		"after some":        {partitioned.Start{After: 12}, 13},
		"at a time":         {partitioned.Start{At: events[10].EnqueuedAt}, 10},
		"at an early time":  {partitioned.Start{At: events[0].EnqueuedAt.Add(-time.Hour)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := openReader(t, h, "0", test.from, 1)
			got := read(t, r, int(20-test.want))
			for i, e := range got {
				want := events[test.want+int64(i)]
				if e.Sequence != want.SequenceNumber || string(e.Body) != string(want.Body) || e.Offset != want.Offset || !e.EnqueuedAt.Equal(want.EnqueuedAt) {
					t.Fatalf("event %d is %+v, want %+v", i, e, want)
				}
			}
		})
	}
	t.Run("after the last", func(t *testing.T) {
		r := openReader(t, h, "0", partitioned.Start{After: 19}, 2)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if got, err := r.Read(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Read = %v, %v; want nothing", got, err)
		}
		must(t, b.Send("hub", "0", bodies(1)...))
		if got := read(t, r, 1); got[0].Sequence != 20 {
			t.Errorf("the event is %d, want 20", got[0].Sequence)
		}
	})
}

// waitPastMillisecond: a start position counts in milliseconds.
func waitPastMillisecond(t *testing.T) {
	t.Helper()
	timer := time.NewTimer(3 * time.Millisecond)
	defer timer.Stop()
	<-timer.C
}

// TestCredit: the service is never allowed to send more than was asked for.
func TestCredit(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	must(t, b.Send("hub", "0", bodies(2000)...))
	r := openReader(t, h, "0", partitioned.Start{After: -1}, 1)
	const most = 10
	taken := 0
	for taken < 2000 {
		got, err := r.Read(t.Context(), most)
		must(t, err)
		if len(got) == 0 || len(got) > most {
			t.Fatalf("Read gave %d events, want 1 to %d", len(got), most)
		}
		if want := int64(taken); got[0].Sequence != want {
			t.Fatalf("after %d events came %d", taken, got[0].Sequence)
		}
		taken += len(got)
		stats, err := b.Stats("hub")
		must(t, err)
		if ahead := int(stats.Delivered) - taken; ahead > most {
			t.Fatalf("%d events were sent that nobody asked for yet, want %d at most", ahead, most)
		}
	}
}

// TestManyAtOnce: one Read asks for thousands, and gets them in few batches.
func TestManyAtOnce(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	const all = 20_000
	must(t, b.Send("hub", "0", bodies(all)...))
	r := openReader(t, h, "0", partitioned.Start{After: -1}, 1)
	next, reads := int64(0), 0
	for next < all {
		got, err := r.Read(t.Context(), 1_000_000) // more than there can be
		must(t, err)
		reads++
		for _, e := range got {
			if e.Sequence != next {
				t.Fatalf("after event %d came %d", next-1, e.Sequence)
			}
			next++
		}
	}
	t.Logf("%d events in %d reads", all, reads)
}

func TestStolen(t *testing.T) {
	b, of := brokerOnly(t)
	for name, null := range map[string]bool{"attached first": false, "never attached": true} {
		t.Run(name, func(t *testing.T) {
			b.NullAttachRefusals(null)
			old, fresh := openHub(t, of("hub")), openHub(t, of("hub"))
			must(t, b.Send("hub", "0", bodies(3)...))
			former := openReader(t, old, "0", partitioned.Start{After: -1}, 5)
			read(t, former, 1)
			later := openReader(t, fresh, "0", partitioned.Start{After: -1}, 6)
			read(t, later, 1)
			until(t, func() bool {
				_, err := former.Read(t.Context(), 10)
				if err != nil && !errors.Is(err, partitioned.ErrOwned) {
					t.Fatalf("Read by the former owner: %v, want partitioned.ErrOwned", err)
				}
				return err != nil
			})
			again := openReader(t, old, "0", partitioned.Start{After: -1}, 5)
			if _, err := again.Read(t.Context(), 1); !errors.Is(err, partitioned.ErrOwned) {
				t.Errorf("Read with a lower level: %v, want partitioned.ErrOwned", err)
			}
			read(t, later, 1)
			equal := openReader(t, old, "0", partitioned.Start{After: -1}, 6)
			read(t, equal, 1)
		})
	}
}

// TestDetached: a link that the service lets go of is made anew, and no event is missed or seen twice.
func TestDetached(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	must(t, b.Send("hub", "0", bodies(1000)...))
	r := openReader(t, h, "0", partitioned.Start{After: -1}, 1)
	next := int64(0)
	for next < 1000 {
		got, err := r.Read(t.Context(), 50)
		must(t, err)
		for _, e := range got {
			if e.Sequence != next {
				t.Fatalf("event %d came instead of %d", e.Sequence, next)
			}
			next++
		}
		switch {
		case next%3 == 0:
			b.Detach("hub", "", "0", "amqp:link:detach-forced")
		case next%7 == 0:
			b.DropConnections()
		}
	}
}

// TestGivenUp: an event that arrives for a Read that was given up is the next one's.
func TestGivenUp(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	r := openReader(t, h, "0", partitioned.Start{After: -1}, 1)
	for next := range int64(100) {
		ctx, cancel := context.WithCancel(t.Context())
		sent := make(chan error, 1)
		go func() {
			sent <- b.Send("hub", "0", bodies(1)...)
			cancel()
		}()
		got, err := r.Read(ctx, 10)
		must(t, <-sent)
		if errors.Is(err, context.Canceled) {
			got, err = r.Read(t.Context(), 10)
		}
		must(t, err)
		if len(got) != 1 || got[0].Sequence != next {
			t.Fatalf("Read = %v, want event %d", got, next)
		}
	}
}

// until tries over and over, for a while.
func until(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("not within 10 seconds")
		}
	}
}
