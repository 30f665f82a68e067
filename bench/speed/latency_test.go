package speed

import (
	"fmt"
	"maps"
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
			through: func(body string) string {
				bare := "bare-" + namespace
				id := must(queue.XAdd(b.Context(), &redis.XAddArgs{Stream: bare, Values: []string{"data", body}}).Result())(b)
				must(queue.XRange(b.Context(), bare, id, id).Result())(b)
				return id
			},
		})
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkLatencyStorageQueue measures the same for an Azure Storage queue, with Azurite as the service.
func BenchmarkLatencyStorageQueue(b *testing.B) {
	a := newArena(b)
	server := servers.RunAzurite(b, servers.AzuriteOptions{})
	hour := int32(3600) // for the messages taken by hand not to come again
	for b.Loop() {
		namespace := a.newNamespace()
		queue := must(azqueue.NewQueueClientFromConnectionString(server.ConnectionString(), namespace, nil))(b)
		must(queue.Create(b.Context(), nil))(b)
		bare := must(azqueue.NewQueueClientFromConnectionString(server.ConnectionString(), "bare-"+namespace, nil))(b)
		must(bare.Create(b.Context(), nil))(b)
		a.createTemplate(namespace, server.ConnectionString(), map[string]string{"source": "azure-storage-queue", "queue": namespace})
		a.latency(latencyRun{
			// The pause is long enough for the looks at the empty queue to become as rare as they get.
			queue: "Storage queue", namespace: namespace, samples: 120, pause: 600 * time.Millisecond, spread: 500 * time.Millisecond,
			enqueue: func(body string) string {
				sent := must(queue.EnqueueMessage(b.Context(), body, nil))(b)
				return *sent.Messages[0].MessageID
			},
			through: func(body string) string {
				must(bare.EnqueueMessage(b.Context(), body, nil))(b)
				got := must(bare.DequeueMessage(b.Context(), &azqueue.DequeueMessageOptions{VisibilityTimeout: &hour}))(b)
				return *got.Messages[0].MessageID
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
	// through puts a message into a queue that nobody watches, and takes it out again.
	through func(body string) (id string)
}

// latency measures a message's way by lighterman and, in between, that of a message which this process itself puts into a queue,
// takes out at once and creates the Job for. What the latter takes is the machine's own share.
func (a *arena) latency(r latencyRun) {
	a.Helper()
	p := a.lighterman(r.namespace)
	list := must(a.client.BatchV1().Jobs(r.namespace).List(a.Context(), metav1.ListOptions{}))(a.B)
	events := must(a.client.BatchV1().Jobs(r.namespace).Watch(a.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(a.B)
	defer events.Stop()
	made := must(jobs.FromCronJob(template(r.namespace, nil), maps.Clone))(a.B)

	// The first ones open connections, here and there.
	const warmUp = 3
	var dispatched, bare []time.Duration
	for n := range warmUp + r.samples {
		began := time.Now()
		a.awaitJob(events, r.enqueue(payload(n)))
		dispatched = append(dispatched, time.Since(began))

		time.Sleep((r.pause + rand.N(r.spread)) / 2)
		began = time.Now()
		id := r.through(payload(n))
		job := must(plainJob(made, jobs.Identity{Source: "bare", Messages: jobs.NewMessageSet(id), Attempt: 1}, payload(n), began))(a.B)
		must(a.client.BatchV1().Jobs(r.namespace).Create(a.Context(), job, metav1.CreateOptions{}))(a.B)
		a.awaitJob(events, id)
		bare = append(bare, time.Since(began))
		time.Sleep((r.pause + rand.N(r.spread)) / 2)
	}
	p.stop()

	d, m := spreadOf(dispatched[warmUp:]), spreadOf(bare[warmUp:])
	a.Logf("idle %s to created Job: %v (%d messages)", r.queue, d, r.samples)
	a.Logf("the same by hand, without waiting for the message: %v", m)
	a.ReportMetric(milliseconds(d.p50), "p50-ms")
	a.ReportMetric(milliseconds(d.p90), "p90-ms")
	a.ReportMetric(milliseconds(d.p99), "p99-ms")
	a.ReportMetric(milliseconds(d.max), "max-ms")
	a.ReportMetric(milliseconds(m.p50), "by-hand-p50-ms")
	a.ReportMetric(milliseconds(m.p99), "by-hand-p99-ms")
}

// durations says how long things took.
type durations struct{ p50, p90, p99, max time.Duration }

func spreadOf(all []time.Duration) durations {
	slices.Sort(all)
	return durations{percentile(all, 50), percentile(all, 90), percentile(all, 99), all[len(all)-1]}
}

func (d durations) String() string {
	return fmt.Sprintf("p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms",
		milliseconds(d.p50), milliseconds(d.p90), milliseconds(d.p99), milliseconds(d.max))
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
