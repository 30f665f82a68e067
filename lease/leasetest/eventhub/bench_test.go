package eventhub

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
)

// BenchmarkReceive tells how many small events a second one client can receive from 8 partitions, as fast as it can.
func BenchmarkReceive(b *testing.B) {
	const partitions, stored = 8, 20_000
	broker := Run(b, Options{})
	must(b, broker.CreateHub("hub", partitions))
	for i := range partitions {
		must(b, broker.Send("hub", fmt.Sprint(i), numbered(stored)...))
	}
	consumer := newConsumer(b, broker, "$Default")
	ctx := context.WithoutCancel(b.Context())
	b.ReportAllocs()
	total := 0
	for b.Loop() {
		var wg sync.WaitGroup
		for i := range partitions {
			r, err := consumer.NewPartitionClient(fmt.Sprint(i), &azeventhubs.PartitionClientOptions{
				StartPosition: azeventhubs.StartPosition{Earliest: ptr(true)}, Prefetch: 2000,
			})
			must(b, err)
			wg.Go(func() {
				for n := 0; n < stored; {
					events, err := r.ReceiveEvents(ctx, 500, nil)
					if err != nil {
						b.Error(err)
						break
					}
					n += len(events)
				}
				_ = r.Close(ctx)
			})
		}
		wg.Wait()
		total += partitions * stored
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
}
