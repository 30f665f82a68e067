package eventhub

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
)

// TestEverythingAtOnce sends and receives while all kinds of faults happen. Each receiver must see every event of its partition once
// and in order, since the client continues where it was.
func TestEverythingAtOnce(t *testing.T) {
	const events = 150 // for each partition
	b := newBroker(t, Options{IdleTimeout: time.Second})
	patient := azeventhubs.RetryOptions{MaxRetries: 500, RetryDelay: time.Millisecond, MaxRetryDelay: 5 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()

	var wg, disturber sync.WaitGroup
	for _, id := range []string{"0", "1"} {
		p := producerWith(t, b.ConnectionString(), &azeventhubs.ProducerClientOptions{RetryOptions: patient})
		wg.Go(func() {
			for i := 0; i < events && ctx.Err() == nil; i++ {
				batch, err := p.NewEventDataBatch(ctx, &azeventhubs.EventDataBatchOptions{PartitionID: &id})
				if err != nil {
					i--
					continue
				}
				if err = batch.AddEventData(&azeventhubs.EventData{Body: fmt.Append(nil, i)}, nil); err == nil {
					err = p.SendEventDataBatch(ctx, batch, nil)
				}
				if err != nil {
					i-- // again, and perhaps twice
				}
			}
		})
		r := receiver(t, consumerWith(t, b.ConnectionString(), "$Default", &azeventhubs.ConsumerClientOptions{RetryOptions: patient}), id, nil)
		wg.Go(func() {
			for next := int64(0); next < events && ctx.Err() == nil; {
				few, stop := context.WithTimeout(ctx, time.Second)
				got, _ := r.ReceiveEvents(few, 10, nil)
				stop()
				for _, e := range got {
					if e.SequenceNumber != next {
						t.Errorf("partition %s: event %d came after %d", id, e.SequenceNumber, next-1)
					}
					next = e.SequenceNumber + 1
				}
			}
		})
	}
	disturbed, stop := context.WithCancel(ctx)
	disturber.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := 0; disturbed.Err() == nil; i++ {
			<-tick.C
			switch i % 8 {
			case 0:
				b.Detach("hub", "", fmt.Sprint(i%2), condDetachForced)
			case 1:
				b.DetachSenders("hub", "", condDetachForced)
			case 2:
				b.DropConnection()
			case 3:
				b.CloseConnections(condForced)
			case 4:
				b.Throttle(5 * time.Millisecond)
			case 5:
				b.RejectSends(condBusy)
			case 6:
				b.RejectSends("")
			case 7:
				if err := b.Restart(ctx); err != nil {
					t.Error(err)
				}
			}
		}
	})
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(1500 * time.Millisecond): // enough of that
	}
	stop()
	disturber.Wait()
	b.RejectSends("")
	<-done
	if ctx.Err() != nil {
		t.Error("not everything came")
	}
}
