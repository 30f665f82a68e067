package partitioned_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// lateAnswer is a store whose answer to the first conditional write of a claim comes when the context has just ended.
type lateAnswer struct {
	partitioned.Checkpoints
	after func()
	n     int
}

func (c *lateAnswer) Store(ctx context.Context, p string, to partitioned.Checkpoint, v string) (string, error) {
	version, err := c.Checkpoints.Store(ctx, p, to, v)
	if c.n++; c.n == 2 {
		c.after()
	}
	return version, err
}

// stale answers Ends once with what was the truth a moment ago.
type stale struct {
	partitioned.Log
	once atomic.Bool
	by   int64
}

func (s *stale) Ends(ctx context.Context, p string) (partitioned.Ends, error) {
	e, err := s.Log.Ends(ctx, p)
	if s.once.CompareAndSwap(true, false) {
		e.Last -= s.by
	}
	return e, err
}

// fewer hides all partitions but the first.
type fewer struct {
	partitioned.Log
	on atomic.Bool
}

func (f *fewer) Describe(ctx context.Context) (partitioned.Description, error) {
	d, err := f.Log.Describe(ctx)
	if f.on.Load() && err == nil {
		d.Partitions = d.Partitions[:1]
	}
	return d, err
}

func (f *fewer) Ends(ctx context.Context, p string) (partitioned.Ends, error) {
	if f.on.Load() && p != "0" {
		return partitioned.Ends{}, errors.New("no such partition")
	}
	return f.Log.Ends(ctx, p)
}

// TestBacklogBeforeTheStart: the backlog can be read while events that are passed over are in the window, and nobody receives.
func TestBacklogBeforeTheStart(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		cfg := l.Config(10*time.Minute, 1)
		cfg.Start.At = time.Now().Add(time.Hour)
		l.Send("0")
		l.SetCheckpoint("0", partitioned.Checkpoint{Sequence: 0, Offset: "0"})
		s := open(t, cfg)
		receiveAll(t, s) // opens
		l.Send(numbered(1, 6)...)
		time.Sleep(100 * time.Millisecond)
		if b := backlog(t, s); b.Messages != 0 {
			t.Errorf("Backlog().Messages = %d, want 0", b.Messages)
		}
	})
}

// TestCheckpointMovesWhileItIsLoaded: a former owner that settles something in that moment does not make the log seem to be another.
func TestCheckpointMovesWhileItIsLoaded(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		old := open(t, l.Config(10*time.Minute, 1))
		l.Send(numbered(0, 10)...)
		got := receiveAll(t, old)
		complete(t, old, got...)
		flush(t, old)
		wantCheckpoint(t, l, "0", 9)
		var once sync.Once
		l.FailWith(func(op, _ string) error {
			if op == "load" {
				once.Do(func() {
					// the store is slow, and the former owner goes on meanwhile
					l.Send("10", "11")
					time.Sleep(10 * time.Millisecond)
					got, _ := old.Receive(t.Context(), 10)
					_ = old.Complete(t.Context(), got)
					time.Sleep(2 * time.Second)
					c, _ := l.Checkpoint("0")
					t.Logf("the former owner settled %q, and its checkpoint is at %d", bodies(got), c.Sequence)
				})
			}
			return nil
		})
		s := open(t, l.Config(10*time.Minute, 2))
		again := receiveAll(t, s)
		time.Sleep(10 * time.Second)
		again = append(again, receiveAll(t, s)...)
		if len(again) != 0 {
			t.Errorf("received %q again; notices %v", bodies(again), backlog(t, s).Notices)
		}
	})
}

// TestFormerOwnerOfALogMadeAnew: a reader that the log does not let read does not set back the checkpoint of the one it does.
func TestFormerOwnerOfALogMadeAnew(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		old := open(t, l.Config(10*time.Minute, 1))
		l.Send("x")
		receiveAll(t, old)
		s := open(t, l.Config(10*time.Minute, 2))
		complete(t, s, receiveAll(t, s)...)
		time.Sleep(5 * time.Minute) // old is at its longest delay
		time.Sleep(time.Second)
		l.Recreate()
		l.Send(numbered(0, 10)...)
		var n int
		for range 120 {
			got, _ := s.Receive(t.Context(), 100)
			n += len(got)
			complete(t, s, got...)
			time.Sleep(time.Second)
		}
		c, _ := l.Checkpoint("0")
		if n != 10 {
			t.Errorf("%d events were handed out, want 10; checkpoint %+v, notices of the old: %v", n, c, backlog(t, old).Notices)
		}
	})
}

// TestMadeAnewOnce: what several parts notice is acted on once.
func TestMadeAnewOnce(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(10*time.Minute, 1))
		l.Send(numbered(0, 10)...)
		complete(t, s, receiveAll(t, s)...)
		flush(t, s)
		time.Sleep(time.Second)
		l.Recreate()
		backlog(t, s)
		l.Send(numbered(0, 5)...)
		var n int
		for range 300 {
			got, _ := s.Receive(t.Context(), 100) // it tells of the log that has gone
			n += len(got)
			complete(t, s, got...)
			time.Sleep(time.Second)
		}
		if n != 5 {
			t.Errorf("%d handed out, want 5", n)
		}
	})
}

// TestExpiredWhileOurs: events that expire before they are read are told of, and are no backlog.
func TestExpiredWhileOurs(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(10*time.Minute, 1))
		l.Send(numbered(0, 10)...)
		got, err := s.Receive(t.Context(), 1)
		for len(got) == 0 && err == nil {
			got, err = s.Receive(t.Context(), 1)
		}
		time.Sleep(time.Second)
		l.Truncate("0", 10)
		complete(t, s, got...)
		rest := receiveAll(t, s)
		complete(t, s, rest...)
		flush(t, s)
		time.Sleep(time.Hour)
		receiveAll(t, s)
		b := backlog(t, s)
		if b.Messages != 0 || len(b.Notices) == 0 {
			t.Errorf("got %q and %q; the log is empty, and Backlog is %+v", bodies(got), bodies(rest), b)
		}
	})
}

// TestBacklogOfWhatIsPassedOver: events before the time to begin at are no backlog, once there is a checkpoint either.
func TestBacklogOfWhatIsPassedOver(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		l.Send(numbered(0, 10)...)
		time.Sleep(time.Minute)
		cfg := l.Config(10*time.Minute, 1)
		cfg.Start.At = time.Now()
		s := open(t, cfg)
		before := backlog(t, s)
		receiveAll(t, s)
		time.Sleep(time.Hour)
		if b := backlog(t, s); b.Messages != 0 {
			t.Errorf("Messages = %d before it was opened and %d after, want 0", before.Messages, b.Messages)
		}
	})
}

// TestMadeAnewWhileItIsClaimed: a claim that goes through all the same does not keep what is of the former log.
func TestMadeAnewWhileItIsClaimed(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		cfg := l.Config(10*time.Minute, 1)
		cfg.Checkpoints = &lateAnswer{Checkpoints: cfg.Checkpoints, after: func() {
			l.Recreate()
			l.Send("new 0", "new 1", "new 2")
			time.Sleep(8 * time.Second) // the next survey is at 30 s
		}}
		s := open(t, cfg)
		receiveAll(t, s)
		time.Sleep(23500 * time.Millisecond) // about 25 s
		l.Send("old 0")
		var all []*lease.Lease
		for range 30 {
			got, _ := s.Receive(t.Context(), 10) // it tells of the log that has gone
			all = append(all, got...)
			complete(t, s, got...)
			time.Sleep(10 * time.Second)
		}
		if bodies(all) != "new 0 new 1 new 2" {
			t.Errorf("received %s", bodies(all))
		}
		wantCheckpoint(t, l, "0", 2)
	})
}

// TestPartitionsAddedWithLatest: what came before a new partition was found is new, too.
func TestPartitionsAddedWithLatest(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		cfg := l.Config(10*time.Minute, 1)
		cfg.Start.Latest = true
		s := open(t, cfg)
		receiveAll(t, s)
		l.AddPartitions(1)
		l.SendTo("1", partitioned.Event{Body: []byte("a")}, partitioned.Event{Body: []byte("b")})
		time.Sleep(time.Minute)
		if got := receiveAll(t, s); len(got) != 2 {
			t.Errorf("received %q of the added partition, want both", bodies(got))
		}
	})
}

// TestWaitingIsBounded: what waits for another attempt is kept in memory, and bounded.
func TestWaitingIsBounded(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		s := open(t, l.Config(10*time.Minute, 1))
		l.Send(numbered(0, 40000)...)
		n := 0
		for range 400 {
			got, _ := s.Receive(t.Context(), 100)
			n += len(got)
			for _, l := range got {
				if err := errors.Join(s.Requeue(t.Context(), []lease.Return{{Lease: l, Delay: time.Hour}})...); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n > 11000 {
			t.Errorf("%d events wait in memory, with their bodies", n)
		}
	})
}

// TestStaleEnds: what a log says of itself can be a while old, and is not believed at once.
func TestStaleEnds(t *testing.T) {
	world(t, 1, func(t *testing.T, l *leasetest.Log) {
		cfg := l.Config(10*time.Minute, 1)
		st := &stale{Log: cfg.Log, by: 1}
		cfg.Log = st
		s := open(t, cfg)
		l.Send(numbered(0, 10)...)
		complete(t, s, receiveAll(t, s)...)
		flush(t, s)
		time.Sleep(time.Hour) // the Jobs are long gone
		l.Send("10")
		complete(t, s, receiveAll(t, s)...)
		flush(t, s)
		st.once.Store(true)
		backlog(t, s)
		if got := receiveAll(t, s); len(got) != 0 {
			t.Errorf("received %q again", bodies(got))
		}
	})
}

// TestFewerPartitions: those that a log does not have any more are forgotten.
func TestFewerPartitions(t *testing.T) {
	world(t, 4, func(t *testing.T, l *leasetest.Log) {
		cfg := l.Config(10*time.Minute, 1)
		f := &fewer{Log: cfg.Log}
		cfg.Log = f
		s := open(t, cfg)
		l.Send(numbered(0, 8)...)
		complete(t, s, receiveAll(t, s)...)
		flush(t, s)
		time.Sleep(time.Minute)
		f.on.Store(true)
		l.Recreate()
		time.Sleep(10 * time.Minute)
		l.SendTo("0", partitioned.Event{Body: []byte("a")})
		got := receiveAll(t, s)
		time.Sleep(time.Hour)
		if b := backlog(t, s); b.Problem != nil {
			t.Errorf("received %q; an hour later the problem is %v", bodies(got), b.Problem)
		}
	})
}

// TestLatestOfAPartitionThatFails: the latest event is the one of when the partition was first looked at.
func TestLatestOfAPartitionThatFails(t *testing.T) {
	world(t, 2, func(t *testing.T, l *leasetest.Log) {
		cfg := l.Config(10*time.Minute, 1)
		cfg.Start.Latest = true
		var broken atomic.Bool
		broken.Store(true)
		l.FailWith(func(op, p string) error {
			if op == "load" && p == "1" && broken.Load() {
				return errors.New("broken")
			}
			return nil
		})
		s := open(t, cfg)
		receiveAll(t, s)
		time.Sleep(10 * time.Minute)
		l.SendTo("0", partitioned.Event{Body: []byte("a")})
		l.SendTo("1", partitioned.Event{Body: []byte("b")})
		time.Sleep(time.Minute)
		broken.Store(false)
		time.Sleep(time.Minute)
		if got := receiveAll(t, s); bodies(got) != "a b" && bodies(got) != "b a" {
			t.Errorf("received %q, want a and b, which were sent 10 minutes after it began", bodies(got))
		}
	})
}
