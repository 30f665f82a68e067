package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/checkpoints"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"golang.org/x/sync/errgroup"

	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

const (
	hubName       = "tasks"
	hubGroup      = "lighterman" // as the template says; we ourselves read as $Default
	hubPartitions = 4
	hubContainer  = "lighterman-checkpoints" // the default of the annotation checkpoint-container
	hubPoison     = hubName + "-poison"      // the default of the annotation poison-queue
)

// eventHub is an event hub of a broker that is part of this process. Its checkpoints and its poison queue are in Azurite.
type eventHub struct {
	broker      *eventhub.Broker
	storage     *servers.Azurite
	producer    *azeventhubs.ProducerClient
	consumer    *azeventhubs.ConsumerClient
	checkpoints *checkpoints.BlobStore
	queues      *azqueue.ServiceClient
}

func startEventHub(ctx context.Context, dir string) (_ queue, err error) {
	h := &eventHub{}
	defer func() {
		if err != nil {
			_ = h.close()
		}
	}()
	if h.storage, err = startAzurite(ctx, dir, servers.AzuriteOptions{Blob: true}); err != nil {
		return nil, err
	}
	if h.broker, err = eventhub.Start(ctx, eventhub.Options{}); err != nil {
		return nil, err
	}
	if err := h.broker.CreateHub(hubName, hubPartitions, hubGroup); err != nil {
		return nil, err
	}
	return h, h.connect()
}

// connect makes the clients. None of them sends anything yet.
func (h *eventHub) connect() (err error) {
	if h.producer, err = azeventhubs.NewProducerClientFromConnectionString(h.broker.ConnectionString(), hubName, nil); err != nil {
		return fmt.Errorf("connecting to the event hub: %w", err)
	}
	h.consumer, err = azeventhubs.NewConsumerClientFromConnectionString(h.broker.ConnectionString(), hubName, azeventhubs.DefaultConsumerGroup, nil)
	if err != nil {
		return fmt.Errorf("connecting to the event hub: %w", err)
	}
	blobs, err := container.NewClientFromConnectionString(h.storage.ConnectionString(), hubContainer, nil)
	if err != nil {
		return fmt.Errorf("connecting to Azurite: %w", err)
	}
	if h.checkpoints, err = checkpoints.NewBlobStore(blobs, nil); err != nil {
		return fmt.Errorf("connecting to Azurite: %w", err)
	}
	if h.queues, err = azqueue.NewServiceClientFromConnectionString(h.storage.ConnectionString(), nil); err != nil {
		return fmt.Errorf("connecting to Azurite: %w", err)
	}
	return nil
}

func (h *eventHub) secret() map[string]string {
	return map[string]string{"event-hubs": h.broker.ConnectionString(), "storage": h.storage.ConnectionString()}
}

// send spreads the payloads over the partitions.
func (h *eventHub) send(ctx context.Context, payloads []string, sent func(int, string, time.Time)) error {
	group, ctx := errgroup.WithContext(ctx)
	for p := range hubPartitions {
		var which []int
		for i := p; i < len(payloads); i += hubPartitions {
			which = append(which, i)
		}
		group.Go(func() error { return h.sendTo(ctx, strconv.Itoa(p), payloads, which, sent) })
	}
	return group.Wait()
}

// sendTo puts some of the payloads into a partition, and reads them back: their ids are made of what only the hub tells, and not to whoever sends.
func (h *eventHub) sendTo(ctx context.Context, partition string, payloads []string, which []int, sent func(int, string, time.Time)) error {
	earliest := true
	reader, err := h.consumer.NewPartitionClient(partition, &azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest},
	})
	if err != nil {
		return fmt.Errorf("reading partition %s: %w", partition, err)
	}
	defer func() { _ = reader.Close(ctx) }() // what is left of it ends with the client

	const most = 100 // that is far from all that a batch can hold
	for some := range slices.Chunk(which, most) {
		at := time.Now()
		if err := h.sendBatch(ctx, partition, payloads, some); err != nil {
			return fmt.Errorf("sending %d events to partition %s: %w", len(some), partition, err)
		}
		events, err := reader.ReceiveEvents(ctx, len(some), nil)
		if err != nil {
			return fmt.Errorf("reading partition %s: %w", partition, err)
		}
		for n, i := range some {
			event := events[n]
			if string(event.Body) != payloads[i] {
				return fmt.Errorf("event %d of partition %s is %q, and %q was sent", event.SequenceNumber, partition, event.Body, payloads[i])
			}
			sent(i, partitioned.MessageID(partition, event.SequenceNumber, *event.EnqueuedTime), at)
		}
	}
	return nil
}

func (h *eventHub) sendBatch(ctx context.Context, partition string, payloads []string, which []int) error {
	batch, err := h.producer.NewEventDataBatch(ctx, &azeventhubs.EventDataBatchOptions{PartitionID: &partition})
	if err != nil {
		return err
	}
	for _, i := range which {
		if err := batch.AddEventData(&azeventhubs.EventData{Body: []byte(payloads[i])}, nil); err != nil {
			return err
		}
	}
	return h.producer.SendEventDataBatch(ctx, batch, nil)
}

// left looks at where the checkpoints are: events stay in a hub, whatever becomes of them.
func (h *eventHub) left(ctx context.Context) (left, error) {
	var l left
	list, err := h.checkpoints.ListCheckpoints(ctx, h.broker.Addr(), hubName, hubGroup, nil)
	if err != nil {
		return l, fmt.Errorf("listing the checkpoints: %w", err)
	}
	reached := make(map[string]int64, len(list))
	for _, c := range list {
		reached[c.PartitionID] = *c.SequenceNumber
	}
	var words []string
	for p := range hubPartitions {
		partition := strconv.Itoa(p)
		ends, err := h.consumer.GetPartitionProperties(ctx, partition, nil)
		if err != nil {
			return l, fmt.Errorf("asking partition %s what is left: %w", partition, err)
		}
		at, last := reached[partition], ends.LastEnqueuedSequenceNumber
		if _, ok := reached[partition]; !ok {
			at = ends.BeginningSequenceNumber - 1
		}
		l.messages += max(last-at, at-last) // beyond the end is as wrong
		words = append(words, fmt.Sprintf("%d/%d", at, last))
	}
	if l.poisoned, err = countMessages(ctx, h.queues, hubPoison); err != nil {
		return l, err
	}
	l.words = fmt.Sprintf("checkpoints/last events %s, poisoned %d", strings.Join(words, ", "), l.poisoned)
	return l, nil
}

func (h *eventHub) close() error {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Should the clients fail to say goodbye, it does not matter: their connections end with the broker.
	if h.producer != nil {
		_ = h.producer.Close(ctx)
	}
	if h.consumer != nil {
		_ = h.consumer.Close(ctx)
	}
	if h.broker != nil {
		h.broker.Close()
	}
	if h.storage != nil {
		h.storage.Close()
	}
	return nil
}
