package redisstreams

import (
	"context"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A made-up secret; it opens nothing.
const password = "pa:ss/w@rd?#%-d0f3a1"

func TestConformance(t *testing.T) {
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		shared := servers.RunRedis(t, servers.RedisOptions{Password: password})
		leasetest.Run(t, harness(shared.URL(), func(t leasetest.T) leasetest.Queue {
			own := servers.RunRedis(t, servers.RedisOptions{AppendOnly: true})
			q := newQueue(t, own.URL(), "stream")
			q.Restart = func(t leasetest.T) {
				if err := own.Restart(t.Context()); err != nil {
					t.Fatalf("%v", err)
				}
			}
			return q
		}))
	})
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		shared := miniredis.RunT(t)
		shared.RequireAuth(password)
		u := url.URL{Scheme: "redis", User: url.UserPassword("", password), Host: shared.Addr()}
		leasetest.Run(t, harness(u.String(), func(t leasetest.T) leasetest.Queue {
			own := miniredis.NewMiniRedis()
			if err := own.Start(); err != nil {
				t.Fatalf("%v", err)
			}
			t.Cleanup(own.Close)
			q := newQueue(t, "redis://"+own.Addr(), "stream")
			q.Restart = func(t leasetest.T) {
				own.Close() // it keeps its data
				// Close ends the context of blocking reads for good, and after that they would never be answered.
				own.Ctx, own.CtxCancel = context.WithCancel(context.Background()) //nolint:gosec // Close calls it
				if err := own.Restart(); err != nil {
					t.Fatalf("%v", err)
				}
			}
			return q
		}))
	})
}

func harness(connection string, restartable func(leasetest.T) leasetest.Queue) leasetest.Harness {
	var n atomic.Int64
	name := func() string { return fmt.Sprintf("stream-%d", n.Add(1)) }
	return leasetest.Harness{
		Lease:          600 * time.Millisecond,
		Binary:         true,
		NewQueue:       func(t leasetest.T) leasetest.Queue { return newQueue(t, connection, name()) },
		NewRestartable: restartable,
		Missing: func(t leasetest.T) lease.Source {
			return newSource(t, Config{ConnectionString: connection, Stream: name()})
		},
		WrongCredentials: func(t leasetest.T) (lease.Source, string) {
			u, err := url.Parse(connection)
			if err != nil {
				t.Fatalf("%v", err)
			}
			const wrong = "not-the-password"
			u.User = url.UserPassword("", wrong)
			return newSource(t, Config{ConnectionString: u.String(), Stream: name()}), wrong
		},
	}
}

func newSource(t leasetest.T, c Config) *Source {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// newQueue is a stream as producers and people see it, by a client of their own.
func newQueue(t leasetest.T, connection, stream string) leasetest.Queue {
	t.Helper()
	opts, err := redis.ParseURL(connection)
	if err != nil {
		t.Fatalf("%v", err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	add := func(t leasetest.T, values ...string) {
		t.Helper()
		if err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: values}).Err(); err != nil {
			t.Fatalf("XADD: %v", err)
		}
	}
	poison := stream + ":poison"
	return leasetest.Queue{
		Source: func(t leasetest.T, d time.Duration) lease.Source {
			return newSource(t, Config{ConnectionString: connection, Stream: stream, LeaseDuration: d})
		},
		Send: func(t leasetest.T, bodies ...string) {
			for _, body := range bodies {
				add(t, "data", body)
			}
		},
		Poisoned: func(t leasetest.T) []string {
			entries, err := client.XRange(t.Context(), poison, "-", "+").Result()
			if err != nil {
				t.Fatalf("XRANGE: %v", err)
			}
			var bodies []string
			for _, e := range entries {
				body, _ := e.Values["data"].(string)
				bodies = append(bodies, body)
			}
			return bodies
		},
		BrokenPoison: func(t leasetest.T, d time.Duration) lease.Source {
			key := stream + ":broken"
			if err := client.Set(t.Context(), key, "not a stream", 0).Err(); err != nil {
				t.Fatalf("SET: %v", err)
			}
			return newSource(t, Config{ConnectionString: connection, Stream: stream, LeaseDuration: d, PoisonStream: key})
		},
		SendUnreadable: func(t leasetest.T) { add(t, "first", "1", "second", "2") },
	}
}
