package eventhub

import (
	"net/http"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/google/go-cmp/cmp"
)

func TestPropertiesOfPartitions(t *testing.T) {
	b := newBroker(t, Options{})
	p := newProducer(t, b)
	get := func() azeventhubs.PartitionProperties {
		t.Helper()
		props, err := p.GetPartitionProperties(testContext(t), "1", nil)
		must(t, err)
		return props
	}
	empty := azeventhubs.PartitionProperties{
		EventHubName: "hub", PartitionID: "1", IsEmpty: true, LastEnqueuedSequenceNumber: -1, LastEnqueuedOffset: "-1", LastEnqueuedOn: time.Unix(0, 0).UTC(),
	}
	if d := cmp.Diff(empty, get()); d != "" {
		t.Error(d)
	}
	must(t, b.Send("hub", "1", numbered(3)...))
	last := b.Events("hub", "1")[2]
	want := azeventhubs.PartitionProperties{
		EventHubName: "hub", PartitionID: "1", LastEnqueuedSequenceNumber: 2, LastEnqueuedOffset: last.Offset, LastEnqueuedOn: last.EnqueuedAt,
	}
	if d := cmp.Diff(want, get()); d != "" {
		t.Error(d)
	}
	must(t, b.Truncate("hub", "1", 3))
	want.IsEmpty, want.BeginningSequenceNumber = true, 3
	if d := cmp.Diff(want, get()); d != "" {
		t.Error(d)
	}
}

func TestManagementRequests(t *testing.T) {
	b := newBroker(t, Options{})
	c := newConn(b, nil)
	good := sas(t, b, "amqp://"+b.Addr()+"/hub", time.Now().Add(time.Hour))
	all := sas(t, b, "amqp://"+b.Addr(), time.Now().Add(time.Hour))
	late := sas(t, b, "amqp://"+b.Addr()+"/hub", time.Now().Add(-time.Hour))
	const hubType, partitionType = "com.microsoft:eventhub", "com.microsoft:partition"
	for name, r := range map[string]struct {
		operation, name, kind, partition, token string
		want                                    int32
	}{
		"hub":                  {"READ", "hub", hubType, "", good, http.StatusOK},
		"partition":            {"READ", "HUB", partitionType, "1", good, http.StatusOK},
		"no such hub":          {"READ", "another", hubType, "", all, http.StatusNotFound},
		"no such partition":    {"READ", "hub", partitionType, "2", good, http.StatusNotFound},
		"01 is not 1":          {"READ", "hub", partitionType, "01", good, http.StatusNotFound},
		"token for another":    {"READ", "another", hubType, "", good, http.StatusUnauthorized},
		"token expired":        {"READ", "hub", hubType, "", late, http.StatusUnauthorized},
		"no token":             {"READ", "hub", hubType, "", "", http.StatusUnauthorized},
		"an unknown kind":      {"READ", "hub", "x", "", good, http.StatusBadRequest},
		"an unknown operation": {"DELETE", "hub", hubType, "", good, http.StatusBadRequest},
	} {
		got := c.manage(&request{properties: []pair{
			{"operation", r.operation}, {"name", r.name}, {"type", r.kind}, {"partition", r.partition}, {"security_token", r.token},
		}})
		if got.status != r.want {
			t.Errorf("%s: the status is %d, want %d: %s", name, got.status, r.want, got.description)
		}
	}
}

func TestStrictPositions(t *testing.T) {
	b := newBroker(t, Options{StrictPositions: true, NullAttachRefusals: true})
	must(t, b.Send("hub", "0", numbered(3)...))
	for name, c := range map[string]struct {
		start   azeventhubs.StartPosition
		refused bool
	}{
		"the last":        {azeventhubs.StartPosition{SequenceNumber: ptr(int64(2)), Inclusive: true}, false},
		"after the last":  {azeventhubs.StartPosition{SequenceNumber: ptr(int64(3))}, true},
		"an offset later": {azeventhubs.StartPosition{Offset: ptr("99999")}, true},
	} {
		r := receiver(t, newConsumer(t, b, "$Default"), "0", &azeventhubs.PartitionClientOptions{StartPosition: c.start})
		_, err := r.ReceiveEvents(testContext(t), 1, nil)
		if c.refused != (condition(err) == condOutOfRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooManyReceivers(t *testing.T) {
	b := newBroker(t, Options{NullAttachRefusals: true})
	must(t, b.Send("hub", "0", numbered(1)...))
	c := newConsumer(t, b, "$Default")
	for range maxReceivers {
		receive(t, receiver(t, c, "0", nil), 1)
	}
	if n := b.Receivers("hub", "$Default", ""); n != maxReceivers {
		t.Errorf("%d receivers", n)
	}
	if _, err := receiver(t, c, "0", nil).ReceiveEvents(testContext(t), 1, nil); condition(err) != condLimit {
		t.Errorf("one more: %v", err)
	}
}
