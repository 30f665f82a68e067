package eventhub

import (
	"context"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick are retries that a test can wait for.
var quick = azeventhubs.RetryOptions{MaxRetries: 5, RetryDelay: 5 * time.Millisecond, MaxRetryDelay: 50 * time.Millisecond}

// impatient does not retry.
var impatient = azeventhubs.RetryOptions{MaxRetries: -1}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newBroker(t testing.TB, o Options) *Broker {
	t.Helper()
	b := Run(t, o)
	must(t, b.CreateHub("hub", 2, "other"))
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newConsumer(t testing.TB, b *Broker, group string) *azeventhubs.ConsumerClient {
	t.Helper()
	return consumerWith(t, b.ConnectionString(), group, &azeventhubs.ConsumerClientOptions{RetryOptions: quick})
}

func consumerWith(t testing.TB, connection, group string, o *azeventhubs.ConsumerClientOptions) *azeventhubs.ConsumerClient {
	t.Helper()
	c, err := azeventhubs.NewConsumerClientFromConnectionString(connection, "hub", group, o)
	must(t, err)
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

func newProducer(t testing.TB, b *Broker) *azeventhubs.ProducerClient {
	t.Helper()
	return producerWith(t, b.ConnectionString(), &azeventhubs.ProducerClientOptions{RetryOptions: quick})
}

func producerWith(t testing.TB, connection string, o *azeventhubs.ProducerClientOptions) *azeventhubs.ProducerClient {
	t.Helper()
	p, err := azeventhubs.NewProducerClientFromConnectionString(connection, "hub", o)
	must(t, err)
	t.Cleanup(func() { _ = p.Close(context.WithoutCancel(t.Context())) })
	return p
}

// receiver opens a partition from the start, unless the options say otherwise.
func receiver(t testing.TB, c *azeventhubs.ConsumerClient, partition string, o *azeventhubs.PartitionClientOptions) *azeventhubs.PartitionClient {
	t.Helper()
	if o == nil {
		o = &azeventhubs.PartitionClientOptions{}
	}
	if o.StartPosition == (azeventhubs.StartPosition{}) {
		o.StartPosition.Earliest = ptr(true)
	}
	p, err := c.NewPartitionClient(partition, o)
	must(t, err)
	t.Cleanup(func() { _ = p.Close(context.WithoutCancel(t.Context())) })
	return p
}

func receive(t testing.TB, p *azeventhubs.PartitionClient, n int) []*azeventhubs.ReceivedEventData {
	t.Helper()
	ctx := testContext(t)
	var events []*azeventhubs.ReceivedEventData
	for len(events) < n {
		got, err := p.ReceiveEvents(ctx, n-len(events), nil)
		if err != nil {
			t.Fatalf("receiving, after %d of %d events: %v", len(events), n, err)
		}
		events = append(events, got...)
	}
	return events
}

func send(t testing.TB, p *azeventhubs.ProducerClient, o *azeventhubs.EventDataBatchOptions, events ...*azeventhubs.EventData) error {
	t.Helper()
	ctx := testContext(t)
	batch, err := p.NewEventDataBatch(ctx, o)
	if err != nil {
		return err
	}
	for _, e := range events {
		must(t, batch.AddEventData(e, nil))
	}
	return p.SendEventDataBatch(ctx, batch, nil)
}

func ptr[T any](v T) *T { return &v }

// numbered makes n events whose bodies are small and all different.
func numbered(n int) []Event {
	events := make([]Event, n)
	for i := range events {
		events[i].Body = []byte(time.Duration(i).String())
	}
	return events
}
