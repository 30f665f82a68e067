package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// A queue is where the messages come from, seen from the outside: by clients of its own, not by Lighterman's.
type queue interface {
	// secret is what goes into the template's Secret, by key.
	secret() map[string]string
	// send puts the payloads in, in order, and tells the id of each and when it was sent.
	send(ctx context.Context, payloads []string, sent func(i int, id string, at time.Time)) error
	// left says what the queue still holds.
	left(ctx context.Context) (left, error)
	close() error
}

// left is what a queue and its poison queue hold, and how the queue itself puts it.
type left struct {
	messages, poisoned int64
	words              string
}

func startQueue(ctx context.Context, source, dir string) (queue, error) {
	switch source {
	case "azure-storage-queue":
		return startStorageQueue(ctx, dir)
	case "azure-event-hubs":
		return startEventHub(ctx, dir)
	}
	return startRedis(ctx)
}

// payload is a message: text with all that a careless shell would trip over.
func payload(i int) string {
	return fmt.Sprintf(`{"task": %d, "note": "data, it's \"quoted\"; $(hostname) $(KEDA_TASK_DATA) $HOME $$ %%s \\n * & | > #Übung"}`, i+1)
}

// answer is what the container of the template writes for a payload: the output of sha256sum.
func answer(payload string) string {
	sum := sha256.Sum256([]byte(payload))
	return hex.EncodeToString(sum[:]) + "  -"
}
