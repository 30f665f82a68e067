package eventhubs

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"

	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// poisonQueue copies events to a Storage Queue, each as one Envelope. A body that a message has no room for goes to a blob in the
// container for checkpoints before; to remove it when the message is dealt with is up to whoever does that. It implements
// partitioned.Poison.
type poisonQueue struct {
	settings settings
	queue    *azqueue.QueueClient
	blobs    *container.Client
	close    func()
}

func newPoisonQueue(s settings) (*poisonQueue, error) {
	transport, release := azstorage.SharedTransport()
	queues, err := s.account.Queues(transport)
	if err != nil {
		release()
		return nil, err
	}
	blobs, err := newContainer(s.account, s.CheckpointContainer, transport)
	if err != nil {
		release()
		return nil, err
	}
	return &poisonQueue{settings: s, queue: queues.NewQueueClient(s.PoisonQueue), blobs: blobs, close: release}, nil
}

// Check implements partitioned.Poison. That the queue is missing is well: it is created when it is needed.
func (p *poisonQueue) Check(ctx context.Context) error {
	_, err := p.queue.GetProperties(ctx, nil)
	if queueerror.HasCode(err, queueerror.QueueNotFound) {
		return nil
	}
	return wrapStorage(fmt.Sprintf("checking poison queue %q", p.settings.PoisonQueue), err)
}

// Copy implements partitioned.Poison.
func (p *poisonQueue) Copy(ctx context.Context, c partitioned.Copy) error {
	e := newEnvelope(p.settings, c)
	message, err := e.marshal()
	if err == nil && len(message) > maxMessage && e.hasBody() {
		var url string
		if url, err = p.upload(ctx, c); err != nil {
			return err
		}
		e.moveBody(url)
		message, err = e.marshal()
	}
	if err == nil && len(message) > maxMessage {
		message, err = e.shrink()
	}
	if err != nil {
		return err
	}
	return p.send(ctx, c, string(message))
}

// send writes the message, which never expires, and creates the queue if it is missing.
func (p *poisonQueue) send(ctx context.Context, c partitioned.Copy, message string) error {
	never := int32(-1)
	enqueue := func() error {
		_, err := p.queue.EnqueueMessage(ctx, message, &azqueue.EnqueueMessageOptions{TimeToLive: &never})
		return err
	}
	err := enqueue()
	if queueerror.HasCode(err, queueerror.QueueNotFound) {
		if _, err := p.queue.Create(ctx, nil); err != nil && !queueerror.HasCode(err, queueerror.QueueAlreadyExists) {
			return wrapStorage(fmt.Sprintf("creating poison queue %q", p.settings.PoisonQueue), err)
		}
		err = enqueue()
	}
	return wrapStorage(fmt.Sprintf("copying event %d of partition %s of event hub %q to poison queue %q",
		c.Sequence, c.Partition, p.settings.EventHub, p.settings.PoisonQueue), err)
}

// upload writes a body to its blob, and returns the blob's URL. To write it twice does no harm.
func (p *poisonQueue) upload(ctx context.Context, c partitioned.Copy) (url string, err error) {
	s := p.settings
	name := strings.ToLower(fmt.Sprintf("poison/%s/%s/%s/%d-%d", s.EventHub, s.ConsumerGroup, c.Partition, c.Sequence, c.Lease.EnqueuedAt.UnixMilli()))
	write := func() error {
		_, err := p.blobs.NewBlockBlobClient(name).Upload(ctx, streaming.NopCloser(bytes.NewReader(c.Lease.Body)), nil)
		return err
	}
	err = write()
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		if err := createContainer(ctx, p.blobs, s.CheckpointContainer); err != nil {
			return "", err
		}
		err = write()
	}
	if err != nil {
		return "", wrapStorage(fmt.Sprintf("writing the body of event %d of partition %s of event hub %q to blob %s of container %q",
			c.Sequence, c.Partition, s.EventHub, name, s.CheckpointContainer), err)
	}
	return s.account.Endpoint(azstorage.Blob).JoinPath(s.CheckpointContainer, name).String(), nil
}

// Close implements partitioned.Poison.
func (p *poisonQueue) Close() error {
	p.close()
	return nil
}
