package speed

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/redis/go-redis/v9"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// BenchmarkLatencyRedis measures how long it takes from enqueuing a message onto an idle Redis stream until its Job is there.
func BenchmarkLatencyRedis(b *testing.B) {
	a := newArena(b)
	server := servers.RunRedis(b, servers.RedisOptions{})
	queue := redis.NewClient(must(redis.ParseURL(server.URL()))(b))
	b.Cleanup(func() { _ = queue.Close() })
	for b.Loop() {
		namespace := a.newNamespace()
		a.createTemplate(namespace, server.URL(), map[string]string{"source": "redis-streams", "stream": namespace})
		a.latency(latencyRun{
			queue: "Redis stream", namespace: namespace, samples: 300, pause: 100 * time.Millisecond, spread: 600 * time.Millisecond,
			enqueue: func(body string) string {
				return must(queue.XAdd(b.Context(), &redis.XAddArgs{Stream: namespace, Values: []string{"data", body}}).Result())(b)
			},
		})
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkLatencyStorageQueue measures the same for an Azure Storage queue, with Azurite as the service.
func BenchmarkLatencyStorageQueue(b *testing.B) {
	a := newArena(b)
	server := servers.RunAzurite(b, servers.AzuriteOptions{})
	for b.Loop() {
		namespace := a.newNamespace()
		queue := must(azqueue.NewQueueClientFromConnectionString(server.ConnectionString(), namespace, nil))(b)
		must(queue.Create(b.Context(), nil))(b)
		a.createTemplate(namespace, server.ConnectionString(), map[string]string{"source": "azure-storage-queue", "queue": namespace})
		a.latency(latencyRun{
			// The pause is long enough for the looks at the empty queue to become as rare as they get.
			queue: "Storage queue", namespace: namespace, samples: 120, pause: 600 * time.Millisecond, spread: 500 * time.Millisecond,
			enqueue: func(body string) string {
				sent := must(queue.EnqueueMessage(b.Context(), body, nil))(b)
				return *sent.Messages[0].MessageID
			},
		})
	}
	b.ReportMetric(0, "ns/op")
}

// latencyRun is one series of messages, one at a time.
type latencyRun struct {
	queue, namespace string
	samples          int
	// pause is how long nothing happens before a message, and spread how much longer that is by chance.
	pause, spread time.Duration
	// enqueue returns the id of the message.
	enqueue func(body string) (id string)
}

func (a *arena) latency(r latencyRun) {
	a.Helper()
	p := a.lighterman(r.namespace)
	list := must(a.client.BatchV1().Jobs(r.namespace).List(a.Context(), metav1.ListOptions{}))(a.B)
	events := must(a.client.BatchV1().Jobs(r.namespace).Watch(a.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(a.B)
	defer events.Stop()

	// The first ones open connections, here and there.
	const warmUp = 3
	var taken []time.Duration
	for n := range warmUp + r.samples {
		began := time.Now()
		id := r.enqueue(payload(n))
		a.awaitJob(events, id)
		if n >= warmUp {
			taken = append(taken, time.Since(began))
		}
		time.Sleep(r.pause + rand.N(r.spread))
	}
	p.stop()

	slices.Sort(taken)
	p50, p90, p99, longest := percentile(taken, 50), percentile(taken, 90), percentile(taken, 99), taken[len(taken)-1]
	a.Logf("idle %s to created Job: p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms (%d messages)",
		r.queue, milliseconds(p50), milliseconds(p90), milliseconds(p99), milliseconds(longest), len(taken))
	a.ReportMetric(milliseconds(p50), "p50-ms")
	a.ReportMetric(milliseconds(p90), "p90-ms")
	a.ReportMetric(milliseconds(p99), "p99-ms")
	a.ReportMetric(milliseconds(longest), "max-ms")
}

// awaitJob waits until a message's Job appears.
func (a *arena) awaitJob(events watch.Interface, messageID string) {
	a.Helper()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		select {
		case event, ok := <-events.ResultChan():
			if !ok {
				a.Fatal("the watch of the Jobs ended")
			}
			job, isJob := event.Object.(*batchv1.Job)
			if isJob && event.Type == watch.Added && job.Annotations[jobs.AnnotationMessageID] == messageID {
				return
			}
		case <-limit.C:
			a.Fatalf("message %s has no Job after a minute", messageID)
		}
	}
}
