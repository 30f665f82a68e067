package speed

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// lockDuration is lighterman's default.
const lockDuration = 15 * time.Second

// BenchmarkTakeover measures how long no Job is created after the process that leads has been killed, and after it was told to stop. Another
// one stands by. Messages keep coming.
func BenchmarkTakeover(b *testing.B) {
	a := newArena(b)
	server := servers.RunRedis(b, servers.RedisOptions{})
	queue := redis.NewClient(must(redis.ParseURL(server.URL()))(b))
	b.Cleanup(func() { _ = queue.Close() })
	for b.Loop() {
		namespace := a.newNamespace()
		a.createTemplate(namespace, server.URL(), map[string]string{"source": "redis-streams", "stream": namespace})
		created := must(a.client.BatchV1().Jobs(namespace).Watch(b.Context(), metav1.ListOptions{}))(b)
		next := func() {
			began := time.Now()
			b.Helper()
			must(queue.XAdd(b.Context(), &redis.XAddArgs{Stream: namespace, Values: []string{"data", "x"}}).Result())(b)
			for {
				select {
				case event, ok := <-created.ResultChan():
					if !ok {
						b.Fatal("the watch ended")
					}
					if event.Type == watch.Added {
						return
					}
				case <-time.After(time.Minute):
					b.Fatal("no Job within a minute of " + began.Format(time.TimeOnly))
				}
			}
		}
		leader, standby := a.lighterman(namespace), a.lighterman(namespace)
		next()
		for _, how := range []struct {
			name   string
			rounds int
			end    func(*process)
			limit  time.Duration
		}{
			{"kill -9", 6, (*process).kill, lockDuration + 2*time.Second},
			{"SIGTERM", 6, func(p *process) { go p.stop() }, 2 * time.Second},
		} {
			var took []time.Duration
			for range how.rounds {
				if !a.leads(namespace, leader) {
					leader, standby = standby, leader
				}
				a.awaitStandby(standby)
				began := time.Now()
				how.end(leader)
				next()
				took = append(took, time.Since(began))
				<-leader.done
				leader, standby = standby, a.lighterman(namespace)
			}
			slices.Sort(took)
			b.Logf("after %s of the leader, no Job was created for: median %.2f s, max %.2f s (%d times; at most %v is promised)",
				how.name, percentile(took, 50).Seconds(), took[len(took)-1].Seconds(), how.rounds, how.limit)
			b.ReportMetric(took[len(took)-1].Seconds(), "max-s-after-"+strings.ReplaceAll(how.name, " ", ""))
		}
		created.Stop()
	}
	b.ReportMetric(0, "ns/op")
}

// leads reports whether it is the process that holds the lock. Its identity is in its log.
func (a *arena) leads(namespace string, p *process) bool {
	a.Helper()
	lock := must(a.client.CoordinationV1().Leases(namespace).Get(a.Context(), "lighterman", metav1.GetOptions{}))(a.B)
	return strings.Contains(string(p.tail()), fmt.Sprintf("identity=%s", ptr.Deref(lock.Spec.HolderIdentity, "-")))
}

// awaitStandby waits until a process contends for the lock.
func (a *arena) awaitStandby(p *process) {
	a.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(string(p.tail()), "standing by") {
		if time.Now().After(deadline) {
			a.Fatalf("it does not stand by:\n%s", p.tail())
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.done:
			a.Fatalf("it has ended:\n%s", p.tail())
		}
	}
}
