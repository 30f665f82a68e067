package eventhubs

import (
	"errors"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"
	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

func TestBodies(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	send := producer(t, world{broker: b}, "hub")
	type body = azeventhubs.AMQPAnnotatedMessageBody
	for name, test := range map[string]struct {
		body body
		want string
		bad  bool
	}{
		"data":            {body{Data: [][]byte{[]byte("x\x00\xff")}}, "x\x00\xff", false},
		"no bytes":        {body{Data: [][]byte{{}}}, "", false},
		"several":         {body{Data: [][]byte{[]byte("a"), {}, []byte("bc")}}, "abc", false},
		"nothing":         {body{}, "", false},
		"text":            {body{Value: "täxt"}, "täxt", false},
		"bytes as value":  {body{Value: []byte{1, 2}}, "\x01\x02", false},
		"number":          {body{Value: int64(1)}, "", true},
		"map":             {body{Value: map[string]any{"a": "b"}}, "", true},
		"sequence":        {body{Sequence: [][]any{{"a"}}}, "", true},
		"list as a value": {body{Value: []any{"a"}}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			var ends [2]partitioned.Ends
			for i, p := range []string{"0", "1"} {
				e, err := h.Ends(t.Context(), p)
				must(t, err)
				ends[i] = e
			}
			send(&azeventhubs.AMQPAnnotatedMessage{Body: test.body})
			partition, after := "0", ends[0].Last
			if e, err := h.Ends(t.Context(), "1"); err != nil || e.Last > ends[1].Last {
				partition, after = "1", ends[1].Last
			}
			got := read(t, openReader(t, h, partition, partitioned.Start{After: after}, 1), 1)[0]
			if test.bad {
				if !errors.Is(got.Unreadable, lease.ErrUnreadable) || got.Body != nil {
					t.Errorf("%+v, want it to be unreadable", got)
				}
				return
			}
			if got.Unreadable != nil || got.Body == nil || string(got.Body) != test.want {
				t.Errorf("the body is %q, %v; want %q", got.Body, got.Unreadable, test.want)
			}
		})
	}
}

func TestProperties(t *testing.T) {
	at := time.Date(2026, 7, 1, 12, 0, 0, 5_000_000, time.FixedZone("", 3600))
	kind, key := "text/plain", "k"
	for name, test := range map[string]struct {
		event azeventhubs.ReceivedEventData
		want  map[string]string
	}{
		"none": {azeventhubs.ReceivedEventData{}, nil},
		"all kinds": {
			azeventhubs.ReceivedEventData{EventData: azeventhubs.EventData{Properties: map[string]any{
				"string": "s", "bool": true, "int8": int8(-1), "int16": int16(-2), "int32": int32(-3), "int64": int64(-4), "int": -5,
				"uint8": uint8(1), "uint16": uint16(2), "uint32": uint32(3), "uint64": uint64(4), "float32": float32(0.1), "float64": 1e100,
				"time": at, "bytes": []byte{0xff, 0}, "uuid": amqp.UUID{1: 0xab}, "symbol": amqp.Symbol("sym"), "null": nil,
				"list": []any{"a", int64(1)}, "map": map[any]any{"a": "b"},
			}}},
			map[string]string{
				"string": "s", "bool": "true", "int8": "-1", "int16": "-2", "int32": "-3", "int64": "-4", "int": "-5",
				"uint8": "1", "uint16": "2", "uint32": "3", "uint64": "4", "float32": "0.1", "float64": "1e+100",
				"time": "2026-07-01T11:00:00.005Z", "bytes": "/wA=", "uuid": "00ab0000-0000-0000-0000-000000000000", "symbol": "sym", "null": "null",
				"list": `["a",1]`, "map": "map[a:b]",
			},
		},
		"those of AMQP": {
			azeventhubs.ReceivedEventData{
				EventData:      azeventhubs.EventData{ContentType: &kind, CorrelationID: uint64(7)},
				PartitionKey:   &key,
				RawAMQPMessage: &azeventhubs.AMQPAnnotatedMessage{Properties: &azeventhubs.AMQPAnnotatedMessageProperties{MessageID: "id"}},
			},
			map[string]string{"content-type": "text/plain", "correlation-id": "7", "message-id": "id", "x-opt-partition-key": "k"},
		},
		"the application's go first": {
			azeventhubs.ReceivedEventData{EventData: azeventhubs.EventData{ContentType: &kind, Properties: map[string]any{"content-type": "mine"}}},
			map[string]string{"content-type": "mine"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(properties(&test.event), test.want); diff != "" {
				t.Error(diff)
			}
		})
	}
}
