package eventhubs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// The properties that a poisoned event has in a poison event hub, besides those that it had.
const (
	poisonReason     = "lighterman-reason"
	poisonAttempts   = "lighterman-attempts"
	poisonJob        = "lighterman-job"
	poisonSource     = "lighterman-source"
	poisonPartition  = "lighterman-partition"
	poisonSequence   = "lighterman-sequence-number"
	poisonEnqueuedAt = "lighterman-enqueued-at"
	poisonUnreadable = "lighterman-unreadable"
)

// poisonHub copies events to another event hub of the namespace, over a connection of its own, since a client of the SDK is for one hub.
// It implements partitioned.Poison.
type poisonHub struct {
	namespace namespace
	name      string
	from      string
	identity  string
	client    *azeventhubs.ProducerClient
}

func newPoisonHub(s settings) (*poisonHub, error) {
	client, err := azeventhubs.NewProducerClientFromConnectionString(s.namespace.connection, s.PoisonEventHub,
		&azeventhubs.ProducerClientOptions{ApplicationID: "lighterman", RetryOptions: retries, TLSConfig: s.namespace.tls()})
	if err != nil {
		return nil, unusable()
	}
	return &poisonHub{
		namespace: s.namespace, name: s.PoisonEventHub, from: s.EventHub, identity: s.namespace.identity(s.EventHub, s.ConsumerGroup), client: client,
	}, nil
}

// Check implements partitioned.Poison.
func (p *poisonHub) Check(ctx context.Context) error {
	_, err := await(ctx, func() (azeventhubs.EventHubProperties, error) { return p.client.GetEventHubProperties(ctx, nil) })
	return p.wrap(fmt.Sprintf("checking poison event hub %q", p.name), err)
}

// Copy implements partitioned.Poison.
func (p *poisonHub) Copy(ctx context.Context, c partitioned.Copy) error {
	doing := fmt.Sprintf("copying event %d of partition %s of event hub %q to poison event hub %q", c.Sequence, c.Partition, p.from, p.name)
	_, err := await(ctx, func() (any, error) { return nil, p.copy(ctx, c) })
	if errors.Is(err, azeventhubs.ErrEventDataTooLarge) {
		return fmt.Errorf("%s: it is larger than that one takes; use a poison queue: %w", doing, lease.ErrInvalid)
	}
	return p.wrap(doing, err)
}

func (p *poisonHub) copy(ctx context.Context, c partitioned.Copy) error {
	var opts azeventhubs.EventDataBatchOptions
	if key, ok := c.Lease.Properties[partitionKey]; ok {
		opts.PartitionKey = &key // events of one key stay together
	}
	batch, err := p.client.NewEventDataBatch(ctx, &opts)
	if err != nil {
		return err
	}
	// What we add can be what is too much: the event itself can be as large as the service allows.
	for _, extent := range []extent{whole, short, bare} {
		err = batch.AddEventData(p.event(c, extent), nil)
		if !errors.Is(err, azeventhubs.ErrEventDataTooLarge) {
			break
		}
	}
	if err != nil {
		return err
	}
	return p.client.SendEventDataBatch(ctx, batch, nil)
}

// extent is how much is added to an event.
type extent int

const (
	whole extent = iota
	short        // with a reason that is cut
	bare         // with nothing but where it comes from
)

const shortReason = 128

// event makes the copy: the body and properties as they were, and ours.
func (p *poisonHub) event(c partitioned.Copy, extent extent) *azeventhubs.EventData {
	e := &azeventhubs.EventData{Body: c.Lease.Body, Properties: make(map[string]any, len(c.Lease.Properties)+8)}
	for name, value := range c.Lease.Properties {
		switch name {
		case contentType:
			e.ContentType = &value
		case messageID:
			e.MessageID = &value
		case correlationID:
			e.CorrelationID = value
		case partitionKey: // the batch has it
		default:
			e.Properties[name] = value
		}
	}
	e.Properties[poisonPartition] = c.Partition
	e.Properties[poisonSequence] = c.Sequence
	if extent == bare {
		return e
	}
	reason := c.Reason
	if extent == short {
		reason = cut(reason, shortReason)
	}
	e.Properties[poisonReason] = reason
	e.Properties[poisonAttempts] = int64(c.Attempts)
	e.Properties[poisonSource] = p.identity
	e.Properties[poisonEnqueuedAt] = c.Lease.EnqueuedAt.UTC().Format(time.RFC3339Nano)
	if c.Job != "" {
		e.Properties[poisonJob] = c.Job
	}
	if c.Lease.Unreadable != nil {
		e.Properties[poisonUnreadable] = c.Lease.Unreadable.Error()
	}
	return e
}

func (p *poisonHub) wrap(doing string, err error) error {
	return p.namespace.wrap(doing, p.name, "", err)
}

// Close implements partitioned.Poison.
func (p *poisonHub) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	_, err := await(ctx, func() (any, error) { return nil, p.client.Close(ctx) })
	return p.wrap("closing the connection to poison event hub "+strconv.Quote(p.name), err)
}
