package partitioned_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConformance checks the engine alone, on a log in memory. That of a real source is in its package.
func TestConformance(t *testing.T) {
	var n atomic.Int64
	leasetest.Run(t, leasetest.Harness{
		Lease:  600 * time.Millisecond,
		Binary: true,
		NewQueue: func(leasetest.T) leasetest.Queue {
			return newQueue(leasetest.NewLog(fmt.Sprintf("log-%d", n.Add(1)), 3))
		},
		NotApplicable: map[string]string{
			"MissingQueue":     "a log in memory always exists",
			"WrongCredentials": "a log in memory has none",
			"ServerRestart":    "a log in memory has no server",
		},
	})
}

func newQueue(l *leasetest.Log) leasetest.Queue {
	var level atomic.Int64
	config := func(d time.Duration) partitioned.Config {
		return l.Config(d, level.Add(1))
	}
	return leasetest.Queue{
		Source: func(t leasetest.T, d time.Duration) lease.Source { return open(t, config(d)) },
		Send:   func(_ leasetest.T, bodies ...string) { l.Send(bodies...) },
		Poisoned: func(leasetest.T) []string {
			var bodies []string
			for _, c := range l.Poisoned() {
				bodies = append(bodies, string(c.Lease.Body))
			}
			return bodies
		},
		BrokenPoison: func(t leasetest.T, d time.Duration) lease.Source {
			l.FailWith(func(op, _ string) error {
				if op == "copy" {
					return errors.New("the poison queue is out of order")
				}
				return nil
			})
			return open(t, config(d))
		},
		SendUnreadable: func(leasetest.T) {
			l.SendTo("0", partitioned.Event{Unreadable: fmt.Errorf("not bytes: %w", lease.ErrUnreadable)})
		},
	}
}

func open(t leasetest.T, c partitioned.Config) *partitioned.Source {
	t.Helper()
	s := partitioned.New(c)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}
