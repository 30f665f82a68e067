package redisstreams

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const (
	benchBatch   = 5000
	benchPayload = 100
)

// fill puts n messages into the stream, while the clock stands.
func fill(b *testing.B, client *redis.Client, stream string, n int) {
	b.Helper()
	payload := string(make([]byte, benchPayload))
	for n > 0 {
		pipe := client.Pipeline()
		for range min(n, 10_000) {
			pipe.XAdd(b.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"data", payload}})
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		n -= min(n, 10_000)
	}
}

// BenchmarkBare is the loop to compare with: nothing but the client, with no check of who holds what.
func BenchmarkBare(b *testing.B) {
	server := servers.RunRedis(b, servers.RedisOptions{})
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { _ = client.Close() }()
	client.XGroupCreateMkStream(b.Context(), "s", "g", "0")
	fill(b, client, "s", b.N)
	b.ResetTimer()
	for done := 0; done < b.N; {
		streams, err := client.XReadGroup(b.Context(), &redis.XReadGroupArgs{
			Group: "g", Consumer: "c", Streams: []string{"s", ">"}, Count: benchBatch, Block: -1,
		}).Result()
		if err != nil {
			b.Fatal(err)
		}
		ids := make([]string, 0, benchBatch)
		for _, m := range streams[0].Messages {
			ids = append(ids, m.ID)
		}
		pipe := client.Pipeline()
		pipe.XAck(b.Context(), "s", "g", ids...)
		pipe.XDel(b.Context(), "s", ids...)
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		done += len(ids)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkSource(b *testing.B) {
	server := servers.RunRedis(b, servers.RedisOptions{})
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { _ = client.Close() }()
	fill(b, client, "s", b.N)
	s, err := New(Config{ConnectionString: server.URL(), Stream: "s", LeaseDuration: time.Minute})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	b.ResetTimer()
	for done := 0; done < b.N; {
		leases, err := s.Receive(b.Context(), benchBatch)
		if err != nil {
			b.Fatal(err)
		}
		settle(b, s.Complete(b.Context(), leases))
		done += len(leases)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkExtend(b *testing.B) {
	server := servers.RunRedis(b, servers.RedisOptions{})
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { _ = client.Close() }()
	fill(b, client, "s", benchBatch)
	s, err := New(Config{ConnectionString: server.URL(), Stream: "s", LeaseDuration: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var leases []*lease.Lease
	for len(leases) < benchBatch {
		got, err := s.Receive(b.Context(), benchBatch)
		if err != nil {
			b.Fatal(err)
		}
		leases = append(leases, got...)
	}
	b.ResetTimer()
	for done := 0; done < b.N; done += benchBatch {
		settle(b, s.Extend(b.Context(), leases))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leases/s")
}

func settle(b *testing.B, errs []error) {
	b.Helper()
	for _, err := range errs {
		if err != nil {
			b.Fatal(err)
		}
	}
}
