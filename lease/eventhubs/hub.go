package eventhubs

import (
	"context"
	"fmt"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// hub is an event hub as a consumer group sees it, over one connection. It implements partitioned.Log.
type hub struct {
	namespace namespace
	name      string
	group     string
	client    *azeventhubs.ConsumerClient
}

// retries are few and short: to go on trying is up to the caller, who can tell people about it. Two are needed, since a call finds out
// about a lost connection by failing: a link that has long been idle may be of a connection before that, and goes first.
var retries = azeventhubs.RetryOptions{MaxRetries: 2, RetryDelay: 100 * time.Millisecond, MaxRetryDelay: time.Second}

// maxInstanceID is the longest name of a receiver that the service takes.
const maxInstanceID = 64

func newHub(s settings) (*hub, error) {
	instance := s.Owner
	if len(instance) > maxInstanceID {
		instance = instance[len(instance)-maxInstanceID:]
	}
	client, err := azeventhubs.NewConsumerClientFromConnectionString(s.namespace.connection, s.EventHub, s.ConsumerGroup,
		&azeventhubs.ConsumerClientOptions{
			ApplicationID: "lighterman", InstanceID: instance, RetryOptions: retries, TLSConfig: s.namespace.tls(),
		})
	if err != nil {
		return nil, unusable()
	}
	return &hub{namespace: s.namespace, name: s.EventHub, group: s.ConsumerGroup, client: client}, nil
}

// unusable is the error for a connection string that the SDK does not take.
func unusable() error {
	return fmt.Errorf("connection string is one that no client can be made of; %s: %w", wantConnectionString, lease.ErrInvalid)
}

// Describe implements partitioned.Log.
func (h *hub) Describe(ctx context.Context) (partitioned.Description, error) {
	p, err := await(ctx, func() (azeventhubs.EventHubProperties, error) { return h.client.GetEventHubProperties(ctx, nil) })
	if err == nil && len(p.PartitionIDs) == 0 {
		err = problem("the answer has no partitions")
	}
	if err != nil {
		return partitioned.Description{}, h.wrap(fmt.Sprintf("reading the properties of event hub %q", h.name), err)
	}
	return partitioned.Description{CreatedAt: p.CreatedOn, Partitions: p.PartitionIDs}, nil
}

// Ends implements partitioned.Log.
func (h *hub) Ends(ctx context.Context, partition string) (partitioned.Ends, error) {
	ask := func() (azeventhubs.PartitionProperties, error) {
		return h.client.GetPartitionProperties(ctx, partition, nil)
	}
	p, err := await(ctx, ask)
	if lost(err) {
		// This call alone never makes a lost connection anew.
		if _, err = h.Describe(ctx); err != nil {
			return partitioned.Ends{}, err
		}
		p, err = await(ctx, ask)
	}
	if err != nil {
		return partitioned.Ends{}, h.wrap(fmt.Sprintf("reading the properties of partition %s of event hub %q", partition, h.name), err)
	}
	return ends(p), nil
}

func ends(p azeventhubs.PartitionProperties) partitioned.Ends {
	e := partitioned.Ends{
		First: p.BeginningSequenceNumber, Last: p.LastEnqueuedSequenceNumber, LastOffset: p.LastEnqueuedOffset, LastAt: p.LastEnqueuedOn,
	}
	if p.IsEmpty && e.First <= e.Last {
		e.First = e.Last + 1
	}
	return e
}

// Open implements partitioned.Log. It makes no request; the reader's first Read does.
func (h *hub) Open(_ context.Context, partition string, from partitioned.Start, level int64) (partitioned.Reader, error) {
	client, err := h.client.NewPartitionClient(partition, &azeventhubs.PartitionClientOptions{
		StartPosition: startPosition(from),
		OwnerLevel:    &level,
		Prefetch:      -1, // none but what is asked for
	})
	if err != nil {
		return nil, h.wrap(h.reading(partition), err)
	}
	return &reader{hub: h, partition: partition, client: client}, nil
}

func startPosition(from partitioned.Start) azeventhubs.StartPosition {
	earliest := true
	switch {
	case !from.At.IsZero():
		return azeventhubs.StartPosition{EnqueuedTime: &from.At, Inclusive: true}
	case from.After < 0:
		return azeventhubs.StartPosition{Earliest: &earliest}
	}
	return azeventhubs.StartPosition{SequenceNumber: &from.After}
}

func (h *hub) reading(partition string) string {
	return fmt.Sprintf("reading partition %s of event hub %q as consumer group %q", partition, h.name, h.group)
}

func (h *hub) wrap(doing string, err error) error {
	return h.namespace.wrap(doing, h.name, h.group, err)
}

// Close implements partitioned.Log. The readers must be closed before.
func (h *hub) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	_, err := await(ctx, func() (any, error) { return nil, h.client.Close(ctx) })
	if err != nil {
		return h.wrap("closing the connection to Event Hubs", err)
	}
	// The SDK forgets to end the renewal of the claim on $management, which would sleep for minutes yet. One more call notices
	// that the link is gone, lets go of it, and fails.
	_, _ = await(ctx, func() (any, error) { return h.client.GetEventHubProperties(ctx, nil) })
	return nil
}
