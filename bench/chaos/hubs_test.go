package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/checkpoints"

	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// Events are sent to the partitions that they are planned for, and can be told by the ids that lighterman must have for them.
func TestEventIDs(t *testing.T) {
	w := &world{broker: eventhub.Run(t, eventhub.Options{})}
	for i := range hubCount {
		if err := w.broker.CreateHub(queueName(eventKind, i), partitionCount); err != nil {
			t.Fatal(err)
		}
	}
	messages := plan(1, eventKind, 100)
	if err := sendToHubs(w.broker)(t.Context(), messages); err != nil {
		t.Fatal(err)
	}
	ids := w.eventIDs()
	if len(ids) != len(messages) {
		t.Errorf("%d events can be told by their ids, want %d", len(ids), len(messages))
	}
	for _, m := range messages {
		if id := ids[m.id]; len(id) == 0 || id[0] != byte('0'+m.partition) {
			t.Errorf("%s, which is for partition %d, has the id %q", m.id, m.partition, id)
		}
	}
}

// A foreign reader has the partitions for as long as it stays, and no longer.
func TestTakePartitions(t *testing.T) {
	const hub = "event-a"
	broker := eventhub.Run(t, eventhub.Options{})
	if err := broker.CreateHub(hub, partitionCount); err != nil {
		t.Fatal(err)
	}
	client, err := azeventhubs.NewConsumerClientFromConnectionString(broker.ConnectionString(), hub, azeventhubs.DefaultConsumerGroup, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.WithoutCancel(t.Context())) })
	level, earliest := int64(28_000_000), true
	read := func(partition string) error {
		reader, err := client.NewPartitionClient(partition, &azeventhubs.PartitionClientOptions{
			OwnerLevel: &level, StartPosition: azeventhubs.StartPosition{Earliest: &earliest},
		})
		if err != nil {
			return err
		}
		defer func() { _ = reader.Close(context.WithoutCancel(t.Context())) }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = reader.ReceiveEvents(ctx, 1, nil)
		return err
	}
	for _, partition := range []string{"1", "3"} {
		if err := broker.Send(hub, partition, eventhub.Event{Body: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	}
	err = takePartitions(t.Context(), broker, hub, []int{0, 3}, func() error {
		err := poll(t.Context(), "the foreign reader", 10*time.Second, func(context.Context) (bool, error) {
			return broker.Receivers(hub, "", "") == 2, nil
		})
		var refused *azeventhubs.Error
		if err := read("3"); !errors.As(err, &refused) || refused.Code != azeventhubs.ErrorCodeOwnershipLost {
			t.Errorf("reading a partition that was taken: %v, want that another has it", err)
		}
		if err := read("1"); err != nil {
			t.Errorf("reading a partition that was not taken: %v", err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := read("3"); err != nil {
		t.Errorf("reading a partition that was given back: %v", err)
	}
}

// Where the partitions end and how far their checkpoints are is read as it is, and checkpoints that are set back are what they were.
func TestCheckpoints(t *testing.T) {
	w := &world{azurite: servers.RunAzurite(t, servers.AzuriteOptions{Blob: true, InMemory: true})}
	if err := w.startHubs(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	hub := queueName(eventKind, 0)
	ends := func() [2]partitionEnd {
		t.Helper()
		all, err := w.partitionEnds(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != hubCount*partitionCount {
			t.Fatalf("there are %d partitions, want %d", len(all), hubCount*partitionCount)
		}
		return [2]partitionEnd(all)
	}
	want := func(what string, first, second partitionEnd) {
		t.Helper()
		first.hub, first.partition = hub, "0"
		second.hub, second.partition = hub, "1"
		if got := ends(); got != [2]partitionEnd{first, second} {
			t.Errorf("%s: %+v, want %+v and %+v", what, got, first, second)
		}
	}
	none := partitionEnd{last: -1, checkpoint: -1}
	want("without events or checkpoints", none, none)
	if before, err := w.storedCheckpoints(t.Context()); err != nil || len(before) != 0 {
		t.Errorf("without a container: %v, %v", before, err)
	}

	if err := w.broker.Send(hub, "0", eventhub.Event{Body: []byte("a")}, eventhub.Event{Body: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	offset := w.broker.Events(hub, "0")[1].Offset
	if _, err := w.checkpoints.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	store, err := checkpoints.NewBlobStore(w.checkpoints, nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(partition string, sequence int64, offset string) {
		t.Helper()
		err := store.SetCheckpoint(t.Context(), azeventhubs.Checkpoint{
			FullyQualifiedNamespace: w.broker.Addr(), EventHubName: hub, ConsumerGroup: strings.ToLower(azeventhubs.DefaultConsumerGroup), PartitionID: partition,
			SequenceNumber: &sequence, Offset: &offset,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	write("0", -1, "-1")
	before, err := w.storedCheckpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begun := partitionEnd{last: 1, checkpoint: -1, lastOffset: offset}
	want("with a checkpoint before the first event", begun, none)
	write("0", 1, offset)
	write("1", 7, "77")
	want("with a checkpoint at the last event, and one beyond it",
		partitionEnd{last: 1, checkpoint: 1, lastOffset: offset, offset: offset}, partitionEnd{last: -1, checkpoint: 7, offset: "77"})
	for _, changed := range []int{2, 0} {
		if n, err := w.setBack(t.Context(), before); err != nil || n != changed {
			t.Errorf("%d checkpoints were set back, want %d: %v", n, changed, err)
		}
		want("set back", begun, none)
	}
}
