package speed

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const (
	// pairs of rounds, one of lighterman and one of the plain loop, close together and now one first, now the other, so that
	// what else happens on the machine strikes both.
	pairs = 10
	// roundJobs is how many Jobs a round creates.
	roundJobs = 1500
	// trialJobs is how many Jobs each number of workers of the plain loop is tried with, trialRounds times.
	trialJobs   = 1000
	trialRounds = 2
	// settle is how long the API server is left alone before each round.
	settle = 2 * time.Second
)

// round is one measurement.
type round struct {
	rate      float64 // Jobs a second
	cpu       float64 // milliseconds of the process a Job
	serverCPU float64 // milliseconds of the API server a Job
	requests  float64 // requests to the API server a Job
}

// BenchmarkJobsFromRedis compares how many Jobs a second lighterman creates for messages that wait in a Redis stream with a plain loop
// of a typed client, at its best number of workers, that creates the same Jobs on the same API server.
func BenchmarkJobsFromRedis(b *testing.B) {
	a := newArena(b)
	server := servers.RunRedis(b, servers.RedisOptions{})
	queue := redis.NewClient(must(redis.ParseURL(server.URL()))(b))
	b.Cleanup(func() { _ = queue.Close() })
	for b.Loop() {
		a.dispatcherRound(queue, server.URL(), trialJobs) // to warm up
		workers := a.bestWorkers()
		var dispatcher, plain []round
		var ratios []float64
		var each []string
		for n := range pairs {
			var d, p round
			if n%2 == 0 {
				d = a.dispatcherRound(queue, server.URL(), roundJobs)
				p = a.loopRound(workers, roundJobs)
			} else {
				p = a.loopRound(workers, roundJobs)
				d = a.dispatcherRound(queue, server.URL(), roundJobs)
			}
			dispatcher, plain = append(dispatcher, d), append(plain, p)
			ratios = append(ratios, d.rate/p.rate)
			each = append(each, fmt.Sprintf("%.0f/%.0f", d.rate, p.rate))
		}
		b.Logf("pairs: %s Jobs/s", strings.Join(each, ", "))
		d, p, ratio := medians(dispatcher), medians(plain), median(ratios)
		b.Logf("dispatcher %.0f Jobs/s, plain loop %.0f Jobs/s (%d workers), ratio %.2f (medians of %d pairs of rounds of %d Jobs)",
			d.rate, p.rate, workers, ratio, pairs, roundJobs)
		b.Logf("CPU a Job: dispatcher %.2f ms, plain loop %.2f ms (%.2f times); API server %.2f ms under the dispatcher, %.2f ms under the loop; %.2f API requests a Job",
			d.cpu, p.cpu, d.cpu/p.cpu, d.serverCPU, p.serverCPU, d.requests)
		b.ReportMetric(d.rate, "dispatcher-Jobs/s")
		b.ReportMetric(p.rate, "loop-Jobs/s")
		b.ReportMetric(ratio, "ratio")
		b.ReportMetric(d.cpu, "dispatcher-CPU-ms/Job")
		b.ReportMetric(p.cpu, "loop-CPU-ms/Job")
		b.ReportMetric(d.requests, "API-requests/Job")
	}
	b.ReportMetric(0, "ns/op")
}

// bestWorkers finds the number of workers at which the plain loop is fastest.
func (a *arena) bestWorkers() int {
	a.Helper()
	choices := []int{8, 16, 32, 64}
	rates := make(map[int][]float64)
	for range trialRounds {
		for _, workers := range choices {
			rates[workers] = append(rates[workers], a.loopRound(workers, trialJobs).rate)
		}
	}
	best := choices[0]
	for _, workers := range choices {
		if median(rates[workers]) > median(rates[best]) {
			best = workers
		}
	}
	a.Logf("plain loop by workers: 8: %.0f, 16: %.0f, 32: %.0f, 64: %.0f Jobs/s; %d it is",
		median(rates[8]), median(rates[16]), median(rates[32]), median(rates[64]), best)
	return best
}

// loopRound lets the plain loop create Jobs.
func (a *arena) loopRound(workers, count int) round {
	a.Helper()
	namespace := a.newNamespace()
	l := a.loop(namespace, workers, count)
	r := a.measure(l.process, namespace, count, 0, l.begin)
	l.await("done")
	if err := l.in.Close(); err != nil {
		a.Fatal(err)
	}
	<-l.done
	if l.err != nil {
		a.Fatalf("the plain loop: %v", l.err)
	}
	a.deleteJobs(namespace)
	return r
}

// dispatcherRound lets lighterman create Jobs, from when their messages appear in the queue.
func (a *arena) dispatcherRound(queue *redis.Client, url string, count int) round {
	a.Helper()
	namespace := a.newNamespace()
	a.createTemplate(namespace, url, map[string]string{"source": "redis-streams", "stream": namespace})
	p := a.lighterman(namespace)
	send := func(count int) {
		// All appear at once.
		_, err := queue.TxPipelined(a.Context(), func(tx redis.Pipeliner) error {
			for n := range count {
				tx.XAdd(a.Context(), &redis.XAddArgs{Stream: namespace, Values: []string{"data", payload(n)}})
			}
			return nil
		})
		if err != nil {
			a.Fatal(err)
		}
	}
	// Its first Job tells that lighterman leads, knows the template and reads the stream.
	send(1)
	a.waitForJobs(namespace, 1)
	r := a.measure(p, namespace, count, 1, func() { send(count) })
	// It must not see the Jobs go: it would count that as failed attempts.
	p.stop()
	if err := queue.Del(a.Context(), namespace).Err(); err != nil {
		a.Fatal(err)
	}
	a.deleteJobs(namespace)
	return r
}

// measure takes the time from begin until there are count Jobs more than there were.
func (a *arena) measure(p *process, namespace string, count, before int, begin func()) round {
	a.Helper()
	// The API server has just deleted the Jobs of the last round, and has work from that.
	time.Sleep(settle)
	loadBefore, cpuBefore, began := a.load(), p.cpu(), time.Now()
	begin()
	a.waitForJobs(namespace, before+count)
	took, cpu, loadAfter := time.Since(began), p.cpu()-cpuBefore, a.load()
	each := func(total float64) float64 { return total / float64(count) }
	return round{
		rate:      float64(count) / took.Seconds(),
		cpu:       each(milliseconds(cpu)),
		serverCPU: each(milliseconds(loadAfter.cpu - loadBefore.cpu)),
		requests:  each(float64(loadAfter.requests - loadBefore.requests)),
	}
}

// medians are those of each figure by itself.
func medians(rounds []round) round {
	of := func(figure func(round) float64) float64 {
		var values []float64
		for _, r := range rounds {
			values = append(values, figure(r))
		}
		return median(values)
	}
	return round{
		rate:      of(func(r round) float64 { return r.rate }),
		cpu:       of(func(r round) float64 { return r.cpu }),
		serverCPU: of(func(r round) float64 { return r.serverCPU }),
		requests:  of(func(r round) float64 { return r.requests }),
	}
}
