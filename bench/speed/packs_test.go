package speed

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const (
	// packJobs is how many Jobs a round is worth, and packLimit how long it may take: then what was done by then counts.
	packJobs  = 300
	packLimit = time.Minute
)

// packRound is one measurement.
type packRound struct {
	size     int // messages in a pack
	messages int // that were completed
	took     time.Duration
	cpu      map[string]time.Duration
}

func (r packRound) rate() float64 { return float64(r.messages) / r.took.Seconds() }

// cores is how many processors some of those who were measured kept busy.
func (r packRound) cores(names ...string) float64 {
	var sum time.Duration
	for _, name := range names {
		sum += r.cpu[name]
	}
	return sum.Seconds() / r.took.Seconds()
}

// BenchmarkPacks measures how many messages a second go through a whole cluster: from a Redis stream in which they wait into Jobs with so many each, which
// run on simulated nodes, until they are removed from the stream. In a perfect world, packs of n are n times as fast as single messages.
func BenchmarkPacks(b *testing.B) {
	w := newWhole(b)
	server := servers.RunRedis(b, servers.RedisOptions{})
	queue := redis.NewClient(must(redis.ParseURL(server.URL()))(b))
	b.Cleanup(func() { _ = queue.Close() })
	for b.Loop() {
		w.packRound(queue, server.URL(), 1) // to warm up
		var rounds []packRound
		// What packs are compared with is measured before and after, since the machine may be faster at one time than at another.
		for _, size := range []int{1, 10, 100, 1000, 1} {
			rounds = append(rounds, w.packRound(queue, server.URL(), size))
		}
		b.Logf("whole life of messages in packs of n, from Redis, on simulated nodes; processors of %d that were busy\n%s", runtime.NumCPU(), packTable(rounds))
		for _, r := range rounds[1:4] {
			b.ReportMetric(r.rate()/single(rounds)/float64(r.size), fmt.Sprintf("packs-of-%d-ratio/n", r.size))
		}
	}
	b.ReportMetric(0, "ns/op")
}

// packRound lets lighterman work off the messages of one round, from when it sees the template.
func (w *whole) packRound(queue *redis.Client, url string, size int) packRound {
	w.Helper()
	namespace := w.readyNamespace()
	count := size * packJobs
	w.fill(queue, namespace, count, payload)
	p := w.leading(namespace)
	left := func() int { return int(must(queue.XLen(w.Context(), namespace).Result())(w.B)) }
	// The controllers still have work from the last round.
	time.Sleep(settle)

	before, began := w.cpu(p, queue), time.Now()
	w.createTemplate(namespace, url, map[string]string{
		"source": "redis-streams", "stream": namespace, "tasks-per-job": fmt.Sprint(size),
	})
	w.within(packLimit, func() bool { return left() == 0 })
	r := packRound{size: size, messages: count - left(), took: time.Since(began), cpu: w.cpu(p, queue)}
	for name, used := range before {
		r.cpu[name] -= used
	}
	// It must not see the Jobs go: it would count that as failed attempts.
	p.stop()
	if err := queue.Del(w.Context(), namespace).Err(); err != nil {
		w.Fatal(err)
	}
	w.removeJobs(namespace)
	return r
}

// single is the rate without packs.
func single(rounds []packRound) float64 {
	var rates []float64
	for _, r := range rounds {
		if r.size == 1 {
			rates = append(rates, r.rate())
		}
	}
	return median(rates)
}

func packTable(rounds []packRound) string {
	rows := [][]string{{
		"n", "messages", "seconds", "messages/s", "ratio", "ratio/n", "CPU ms/Job",
		"lighterman", "API server", "etcd", "redis", "controllers", "scheduler", "kwok", "benchmark", "others", "idle",
	}}
	for _, r := range rounds {
		ratio := r.rate() / single(rounds)
		known := []string{
			dispatcherCPU, localcluster.APIServer, localcluster.Etcd, redisCPU,
			localcluster.ControllerManager, localcluster.Scheduler, localcluster.Kwok, benchmarkCPU,
		}
		ours, idle := r.cores(known...), r.cores(idleCPU)
		row := []string{
			fmt.Sprint(r.size), fmt.Sprint(r.messages), fmt.Sprintf("%.1f", r.took.Seconds()), fmt.Sprintf("%.0f", r.rate()),
			fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f", ratio/float64(r.size)),
			fmt.Sprintf("%.0f", ours*milliseconds(r.took)/float64(r.messages)*float64(r.size)),
		}
		for _, name := range known {
			row = append(row, fmt.Sprintf("%.2f", r.cores(name)))
		}
		others := max(float64(runtime.NumCPU())-ours-idle, 0)
		rows = append(rows, append(row, fmt.Sprintf("%.2f", others), fmt.Sprintf("%.2f", idle)))
	}
	return table(rows)
}
