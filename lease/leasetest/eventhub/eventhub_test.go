package eventhub

import (
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
)

func TestSendAndReceive(t *testing.T) {
	b := newBroker(t, Options{})
	p := newProducer(t, b)
	must(t, send(t, p, &azeventhubs.EventDataBatchOptions{PartitionID: ptr("1")},
		&azeventhubs.EventData{Body: []byte("one"), MessageID: ptr("id"), Properties: map[string]any{"n": int64(1)}},
		&azeventhubs.EventData{Body: []byte("two")}))
	got := receive(t, receiver(t, newConsumer(t, b, azeventhubs.DefaultConsumerGroup), "1", nil), 2)
	if string(got[0].Body) != "one" || *got[0].MessageID != "id" || got[0].Properties["n"] != int64(1) || string(got[1].Body) != "two" {
		t.Errorf("received %+v, %+v", got[0].EventData, got[1].EventData)
	}
	props, err := p.GetEventHubProperties(testContext(t), nil)
	must(t, err)
	if len(props.PartitionIDs) != 2 || props.Name != "hub" {
		t.Errorf("properties %+v", props)
	}
}
