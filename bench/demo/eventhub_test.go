package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/google/go-cmp/cmp"
)

// The demo must not call done what is not: this plays the part of Lighterman, and leaves something each time.
func TestEventHubLeft(t *testing.T) {
	t.Parallel()
	q, err := startEventHub(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.close() })
	h := q.(*eventHub)

	payloads := make([]string, 5)
	for i := range payloads {
		payloads[i] = payload(i)
	}
	var mu sync.Mutex
	ids := make([]string, len(payloads))
	err = h.send(t.Context(), payloads, func(i int, id string, _ time.Time) {
		mu.Lock()
		defer mu.Unlock()
		ids[i] = id
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"0/0/", "1/0/", "2/0/", "3/0/", "0/1/"} {
		if !strings.HasPrefix(ids[i], want) {
			t.Errorf("the id of message %d is %q, want %s…", i, ids[i], want)
		}
	}

	blobs, err := container.NewClientFromConnectionString(h.storage.ConnectionString(), hubContainer, nil)
	if err == nil {
		_, err = blobs.Create(t.Context(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		do   func(ctx context.Context) error
		want left
	}{
		{nothing, left{5, 0, "checkpoints/last events -1/1, -1/0, -1/0, -1/0, poisoned 0"}},
		{h.passes("0", 1), left{3, 0, "checkpoints/last events 1/1, -1/0, -1/0, -1/0, poisoned 0"}},
		{h.passes("1", 0), left{2, 0, "checkpoints/last events 1/1, 0/0, -1/0, -1/0, poisoned 0"}},
		{h.passes("2", 0), left{1, 0, "checkpoints/last events 1/1, 0/0, 0/0, -1/0, poisoned 0"}},
		{h.passes("3", 0), left{0, 0, "checkpoints/last events 1/1, 0/0, 0/0, 0/0, poisoned 0"}},
		{h.passes("3", 2), left{2, 0, "checkpoints/last events 1/1, 0/0, 0/0, 2/0, poisoned 0"}},
		{h.poisons, left{2, 1, "checkpoints/last events 1/1, 0/0, 0/0, 2/0, poisoned 1"}},
	} {
		if err := step.do(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := h.left(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, got, cmp.AllowUnexported(left{})); diff != "" {
			t.Errorf("what is left (-want +got):\n%s", diff)
		}
	}
}

func nothing(context.Context) error { return nil }

// passes has the checkpoint of a partition moved to an event.
func (h *eventHub) passes(partition string, sequence int64) func(context.Context) error {
	return func(ctx context.Context) error {
		offset := fmt.Sprint(sequence)
		return h.checkpoints.SetCheckpoint(ctx, azeventhubs.Checkpoint{
			FullyQualifiedNamespace: h.broker.Addr(), EventHubName: hubName, ConsumerGroup: hubGroup,
			PartitionID: partition, SequenceNumber: &sequence, Offset: &offset,
		}, nil)
	}
}

// poisons puts a message into the poison queue.
func (h *eventHub) poisons(ctx context.Context) error {
	queue := h.queues.NewQueueClient(hubPoison)
	if _, err := queue.Create(ctx, nil); err != nil {
		return err
	}
	_, err := queue.EnqueueMessage(ctx, "{}", nil)
	return err
}
