package eventhubs

import (
	"bytes"
	"testing"

	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// BenchmarkRead reads a partition of the broker in this process, which is a part of what it costs.
func BenchmarkRead(b *testing.B) {
	broker, of := brokerOnly(b)
	h := openHub(b, of("hub"))
	const all = 100_000
	events := make([]eventhub.Event, all)
	for i := range events {
		events[i] = eventhub.Event{Body: bytes.Repeat([]byte("x"), 200), Properties: map[string]any{"a": "b"}, MessageID: "id"}
	}
	must(b, broker.Send("hub", "0", events...))
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		r := openReader(b, h, "0", partitioned.Start{After: -1}, 1)
		for read := 0; read < all && n < b.N; {
			got, err := r.Read(b.Context(), 1000)
			must(b, err)
			read += len(got)
			n += len(got)
		}
		must(b, r.Close(b.Context()))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
