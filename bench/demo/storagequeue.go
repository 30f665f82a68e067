package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"
	"golang.org/x/sync/errgroup"

	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const queueName = "tasks"

// storageQueue is an Azure Storage queue in Azurite.
type storageQueue struct {
	server *servers.Azurite
	client *azqueue.ServiceClient
}

func startStorageQueue(ctx context.Context, dir string) (_ queue, err error) {
	server, err := startAzurite(ctx, dir, servers.AzuriteOptions{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			server.Close()
		}
	}()
	client, err := azqueue.NewServiceClientFromConnectionString(server.ConnectionString(), nil)
	if err != nil {
		return nil, fmt.Errorf("connecting to Azurite: %w", err)
	}
	if _, err := client.CreateQueue(ctx, queueName, nil); err != nil {
		return nil, fmt.Errorf("creating the queue %s: %w", queueName, err)
	}
	return &storageQueue{server: server, client: client}, nil
}

// startAzurite starts one that keeps nothing, with a folder of its own.
func startAzurite(ctx context.Context, dir string, o servers.AzuriteOptions) (*servers.Azurite, error) {
	o.Dir, o.InMemory = filepath.Join(dir, "azurite"), true
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return nil, err
	}
	return servers.StartAzurite(ctx, o)
}

func (q *storageQueue) secret() map[string]string {
	return map[string]string{"connection-string": q.server.ConnectionString()}
}

func (q *storageQueue) send(ctx context.Context, payloads []string, sent func(int, string, time.Time)) error {
	const concurrency = 16 // each message is a request of its own
	tasks := q.client.NewQueueClient(queueName)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrency)
	for i, payload := range payloads {
		group.Go(func() error {
			at := time.Now()
			reply, err := tasks.EnqueueMessage(ctx, payload, nil)
			if err != nil {
				return fmt.Errorf("putting message %d into the queue %s: %w", i+1, queueName, err)
			}
			for _, message := range reply.Messages {
				sent(i, *message.MessageID, at)
			}
			return nil
		})
	}
	return group.Wait()
}

func (q *storageQueue) left(ctx context.Context) (left, error) {
	var l left
	var err error
	if l.messages, err = countMessages(ctx, q.client, queueName); err != nil {
		return l, err
	}
	if l.poisoned, err = countMessages(ctx, q.client, queueName+"-poison"); err != nil {
		return l, err
	}
	l.words = fmt.Sprintf("%d messages, poisoned %d", l.messages, l.poisoned)
	return l, nil
}

// countMessages is how many messages a queue holds, hidden ones included; none if it does not exist.
func countMessages(ctx context.Context, client *azqueue.ServiceClient, name string) (int64, error) {
	properties, err := client.NewQueueClient(name).GetProperties(ctx, nil)
	if queueerror.HasCode(err, queueerror.QueueNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("asking the queue %s what is left: %w", name, err)
	}
	return *properties.ApproximateMessagesCount, nil
}

func (q *storageQueue) close() error {
	q.server.Close()
	return nil
}
