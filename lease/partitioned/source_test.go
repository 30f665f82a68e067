package partitioned_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// world runs a test with a log of one partition, in which time is virtual.
func world(t *testing.T, partitions int, test func(t *testing.T, l *leasetest.Log)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, leasetest.NewLog("log", partitions)) })
}

// receiveAll receives until nothing comes for a while.
func receiveAll(t *testing.T, s lease.Source) []*lease.Lease {
	t.Helper()
	var all []*lease.Lease
	for quiet := 0; quiet < 3; {
		got, err := s.Receive(t.Context(), 1000)
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		if all = append(all, got...); len(got) == 0 {
			quiet++
		}
	}
	return all
}

func bodies(leases []*lease.Lease) string {
	var b []string
	for _, l := range leases {
		b = append(b, string(l.Body))
	}
	return strings.Join(b, " ")
}

func numbered(from, to int) []string {
	var b []string
	for i := from; i < to; i++ {
		b = append(b, fmt.Sprint(i))
	}
	return b
}

func complete(t *testing.T, s lease.Source, leases ...*lease.Lease) {
	t.Helper()
	if err := errors.Join(s.Complete(t.Context(), leases)...); err != nil {
		t.Fatalf("Complete: %v", err)
	}
}

func flush(t *testing.T, s *partitioned.Source) {
	t.Helper()
	if err := s.Flush(t.Context()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

func wantCheckpoint(t *testing.T, l *leasetest.Log, partition string, sequence int64) {
	t.Helper()
	if c, _ := l.Checkpoint(partition); c.Version == "" || c.Sequence != sequence {
		t.Errorf("the checkpoint of partition %s is at %d (version %q), want %d", partition, c.Sequence, c.Version, sequence)
	}
}

func backlog(t *testing.T, s lease.Source) lease.Backlog {
	t.Helper()
	b, err := s.Backlog(t.Context())
	if err != nil {
		t.Fatalf("Backlog: %v", err)
	}
	return b
}

// TestCheckpointMovesOverWhatIsSettled: never past an event that is not, and in one write for many.
func TestCheckpointMovesOverWhatIsSettled(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send(numbered(0, 10)...)
		s := open(t, l.Config(time.Minute, 1))
		got := receiveAll(t, s)
		wantCheckpoint(t, l, "0", -1)
		_, before := l.Checkpoint("0")
		complete(t, s, got[1], got[2], got[5])
		time.Sleep(5 * time.Second)
		wantCheckpoint(t, l, "0", -1)
		if b := backlog(t, s); b.Messages != 7 || b.Unconfirmed != 3 || b.HeldBack != 3 || b.HeldBackBy != got[0].ID || b.HeldBackFull {
			t.Errorf("Backlog = %+v; want 7 messages and 3 that %s holds back", b, got[0].ID)
		}
		complete(t, s, got[0], got[3])
		time.Sleep(5 * time.Second)
		wantCheckpoint(t, l, "0", 3)
		if _, after := l.Checkpoint("0"); after != before+1 {
			t.Errorf("%d writes for 4 events, want 1", after-before)
		}
		complete(t, s, got[4], got[6], got[7], got[8], got[9])
		flush(t, s)
		wantCheckpoint(t, l, "0", 9)
		if c, _ := l.Checkpoint("0"); c.Offset != "900" {
			t.Errorf("the checkpoint's offset is %q, want the event's", c.Offset)
		}
	})
}

// TestStartPosition: where a partition begins that has no checkpoint, also after a crash before the first one.
func TestStartPosition(t *testing.T) {
	for name, test := range map[string]struct {
		start partitioned.StartPosition
		want  string
	}{
		"earliest": {partitioned.StartPosition{}, "0 1 2 3 4 5"},
		"latest":   {partitioned.StartPosition{Latest: true}, "4 5"},
		"a time":   {partitioned.StartPosition{At: time.Date(2000, 1, 1, 0, 1, 30, 0, time.UTC)}, "2 3 4 5"}, // synctest begins in 2000
		"a future": {partitioned.StartPosition{At: time.Date(2000, 1, 1, 0, 3, 30, 0, time.UTC)}, "5"},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, 1, func(t *testing.T, l *leasetest.Log) {
				l.Send("0", "1")
				time.Sleep(2 * time.Minute)
				l.Send("2", "3")
				// The first owner sees the log, and crashes before it was given anything.
				c := l.Config(time.Minute, 1)
				c.Start = test.start
				first := partitioned.New(c)
				for range 3 {
					if _, err := first.Receive(t.Context(), 1); err != nil {
						t.Fatal(err)
					}
				}
				l.Send("4")
				time.Sleep(2 * time.Minute)
				l.Send("5")
				c = l.Config(time.Minute, 2)
				c.Start = test.start
				s := open(t, c)
				got := receiveAll(t, s)
				if bodies(got) != test.want {
					t.Errorf("received %q, want %q", bodies(got), test.want)
				}
				if b := backlog(t, s); b.Messages != int64(len(got)) {
					t.Errorf("Backlog().Messages = %d, want %d", b.Messages, len(got))
				}
				complete(t, s, got...)
				flush(t, s)
				wantCheckpoint(t, l, "0", 5)
				if err := first.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestFormerOwnerChangesNothing: what it settles after another has taken over is undone, and never moves the other's checkpoint.
func TestFormerOwnerChangesNothing(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send(numbered(0, 4)...)
		former := open(t, l.Config(time.Minute, 1))
		old := receiveAll(t, former)
		current := open(t, l.Config(time.Minute, 2))
		now := receiveAll(t, current)
		if bodies(now) != "0 1 2 3" {
			t.Fatalf("the new owner received %q", bodies(now))
		}
		for i, err := range former.Complete(t.Context(), old) {
			if !errors.Is(err, lease.ErrLost) {
				t.Errorf("completing %d: %v, want lease.ErrLost", i, err)
			}
		}
		_ = former.Flush(t.Context())
		wantCheckpoint(t, l, "0", -1)
		complete(t, current, now[0])
		flush(t, current)
		wantCheckpoint(t, l, "0", 0)
	})
}

// TestFormerOwnerThatHeardNothing: where no link tells it, the checkpoint's version does.
func TestFormerOwnerThatHeardNothing(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send(numbered(0, 4)...)
		former := open(t, l.Config(time.Minute, 1))
		old := receiveAll(t, former)
		complete(t, former, old[1]) // held back by the first
		// As another owner would: the checkpoint is written anew, as it is.
		c, _ := l.Checkpoint("0")
		l.SetCheckpoint("0", partitioned.Checkpoint{Sequence: c.Sequence, Offset: c.Offset, Owner: "another"})
		l.FailWith(func(op, _ string) error {
			if op == "ends" {
				return errors.New("it does not come back")
			}
			return nil
		})
		complete(t, former, old[0])
		confirmed, err := former.Confirmed(t.Context())
		if err != nil || len(confirmed) != 2 || !confirmed[0].Undone || !confirmed[1].Undone {
			t.Errorf("Confirmed = %+v, %v; want both undone", confirmed, err)
		}
		wantCheckpoint(t, l, "0", -1)
		for _, err := range former.Extend(t.Context(), old[2:]) {
			if !errors.Is(err, lease.ErrLost) {
				t.Errorf("Extend: %v, want lease.ErrLost", err)
			}
		}
	})
}

// TestLostAnswer: a write whose answer got lost is ours all the same.
func TestLostAnswer(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send(numbered(0, 4)...)
		c := l.Config(time.Minute, 1)
		lossy := &lossyCheckpoints{Checkpoints: c.Checkpoints}
		c.Checkpoints = lossy
		s := open(t, c)
		got := receiveAll(t, s)
		lossy.lose(1)
		complete(t, s, got[:2]...)
		time.Sleep(5 * time.Second)
		complete(t, s, got[2])
		time.Sleep(5 * time.Second)
		wantCheckpoint(t, l, "0", 2)
		if err := errors.Join(s.Extend(t.Context(), got[3:])...); err != nil {
			t.Errorf("Extend: %v", err)
		}
		confirmed, _ := s.Confirmed(t.Context())
		if len(confirmed) != 3 || slices.ContainsFunc(confirmed, func(c lease.Confirmation) bool { return c.Undone }) {
			t.Errorf("Confirmed = %+v, want 3 that are final", confirmed)
		}
	})
}

// TestStoreLosesACheckpoint: one that the store has gone back behind is written again, although nothing more is settled.
func TestStoreLosesACheckpoint(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send("a", "b")
		s := open(t, l.Config(time.Minute, 1))
		got := receiveAll(t, s)
		complete(t, s, got[0])
		flush(t, s)
		older, _ := l.Checkpoint("0")
		complete(t, s, got[1])
		flush(t, s)
		l.SetCheckpoint("0", older.Checkpoint)
		time.Sleep(2 * time.Minute)
		wantCheckpoint(t, l, "0", 1)
	})
}

// lossyCheckpoints loses the answers to writes.
type lossyCheckpoints struct {
	partitioned.Checkpoints
	mu sync.Mutex
	n  int
}

func (c *lossyCheckpoints) lose(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n = n
}

func (c *lossyCheckpoints) Store(ctx context.Context, partition string, to partitioned.Checkpoint, version string) (string, error) {
	version, err := c.Checkpoints.Store(ctx, partition, to, version)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.n > 0 {
		c.n--
		return "", errors.New("the answer got lost")
	}
	return version, err
}

// TestHeldBack: what waits for one event is bounded, and its partition goes on when that is settled.
func TestHeldBack(t *testing.T) {
	world(t, 2, func(t *testing.T, l *leasetest.Log) {
		for _, body := range numbered(0, 100) {
			l.SendTo("0", partitioned.Event{Body: []byte(body)})
		}
		c := l.Config(time.Minute, 1)
		c.MaxHeldBack = 20
		s := open(t, c)
		var slow *lease.Lease
		seen := 0
		for range 60 {
			got, err := s.Receive(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range got {
				seen++
				if slow == nil {
					slow = l
					continue
				}
				complete(t, s, l)
			}
			if slow != nil {
				if err := errors.Join(s.Extend(t.Context(), []*lease.Lease{slow})...); err != nil {
					t.Fatal(err)
				}
			}
		}
		if seen < 21 || seen > 50 {
			t.Errorf("%d of 100 events were handed out while the first is not settled; want 20 and a few", seen)
		}
		if b := backlog(t, s); !b.HeldBackFull || b.HeldBackBy != slow.ID {
			t.Errorf("Backlog = %+v; want it full, because of %s", b, slow.ID)
		}
		l.SendTo("1", partitioned.Event{Body: []byte("other")})
		if got := receiveAll(t, s); bodies(got) != "other" {
			t.Errorf("received %q, want what is in the other partition", bodies(got))
		}
		complete(t, s, slow)
		flush(t, s)
		if got := receiveAll(t, s); len(got) != 100-seen {
			t.Errorf("received %d events after that, want %d", len(got), 100-seen)
		}
	})
}

// TestPartitionsAdded: new partitions are found.
func TestPartitionsAdded(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(10*time.Minute, 1))
		l.Send("a")
		if got := receiveAll(t, s); bodies(got) != "a" {
			t.Fatalf("received %q", bodies(got))
		}
		l.AddPartitions(2)
		l.SendTo("2", partitioned.Event{Body: []byte("b")})
		time.Sleep(time.Minute)
		if got := receiveAll(t, s); bodies(got) != "b" {
			t.Errorf("received %q from the new partition", bodies(got))
		}
		if b := backlog(t, s); b.Messages != 2 {
			t.Errorf("Backlog().Messages = %d, want 2", b.Messages)
		}
	})
}

// TestMadeAnew: a log that was deleted and made anew is read from its beginning, whether it is noticed while it is read, or only when a source is
// opened, and whether it is shorter than before or longer by then. Its events are others, whatever their numbers.
func TestMadeAnew(t *testing.T) {
	for name, test := range map[string]struct {
		restart bool
		events  int
	}{
		"shorter": {false, 2}, "longer": {false, 8}, "shorter, while away": {true, 2}, "longer, while away": {true, 8},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, 1, func(t *testing.T, l *leasetest.Log) {
				s := open(t, l.Config(10*time.Minute, 1))
				l.Send(numbered(0, 5)...)
				before := receiveAll(t, s)
				complete(t, s, before...)
				flush(t, s)
				if test.restart {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				l.Recreate()
				l.Send(numbered(0, test.events)...)
				if test.restart {
					s = open(t, l.Config(10*time.Minute, 2))
				}
				time.Sleep(time.Minute)
				after := receiveAll(t, s)
				if want := strings.Join(numbered(0, test.events), " "); bodies(after) != want {
					t.Fatalf("received %q, want %q", bodies(after), want)
				}
				for _, b := range before {
					for _, a := range after {
						if a.ID == b.ID {
							t.Errorf("event %s has the id of one of the former log", a.ID)
						}
					}
				}
				complete(t, s, after...)
				flush(t, s)
				wantCheckpoint(t, l, "0", int64(test.events)-1)
			})
		})
	}
}

// TestCheckpointBeyondTheEnd is told, and read from the beginning.
func TestCheckpointBeyondTheEnd(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send("a", "b")
		l.SetCheckpoint("0", partitioned.Checkpoint{Sequence: 1000, Offset: "100000"})
		s := open(t, l.Config(10*time.Minute, 1))
		if b := backlog(t, s); b.Messages != 1 {
			t.Errorf("Backlog().Messages = %d, want 1: there is something", b.Messages)
		}
		// What a log says of itself can be a while old.
		if got, err := s.Receive(t.Context(), 10); len(got) > 0 || err == nil || !strings.Contains(err.Error(), "before its checkpoint at 1000") {
			t.Errorf("Receive = %d events, %v; want to be told", len(got), err)
		}
		time.Sleep(2 * time.Minute)
		if got := receiveAll(t, s); bodies(got) != "a b" {
			t.Errorf("received %q", bodies(got))
		}
		wantNotice(t, s, "before its checkpoint at 1000")
	})
}

// TestExpired: events that are gone before they were dispatched are told of, and passed over.
func TestExpired(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send(numbered(0, 10)...)
		l.SetCheckpoint("0", partitioned.Checkpoint{Sequence: 2, Offset: "200"})
		l.Truncate("0", 7)
		s := open(t, l.Config(10*time.Minute, 1))
		if b := backlog(t, s); b.Messages != 3 {
			t.Errorf("Backlog().Messages = %d, want 3", b.Messages)
		}
		got := receiveAll(t, s)
		if bodies(got) != "7 8 9" {
			t.Errorf("received %q", bodies(got))
		}
		wantNotice(t, s, "4 events of partition 0")
		complete(t, s, got...)
		flush(t, s)
		wantCheckpoint(t, l, "0", 9)
	})
}

func wantNotice(t *testing.T, s lease.Source, text string) {
	t.Helper()
	b := backlog(t, s)
	if len(b.Notices) != 1 || !errors.Is(b.Notices[0], lease.ErrReset) || !strings.Contains(b.Notices[0].Error(), text) {
		t.Errorf("Notices = %v, want one with %q", b.Notices, text)
	}
	if b := backlog(t, s); len(b.Notices) != 0 {
		t.Errorf("Notices = %v, told twice", b.Notices)
	}
}

// TestSetBackByHand: a checkpoint that a person has changed counts, forwards and backwards.
func TestSetBackByHand(t *testing.T) {
	for name, test := range map[string]struct {
		to   int64
		want string
	}{"back": {1, "2 3 4 5 6 7 8 9"}, "forward": {6, "7 8 9"}} {
		t.Run(name, func(t *testing.T) {
			world(t, 1, func(t *testing.T, l *leasetest.Log) {
				s := open(t, l.Config(10*time.Minute, 1))
				l.Send(numbered(0, 10)...)
				got := receiveAll(t, s)
				complete(t, s, got[:4]...)
				flush(t, s)
				l.SetCheckpoint("0", partitioned.Checkpoint{Sequence: test.to, Offset: fmt.Sprint(100 * test.to)})
				time.Sleep(5 * time.Minute) // a lease that nobody extends is looked after all the same
				if again := receiveAll(t, s); bodies(again) != test.want {
					t.Errorf("received %q, want %q", bodies(again), test.want)
				}
			})
		})
	}
}

// TestPartOfTheLogFails: the other partitions go on, and the backlog tells.
func TestPartOfTheLogFails(t *testing.T) {
	world(t, 3, func(t *testing.T, l *leasetest.Log) {
		broken := fmt.Errorf("the partition is on fire: %w", lease.ErrUnauthorized)
		l.FailWith(func(op, partition string) error {
			if op == "read" && partition == "1" {
				return broken
			}
			return nil
		})
		s := open(t, l.Config(10*time.Minute, 1))
		l.Send(numbered(0, 9)...)
		if got := receiveAll(t, s); len(got) != 6 {
			t.Errorf("received %d events, want the 6 of the other partitions", len(got))
		}
		if b := backlog(t, s); !errors.Is(b.Problem, broken) || !strings.Contains(b.Problem.Error(), "partition 1 of") {
			t.Errorf("Problem = %v, want that of partition 1", b.Problem)
		}
		l.FailWith(nil)
		time.Sleep(time.Minute)
		if got := receiveAll(t, s); len(got) != 3 {
			t.Errorf("received %d events after it was mended, want 3", len(got))
		}
		if b := backlog(t, s); b.Problem != nil {
			t.Errorf("Problem = %v after it was mended", b.Problem)
		}
	})
}

// TestAllFail: then Receive does, and recovers.
func TestAllFail(t *testing.T) {
	world(t, 3, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(10*time.Minute, 1))
		l.Send("a", "b", "c")
		held := receiveAll(t, s)
		l.FailWith(func(string, string) error { return lease.ErrThrottled })
		l.Detach(errors.New("cut off"))
		time.Sleep(20 * time.Second)
		if _, err := s.Receive(t.Context(), 10); !errors.Is(err, lease.ErrThrottled) {
			t.Errorf("Receive: %v, want lease.ErrThrottled", err)
		}
		l.FailWith(nil)
		time.Sleep(time.Minute)
		l.Send("d", "e")
		if got := receiveAll(t, s); len(got) != 2 {
			t.Errorf("received %q after it was mended", bodies(got))
		}
		complete(t, s, held...) // nobody has taken them
		flush(t, s)
	})
}

// TestNoCheckpointsNoEvents: events are not handed out on the word of nobody. What is held is lost in the end.
func TestNoCheckpointsNoEvents(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(time.Minute, 1))
		l.Send("a")
		held := receiveAll(t, s)
		l.FailWith(func(op, _ string) error {
			if op == "load" || op == "store" {
				return lease.ErrUnauthorized
			}
			return nil
		})
		time.Sleep(40 * time.Second)
		l.Send("b")
		if got, err := s.Receive(t.Context(), 10); len(got) > 0 || !errors.Is(err, lease.ErrUnauthorized) {
			t.Errorf("Receive = %d events, %v; want lease.ErrUnauthorized", len(got), err)
		}
		if held[0].Valid() {
			if errs := s.Extend(t.Context(), held); len(errs) != 1 || errors.Is(errs[0], lease.ErrLost) {
				t.Errorf("Extend: %v, want why", errs)
			}
		}
		l.FailWith(nil)
		time.Sleep(time.Minute)
		if got := receiveAll(t, s); len(got) != 2 {
			t.Errorf("received %q after it was mended", bodies(got))
		}
	})
}

// TestPoisonIsCopiedOnce, whatever happens after the copy.
func TestPoisonIsCopiedOnce(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(time.Minute, 1))
		l.SendTo("0", partitioned.Event{Body: []byte("bad"), Properties: map[string]string{"k": "v"}})
		got := receiveAll(t, s)
		poison := []lease.Poisoned{{Lease: got[0], Reason: "why", Attempts: 3, Job: "job"}}
		if err := errors.Join(s.Poison(t.Context(), poison)...); err != nil {
			t.Fatal(err)
		}
		if errs := s.Poison(t.Context(), poison); len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
			t.Errorf("Poison again: %v, want lease.ErrLost", errs)
		}
		flush(t, s)
		wantCheckpoint(t, l, "0", 0)
		copies := l.Poisoned()
		if len(copies) != 1 || copies[0].Lease.Properties["k"] != "v" || copies[0].Reason != "why" || copies[0].Sequence != 0 || copies[0].Partition != "0" {
			t.Errorf("the copies are %+v", copies)
		}
	})
}
