package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/checkpoints"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"golang.org/x/sync/errgroup"

	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// checkpointContainer is where lighterman keeps checkpoints by default.
const checkpointContainer = "lighterman-checkpoints"

// startHubs starts the broker, which runs in this process and breaks on demand, and makes the event hubs. Azurite must run: the checkpoints are there.
func (w *world) startHubs(ctx context.Context) error {
	var err error
	if w.broker, err = eventhub.Start(ctx, eventhub.Options{}); err != nil {
		return err
	}
	w.closing(func() error { w.broker.Close(); return nil })
	for i := range hubCount {
		if err := w.broker.CreateHub(queueName(eventKind, i), partitionCount); err != nil {
			return err
		}
	}
	w.checkpoints, err = container.NewClientFromConnectionString(w.azurite.ConnectionString(), checkpointContainer, nil)
	return err
}

// sendToHubs puts events into their partitions from inside the broker, which no fault hinders.
func sendToHubs(broker *eventhub.Broker) func(context.Context, []message) error {
	return func(_ context.Context, messages []message) error {
		for _, m := range messages {
			e := eventhub.Event{Body: []byte(m.payload()), Properties: map[string]any{idProperty: m.id}}
			if err := broker.Send(m.queue, strconv.Itoa(m.partition), e); err != nil {
				return err
			}
		}
		return nil
	}
}

// idProperty is the property of an event that has the id of its message.
const idProperty = "message"

// A partitionEnd is where a partition ends, and how far its checkpoint has come.
type partitionEnd struct {
	hub, partition   string
	last, checkpoint int64 // sequence numbers; -1 where there is no event, or none is done
	// The offsets belong to them; empty where there is none.
	lastOffset, offset string
}

// lag is how many events wait behind the checkpoint, as far as it knows.
func (p partitionEnd) lag() int64 { return max(p.last-p.checkpoint, 0) }

// partitionEnds reads the checkpoints as any other program would: with the SDK's own store.
func (w *world) partitionEnds(ctx context.Context) ([]partitionEnd, error) {
	store, err := checkpoints.NewBlobStore(w.checkpoints, nil)
	if err != nil {
		return nil, err
	}
	var ends []partitionEnd
	for i := range hubCount {
		name := queueName(eventKind, i)
		list, err := store.ListCheckpoints(ctx, w.broker.Addr(), name, strings.ToLower(azeventhubs.DefaultConsumerGroup), nil)
		if err != nil && !bloberror.HasCode(err, bloberror.ContainerNotFound) {
			return nil, fmt.Errorf("reading the checkpoints of %s: %w", name, err)
		}
		for p := range partitionCount {
			end := partitionEnd{hub: name, partition: strconv.Itoa(p), checkpoint: -1}
			properties, err := w.broker.Properties(name, end.partition)
			if err != nil {
				return nil, err
			}
			if end.last = properties.Last; end.last >= 0 {
				end.lastOffset = properties.LastOffset
			}
			for _, c := range list {
				if c.PartitionID == end.partition && c.SequenceNumber != nil {
					end.checkpoint = *c.SequenceNumber
					if c.Offset != nil && *c.Offset != partitioned.NoOffset {
						end.offset = *c.Offset
					}
				}
			}
			ends = append(ends, end)
		}
	}
	return ends, nil
}

// eventIDs are the ids that lighterman must know the events by, by the ids of their messages.
func (w *world) eventIDs() map[string]string {
	ids := make(map[string]string)
	for i := range hubCount {
		for p := range partitionCount {
			partition := strconv.Itoa(p)
			for _, e := range w.broker.Events(queueName(eventKind, i), partition) {
				ids[text(e.Properties[idProperty])] = partitioned.MessageID(partition, e.SequenceNumber, e.EnqueuedAt)
			}
		}
	}
	return ids
}

// foreignLevel is the owner level of the foreign reader: above every term.
const foreignLevel = int64(1) << 40

// takePartitions takes some partitions of an event hub for a while, as another program does that reads in the name of the same consumer group, and then
// leaves them. Nothing that it reads is any harm.
func takePartitions(ctx context.Context, broker *eventhub.Broker, hub string, partitions []int, wait func() error) error {
	client, err := azeventhubs.NewConsumerClientFromConnectionString(broker.ConnectionString(), hub, azeventhubs.DefaultConsumerGroup, nil)
	if err != nil {
		return err
	}
	reading, stop := context.WithCancel(ctx)
	var group errgroup.Group
	level, latest := foreignLevel, true
	for _, p := range partitions {
		group.Go(func() error {
			partition, err := client.NewPartitionClient(strconv.Itoa(p), &azeventhubs.PartitionClientOptions{
				OwnerLevel: &level, StartPosition: azeventhubs.StartPosition{Latest: &latest},
			})
			if err != nil {
				return err
			}
			for err == nil {
				_, err = partition.ReceiveEvents(reading, 1, nil)
			}
			if reading.Err() != nil {
				err = nil
			}
			return errors.Join(err, partition.Close(context.WithoutCancel(ctx)))
		})
	}
	err = wait()
	stop()
	return errors.Join(err, group.Wait(), client.Close(context.WithoutCancel(ctx)))
}

// storedCheckpoints are all checkpoints as they are kept, by the name of their blob.
func (w *world) storedCheckpoints(ctx context.Context) (map[string]map[string]*string, error) {
	found := make(map[string]map[string]*string)
	pages := w.checkpoints.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Include: container.ListBlobsInclude{Metadata: true}})
	for pages.More() {
		page, err := pages.NextPage(ctx)
		if bloberror.HasCode(err, bloberror.ContainerNotFound) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the checkpoints: %w", err)
		}
		for _, b := range page.Segment.BlobItems {
			if b.Name != nil && strings.Contains(*b.Name, "/checkpoint/") {
				found[*b.Name] = b.Metadata
			}
		}
	}
	return found, nil
}

// setBack makes the checkpoints what they were before, and returns how many were not.
func (w *world) setBack(ctx context.Context, before map[string]map[string]*string) (int, error) {
	now, err := w.storedCheckpoints(ctx)
	if err != nil {
		return 0, err
	}
	changed := 0
	for name, metadata := range now {
		old, known := before[name]
		if known && maps.EqualFunc(metadata, old, func(a, b *string) bool { return a != nil && b != nil && *a == *b }) {
			continue
		}
		changed++
		blob := w.checkpoints.NewBlobClient(name)
		if known {
			_, err = blob.SetMetadata(ctx, old, nil)
		} else {
			_, err = blob.Delete(ctx, nil)
		}
		if err != nil {
			return changed, fmt.Errorf("setting back %s: %w", name, err)
		}
	}
	return changed, nil
}

// again does something until a time has passed, with pauses in between.
func (c *chaos) again(ctx context.Context, from, to time.Duration, do func()) error {
	until := time.Now().Add(c.dice.between(2500*time.Millisecond, 4500*time.Millisecond))
	for time.Now().Before(until) {
		do()
		if err := pause(ctx, min(c.dice.between(from, to), time.Until(until))); err != nil {
			return err
		}
	}
	return nil
}

// anyHub picks an event hub, or all of them.
func (c *chaos) anyHub() string {
	if i := c.dice.below(hubCount + 1); i < hubCount {
		return queueName(eventKind, i)
	}
	return ""
}

// somePartitions picks some partitions, one at least.
func (c *chaos) somePartitions() []int {
	var some []int
	for p := range partitionCount {
		if c.dice.chance(50) {
			some = append(some, p)
		}
	}
	if some == nil {
		some = []int{c.dice.below(partitionCount)}
	}
	return some
}

func (c *chaos) restartHubs(ctx context.Context) (effect, error) {
	c.broker.Stop()
	if err := c.pauseBetween(ctx, 200*time.Millisecond, 4*time.Second); err != nil {
		return effect{}, err
	}
	return effect{}, c.broker.Restart(ctx)
}

// stealPartitions takes partitions away: for a moment, in which the broker only says so, or for as long as another reader has them.
func (c *chaos) stealPartitions(ctx context.Context) (effect, error) {
	c.broker.NullAttachRefusals(c.dice.chance(50))
	hub, partitions := queueName(eventKind, c.dice.below(hubCount)), c.somePartitions()
	if c.dice.chance(33) {
		err := c.again(ctx, 500*time.Millisecond, 1500*time.Millisecond, func() {
			for _, p := range partitions {
				c.broker.Steal(hub, eventhub.DefaultGroup, strconv.Itoa(p))
			}
		})
		return effect{target: fmt.Sprintf("%s %s", hub, joined(partitions))}, err
	}
	err := takePartitions(ctx, c.broker, hub, partitions, func() error {
		return c.pauseBetween(ctx, 2500*time.Millisecond, 4500*time.Millisecond)
	})
	return effect{target: fmt.Sprintf("%s %s, kept", hub, joined(partitions))}, err
}

func joined(numbers []int) string {
	words := make([]string, len(numbers))
	for i, n := range numbers {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, "+")
}

// detachConditions are what the service says when it detaches a receiver: that it moves the partition or is updated, has trouble of its own or too much to
// do, or that a token has expired.
var detachConditions = []string{
	"amqp:link:detach-forced", "amqp:internal-error", "com.microsoft:server-busy", "com.microsoft:timeout", "amqp:unauthorized-access",
}

func (c *chaos) detachReceivers(ctx context.Context) (effect, error) {
	detached := 0
	err := c.again(ctx, 100*time.Millisecond, time.Second, func() {
		if c.dice.chance(20) {
			c.broker.CloseConnections("amqp:connection:forced")
			return
		}
		partition := ""
		if c.dice.chance(70) {
			partition = strconv.Itoa(c.dice.below(partitionCount))
		}
		detached += c.broker.Detach(c.anyHub(), "", partition, detachConditions[c.dice.below(len(detachConditions))])
	})
	return effect{target: fmt.Sprintf("%d links", detached)}, err
}

func (c *chaos) dropHubConnections(ctx context.Context) (effect, error) {
	dropped := 0
	err := c.again(ctx, 100*time.Millisecond, time.Second, func() {
		switch {
		case c.dice.chance(50):
			dropped += c.broker.DropConnections()
		case c.broker.DropConnection():
			dropped++
		}
	})
	return effect{target: fmt.Sprintf("%d connections", dropped)}, err
}

// throttleHubs refuses everything new. It detaches who reads as well, or they would not notice.
func (c *chaos) throttleHubs(ctx context.Context) (effect, error) {
	c.broker.NullAttachRefusals(c.dice.chance(50))
	c.broker.Throttle(time.Hour)
	defer c.broker.Throttle(0)
	c.broker.Detach(c.anyHub(), "", "", "com.microsoft:server-busy")
	return effect{}, c.pauseBetween(ctx, 2500*time.Millisecond, 4500*time.Millisecond)
}

func (c *chaos) slowHubs(ctx context.Context) (effect, error) {
	defer c.broker.Slow(0)
	return effect{}, c.again(ctx, 300*time.Millisecond, time.Second, func() {
		c.broker.Slow(c.dice.between(50*time.Millisecond, 1200*time.Millisecond))
	})
}

// kindLost is the fault by which checkpoints lose what was written last.
const kindLost = "checkpoints lost"

// loseCheckpoints makes a leader crash and all checkpoints lose what was written in the last seconds, as an Azurite does that is killed without being cut
// off before, but more than that. The next leader is given events again that are done, and must know them by their Jobs. Those who still lead write their
// checkpoints again.
func (c *chaos) loseCheckpoints(ctx context.Context) (effect, error) {
	before, err := c.storedCheckpoints(ctx)
	if err != nil {
		return effect{}, err
	}
	if err := c.pauseBetween(ctx, 7*time.Second, 11*time.Second); err != nil {
		return effect{}, err
	}
	victim, err := c.leader(ctx)
	if err != nil {
		return effect{}, err
	}
	c.blobProxy.disturb(severed)
	defer c.blobProxy.disturb(quiet)
	if err := victim.current.kill(); err != nil {
		return effect{}, err
	}
	n, err := c.setBack(ctx, before)
	if err != nil {
		return effect{}, err
	}
	if err := c.pauseBetween(ctx, 200*time.Millisecond, time.Second); err != nil {
		return effect{}, err
	}
	return effect{target: fmt.Sprintf("%d checkpoints", n), setBack: n}, victim.start(ctx)
}
