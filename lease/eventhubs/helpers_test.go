package eventhubs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"go.uber.org/goleak"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// numbers are unique in the process: for names, and for owner levels, which must rise.
var numbers atomic.Int64

func unique(prefix string) string { return fmt.Sprintf("%s-%d", prefix, numbers.Add(1)) }

// world is what a source needs: a broker and a storage account.
type world struct {
	broker  *eventhub.Broker
	azurite *servers.Azurite
}

func newWorld(t leasetest.T) world {
	t.Helper()
	return world{eventhub.Run(t, eventhub.Options{}), servers.RunAzurite(t, servers.AzuriteOptions{Blob: true, InMemory: true})}
}

func (w world) config(hub string) Config {
	return Config{
		ConnectionString:           w.broker.ConnectionString(),
		EventHub:                   hub,
		PoisonQueue:                strings.ToLower(hub) + "-poison",
		CheckpointConnectionString: w.azurite.ConnectionString(),
		Level:                      numbers.Add(1),
	}
}

func (w world) settings(t leasetest.T, hub string) settings {
	t.Helper()
	s, err := w.config(hub).settings()
	must(t, err)
	return s
}

// newHubOn makes an event hub on the broker.
func (w world) newHubOn(t leasetest.T, partitions int) string {
	t.Helper()
	name := unique("Hub")
	must(t, w.broker.CreateHub(name, partitions))
	return name
}

func must(t leasetest.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func newSource(t leasetest.T, c Config) lease.Source {
	t.Helper()
	s, err := New(c)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func openHub(t leasetest.T, s settings) *hub {
	t.Helper()
	h, err := newHub(s)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

func openReader(t leasetest.T, h *hub, partition string, from partitioned.Start, level int64) partitioned.Reader {
	t.Helper()
	r, err := h.Open(t.Context(), partition, from, level)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		_ = r.Close(ctx)
	})
	return r
}

func openCheckpoints(t leasetest.T, s settings) *checkpoints {
	t.Helper()
	c, err := newCheckpoints(s)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// read reads n events, with as many calls as it takes.
func read(t leasetest.T, r partitioned.Reader, n int) []partitioned.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var events []partitioned.Event
	for len(events) < n {
		got, err := r.Read(ctx, n-len(events))
		if err != nil {
			t.Fatalf("Read, after %d of %d events: %v", len(events), n, err)
		}
		events = append(events, got...)
	}
	return events
}

// bodies makes n events, whose bodies are numbers.
func bodies(n int) []eventhub.Event {
	events := make([]eventhub.Event, n)
	for i := range events {
		events[i].Body = fmt.Appendf(nil, "%d", i)
	}
	return events
}

// producer is an SDK's own, for what the broker does not send.
func producer(t leasetest.T, w world, hub string) func(*azeventhubs.AMQPAnnotatedMessage) {
	t.Helper()
	client, err := azeventhubs.NewProducerClientFromConnectionString(w.broker.ConnectionString(), hub, nil)
	must(t, err)
	t.Cleanup(func() { must(t, client.Close(context.WithoutCancel(t.Context()))) })
	return func(m *azeventhubs.AMQPAnnotatedMessage) {
		batch, err := client.NewEventDataBatch(t.Context(), nil)
		must(t, err)
		must(t, batch.AddAMQPAnnotatedMessage(m, nil))
		must(t, client.SendEventDataBatch(t.Context(), batch, nil))
	}
}

// storage are clients of the account as people have them.
type storage struct {
	t         leasetest.T
	container *container.Client
	queues    *azqueue.ServiceClient
}

func newStorage(t leasetest.T, s settings) storage {
	t.Helper()
	transport := azstorage.NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	c, err := newContainer(s.account, s.CheckpointContainer, client)
	must(t, err)
	q, err := s.account.Queues(client)
	must(t, err)
	return storage{t, c, q}
}

// envelopes looks into a poison queue.
func (s storage) envelopes(queue string) []Envelope {
	s.t.Helper()
	most := int32(32)
	peeked, err := s.queues.NewQueueClient(queue).PeekMessages(s.t.Context(), &azqueue.PeekMessagesOptions{NumberOfMessages: &most})
	if err != nil {
		if strings.Contains(err.Error(), "QueueNotFound") {
			return nil
		}
		s.t.Fatalf("looking into the poison queue: %v", err)
	}
	envelopes := make([]Envelope, len(peeked.Messages))
	for i, m := range peeked.Messages {
		must(s.t, json.Unmarshal([]byte(*m.MessageText), &envelopes[i]))
	}
	return envelopes
}

// body is the body of a poisoned event, wherever it is.
func (s storage) body(e Envelope) []byte {
	s.t.Helper()
	switch {
	case e.Body != nil:
		return []byte(*e.Body)
	case e.BodyBase64 != nil:
		var b []byte
		must(s.t, json.Unmarshal([]byte(`"`+*e.BodyBase64+`"`), &b))
		return b
	case e.BodyBlob == "":
		return nil
	}
	_, name, _ := strings.Cut(e.BodyBlob, "/"+defaultContainer+"/")
	r, err := s.container.NewBlobClient(name).DownloadStream(s.t.Context(), nil)
	must(s.t, err)
	defer r.Body.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, r.Body)
	must(s.t, err)
	return b.Bytes()
}

var _ leasetest.T = (*testing.T)(nil)
