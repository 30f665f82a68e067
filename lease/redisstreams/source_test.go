package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// onRedis is a source on a stream of a real server, and a client to look at it from outside.
func onRedis(t *testing.T, server *servers.Redis, stream string, d time.Duration) (*Source, *redis.Client) {
	t.Helper()
	opts, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return newSource(t, Config{ConnectionString: server.URL(), Stream: stream, LeaseDuration: d}), client
}

func send(t *testing.T, client *redis.Client, stream string, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		if err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"data", body}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// receiveAll receives until it has n messages.
func receiveAll(t *testing.T, s *Source, n int) []*lease.Lease {
	t.Helper()
	var all []*lease.Lease
	for deadline := time.Now().Add(10 * time.Second); len(all) < n; {
		got, err := s.Receive(t.Context(), n-len(all))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, got...)
		if time.Now().After(deadline) {
			t.Fatalf("received %d messages, want %d", len(all), n)
		}
	}
	return all
}

func wantBacklog(t *testing.T, s *Source, want lease.Backlog) {
	t.Helper()
	if got, err := s.Backlog(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Backlog = %+v, %v; want %+v", got, err, want)
	}
}

func TestStream(t *testing.T) {
	server := servers.RunRedis(t, servers.RedisOptions{})

	t.Run("the group and the stream are made again", func(t *testing.T) {
		s, client := onRedis(t, server, "deleted", time.Hour)
		send(t, client, "deleted", "a")
		leases := receiveAll(t, s, 1)
		if err := client.Del(t.Context(), "deleted").Err(); err != nil {
			t.Fatal(err)
		}
		for _, errs := range [][]error{s.Extend(t.Context(), leases), s.Complete(t.Context(), leases)} {
			if len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
				t.Errorf("an operation after the stream was deleted = %v, want lease.ErrLost", errs)
			}
		}
		wantBacklog(t, s, lease.Backlog{})
		send(t, client, "deleted", "b") // before there is a group again
		wantBacklog(t, s, lease.Backlog{Messages: 1})
		if got := receiveAll(t, s, 1); string(got[0].Body) != "b" {
			t.Errorf("received %q, want b", got[0].Body)
		}
	})

	t.Run("a stream that is deleted under a waiting read is made again", func(t *testing.T) {
		s, client := onRedis(t, server, "vanishing", time.Hour)
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := s.Receive(t.Context(), 1)
			done <- err
		}()
		for client.XInfoConsumers(t.Context(), "vanishing", defaultGroup).Err() == nil &&
			client.ClientList(t.Context()).Err() == nil {
			list, _ := client.ClientList(t.Context()).Result()
			if strings.Contains(list, "cmd=xreadgroup") {
				break
			}
		}
		if err := client.Del(t.Context(), "vanishing").Err(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Receive: %v", err)
		}
		send(t, client, "vanishing", "a")
		receiveAll(t, s, 1)
	})

	t.Run("other groups lose nothing", func(t *testing.T) {
		s, client := onRedis(t, server, "shared", time.Hour)
		send(t, client, "shared", "a", "b")
		if err := client.XGroupCreate(t.Context(), "shared", "other", "0").Err(); err != nil {
			t.Fatal(err)
		}
		leases := receiveAll(t, s, 2)
		if errs := s.Complete(t.Context(), leases[:1]); errs != nil {
			t.Fatal(errs)
		}
		if errs := s.Poison(t.Context(), []lease.Poisoned{{Lease: leases[1], Reason: "a reason", Attempts: 4, Job: "job"}}); errs != nil {
			t.Fatal(errs)
		}
		wantBacklog(t, s, lease.Backlog{})
		if n := client.XLen(t.Context(), "shared").Val(); n != 2 {
			t.Errorf("the stream holds %d entries, want both for the other group", n)
		}
		poisoned := client.XRange(t.Context(), "shared:poison", "-", "+").Val()
		want := map[string]any{
			"data": "b", "lighterman-id": leases[1].ID, "lighterman-reason": "a reason",
			"lighterman-attempts": "4", "lighterman-job": "job",
		}
		if len(poisoned) != 1 || fmt.Sprint(poisoned[0].Values) != fmt.Sprint(want) {
			t.Errorf("the poison stream holds %v, want %v", poisoned, want)
		}
	})

	t.Run("alone in the stream, what is completed is deleted", func(t *testing.T) {
		s, client := onRedis(t, server, "alone", time.Hour)
		send(t, client, "alone", "a", "b")
		if errs := s.Complete(t.Context(), receiveAll(t, s, 2)); errs != nil {
			t.Fatal(errs)
		}
		if n := client.XLen(t.Context(), "alone").Val(); n != 0 {
			t.Errorf("the stream holds %d entries, want none", n)
		}
	})

	t.Run("fields become body and properties", func(t *testing.T) {
		s, client := onRedis(t, server, "fields", time.Hour)
		for _, values := range [][]string{{"data", "1", "trace", "abc"}, {"anything", "2"}, {"x", "secret-3", "y", "secret-4"}} {
			if err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: "fields", Values: values}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		leases := receiveAll(t, s, 3)
		if l := leases[0]; string(l.Body) != "1" || fmt.Sprint(l.Properties) != "map[trace:abc]" {
			t.Errorf("body %q, properties %v; want 1 and trace", l.Body, l.Properties)
		}
		if l := leases[1]; string(l.Body) != "2" || l.Properties != nil {
			t.Errorf("body %q, properties %v; want 2 and none", l.Body, l.Properties)
		}
		err := leases[2].Unreadable
		if !errors.Is(err, lease.ErrUnreadable) || !strings.Contains(err.Error(), `"x", "y"`) || strings.Contains(err.Error(), "secret") {
			t.Errorf("Unreadable = %v; want the names of the fields, and not their values", err)
		}
		if got := time.Since(leases[0].EnqueuedAt); got < 0 || got > time.Minute {
			t.Errorf("EnqueuedAt is %s ago", got)
		}
	})

	t.Run("backlog where Redis has lost count", func(t *testing.T) {
		s, client := onRedis(t, server, "uncounted", time.Hour)
		const sent = 2500
		pipe := client.Pipeline()
		for range sent {
			pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: "uncounted", Values: []string{"data", "x"}})
		}
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantBacklog(t, s, lease.Backlog{Messages: sent}) // no group yet
		leases := receiveAll(t, s, 10)
		wantBacklog(t, s, lease.Backlog{Messages: sent, Leased: 10})
		s.Complete(t.Context(), leases[5:])
		if groups := client.XInfoGroups(t.Context(), "uncounted").Val(); groups[0].Lag != -1 {
			t.Fatalf("Redis knows the lag (%d), so this test tests nothing", groups[0].Lag)
		}
		wantBacklog(t, s, lease.Backlog{Messages: sent - 5, Leased: 5})
		rest := receiveAll(t, s, sent-10-300)
		s.Complete(t.Context(), rest[1:])
		wantBacklog(t, s, lease.Backlog{Messages: 306, Leased: 6})
		// A group with pending entries alone must still wake from zero.
		pending := receiveAll(t, s, 300)
		wantBacklog(t, s, lease.Backlog{Messages: 306, Leased: 306})
		s.Complete(t.Context(), slices.Concat(pending, leases[:5], rest[:1]))
		wantBacklog(t, s, lease.Backlog{})
	})

	t.Run("entries that were deleted while pending are not handed out", func(t *testing.T) {
		s, client := onRedis(t, server, "trimmed", 200*time.Millisecond)
		send(t, client, "trimmed", "a", "b", "c", "d")
		leases := receiveAll(t, s, 4)
		// One stays leased, one is given back, and both are deleted by somebody.
		s.Requeue(t.Context(), []lease.Return{{Lease: leases[1], Delay: 100 * time.Millisecond}})
		if err := client.XDel(t.Context(), "trimmed", leases[0].ID, leases[1].ID).Err(); err != nil {
			t.Fatal(err)
		}
		if errs := s.Poison(t.Context(), []lease.Poisoned{{Lease: leases[0]}}); len(errs) != 1 || !errors.Is(errs[0], lease.ErrLost) {
			t.Errorf("Poison of a deleted entry = %v, want lease.ErrLost", errs)
		}
		again := receiveAll(t, s, 2)
		got := []string{string(again[0].Body), string(again[1].Body)}
		if slices.Sort(got); !slices.Equal(got, []string{"c", "d"}) {
			t.Errorf("received %q, want c and d", got)
		}
		s.Complete(t.Context(), again)
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			if got, err := s.Receive(t.Context(), 1); err != nil || len(got) > 0 {
				t.Fatalf("Receive = %v, %v; want nothing", got, err)
			}
			if b, _ := s.Backlog(t.Context()); b.Messages == 0 {
				return
			}
		}
		t.Errorf("the deleted entries still count as backlog")
	})

	t.Run("many leases at once", func(t *testing.T) {
		s, client := onRedis(t, server, "many", time.Hour)
		const n = 3 * settleChunk
		pipe := client.Pipeline()
		for i := range n {
			pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: "many", Values: []string{"data", fmt.Sprint(i)}})
		}
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		leases := receiveAll(t, s, n)
		// Every third is far from its neighbours in the batch, so that ranges have much in between.
		var third []*lease.Lease
		for i := 0; i < n; i += 3 {
			third = append(third, leases[i])
		}
		slices.Reverse(third)
		if errs := s.Extend(t.Context(), third); errs != nil {
			t.Fatal(errors.Join(errs...))
		}
		if errs := s.Complete(t.Context(), third); errs != nil {
			t.Fatal(errors.Join(errs...))
		}
		errs := s.Complete(t.Context(), leases)
		for i, err := range errs {
			if (i%3 == 0) != errors.Is(err, lease.ErrLost) || (i%3 != 0 && err != nil) {
				t.Fatalf("Complete of lease %d: %v", i, err)
			}
		}
		wantBacklog(t, s, lease.Backlog{})
	})

	t.Run("consumers do not pile up", func(t *testing.T) {
		var names []string
		for range 3 {
			s, client := onRedis(t, server, "consumers", time.Hour)
			send(t, client, "consumers", "x")
			leases := receiveAll(t, s, 1)
			if len(names) > 0 { // the first keeps its lease
				s.Complete(t.Context(), leases)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			names = nil
			for _, c := range client.XInfoConsumers(t.Context(), "consumers", defaultGroup).Val() {
				names = append(names, c.Name)
			}
		}
		if len(names) != 2 || !slices.Contains(names, returnedConsumer) {
			t.Errorf("consumers are %q; want the one that holds a lease, and %q", names, returnedConsumer)
		}
	})

	t.Run("a key of another type is refused", func(t *testing.T) {
		s, client := onRedis(t, server, "text", time.Hour)
		if err := client.Set(t.Context(), "text", "x", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context()); !errors.Is(err, lease.ErrInvalid) || !strings.Contains(err.Error(), "string") {
			t.Errorf("Check: %v, want lease.ErrInvalid that tells the type", err)
		}
		if _, err := s.Receive(t.Context(), 1); !errors.Is(err, lease.ErrInvalid) {
			t.Errorf("Receive: %v, want lease.ErrInvalid", err)
		}
		if _, err := s.Backlog(t.Context()); !errors.Is(err, lease.ErrInvalid) {
			t.Errorf("Backlog: %v, want lease.ErrInvalid", err)
		}
	})

	t.Run("a requeued message does not wait for the next search", func(t *testing.T) {
		s, client := onRedis(t, server, "prompt", time.Hour)
		send(t, client, "prompt", "a")
		leases := receiveAll(t, s, 1)
		s.Requeue(t.Context(), []lease.Return{{Lease: leases[0]}})
		start := time.Now()
		if got, err := s.Receive(t.Context(), 1); err != nil || len(got) != 1 {
			t.Fatalf("Receive = %v, %v; want the message at once", got, err)
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("Receive took %s", took)
		}
	})
}

func TestServerAway(t *testing.T) {
	server := servers.RunRedis(t, servers.RedisOptions{})
	s, client := onRedis(t, server, "away", time.Hour)
	send(t, client, "away", "a")
	leases := receiveAll(t, s, 1)
	server.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, receiveErr := s.Receive(ctx, 1)
	_, backlogErr := s.Backlog(ctx)
	for what, err := range map[string]error{
		"Receive": receiveErr, "Backlog": backlogErr, "Check": s.Check(ctx), "Extend": errors.Join(s.Extend(ctx, leases)...),
	} {
		if err == nil || lease.Class(err) != "other" {
			t.Errorf("%s without a server: %v (%s), want a passing error", what, err, lease.Class(err))
		}
	}
	if ctx.Err() != nil {
		t.Error("the calls took too long")
	}
}

func TestPermissions(t *testing.T) {
	server := servers.RunRedis(t, servers.RedisOptions{Config: []string{
		"user limited on >pw ~allowed* +@all", "user reader on >pw ~* +@read +@connection",
	}})
	for _, user := range []string{"limited", "reader"} {
		u := strings.Replace(server.URL(), "redis://", "redis://"+user+":pw@", 1)
		s := newSource(t, Config{ConnectionString: u, Stream: "forbidden"})
		_, err := s.Receive(t.Context(), 1)
		if !errors.Is(err, lease.ErrUnauthorized) {
			t.Errorf("%s: Receive: %v, want lease.ErrUnauthorized", user, err)
		}
	}
}
