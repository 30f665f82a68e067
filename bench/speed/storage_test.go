package speed

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const (
	storedMessages = 50
	storedPayload  = 64 << 10
	tinyPayload    = 16
)

// BenchmarkStorage measures how many bytes etcd writes into its log over the whole life of a message with a large payload, until its Job has been
// deleted, by how the payload reaches the containers. What as many messages with tiny payloads cost is not the payload's doing.
func BenchmarkStorage(b *testing.B) {
	w := newWhole(b)
	server := servers.RunRedis(b, servers.RedisOptions{})
	queue := redis.NewClient(must(redis.ParseURL(server.URL()))(b))
	b.Cleanup(func() { _ = queue.Close() })
	for b.Loop() {
		rows := [][]string{{"payload", "bytes/message", "with 16 bytes", "of the payload", "all/payload", "share/payload"}}
		for _, mode := range []jobs.PayloadMode{jobs.PayloadEnv, jobs.PayloadSecret, jobs.PayloadAsFile} {
			tiny := w.storedFor(queue, server.URL(), mode, tinyPayload)
			all := w.storedFor(queue, server.URL(), mode, storedPayload)
			share := (all - tiny) / (storedPayload - tinyPayload)
			rows = append(rows, []string{
				string(mode), fmt.Sprintf("%.0f", all), fmt.Sprintf("%.0f", tiny), fmt.Sprintf("%.0f", all-tiny),
				fmt.Sprintf("%.2f", all/storedPayload), fmt.Sprintf("%.2f", share),
			})
			b.ReportMetric(share, string(mode)+"-written/payload")
		}
		b.Logf("bytes that etcd writes for a message of %d bytes, whole life (%d messages)\n%s", storedPayload, storedMessages, table(rows))
	}
	b.ReportMetric(0, "ns/op")
}

// storedFor is how many bytes etcd writes for each message with a payload of a size.
func (w *whole) storedFor(queue *redis.Client, url string, mode jobs.PayloadMode, size int) float64 {
	w.Helper()
	namespace := w.readyNamespace()
	w.fill(queue, namespace, storedMessages, func(int) string { return randomText(size) })
	p := w.leading(namespace)

	before := w.etcdWrote()
	w.createTemplate(namespace, url, map[string]string{"source": "redis-streams", "stream": namespace, "payload": string(mode)})
	w.until("the messages to be completed", 2*time.Minute, func() bool {
		return must(queue.XLen(w.Context(), namespace).Result())(w.B) == 0
	})
	w.until("the Jobs to be marked", time.Minute, func() bool {
		marked := must(w.client.BatchV1().Jobs(namespace).List(w.Context(), metav1.ListOptions{LabelSelector: jobs.LabelSettled}))(w.B)
		return len(marked.Items) == storedMessages
	})
	p.stop()
	w.removeJobs(namespace)
	return (w.etcdWrote() - before) / storedMessages
}

// randomText is text that nothing could make smaller.
func randomText(size int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	text := make([]byte, size)
	for i := range text {
		text[i] = letters[rand.IntN(len(letters))]
	}
	return string(text)
}
