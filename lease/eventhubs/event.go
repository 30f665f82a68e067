package eventhubs

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// The names under which properties are handed out that AMQP keeps apart from those of the application.
const (
	contentType   = "content-type"
	correlationID = "correlation-id"
	messageID     = "message-id"
	partitionKey  = "x-opt-partition-key"
)

// convert makes events of what the SDK read. It keeps nothing of theirs but bodies and texts.
func convert(partition string, read []*azeventhubs.ReceivedEventData) []partitioned.Event {
	events := make([]partitioned.Event, len(read))
	for i, e := range read {
		fill(&events[i], e, partition)
	}
	return events
}

func fill(to *partitioned.Event, e *azeventhubs.ReceivedEventData, partition string) {
	to.Sequence, to.Offset = e.SequenceNumber, e.Offset
	if e.EnqueuedTime != nil {
		to.EnqueuedAt = *e.EnqueuedTime
	}
	to.Properties = properties(e)
	body, ok := bodyOf(e)
	if !ok {
		to.Unreadable = fmt.Errorf("event %d of partition %s has a body that is neither bytes nor text; have its producer send bytes: %w",
			e.SequenceNumber, partition, lease.ErrUnreadable)
		return
	}
	if body == nil {
		body = []byte{}
	}
	to.Body = body
}

// bodyOf is the body, if it is one of bytes. The SDK itself knows only bodies of one data section.
func bodyOf(e *azeventhubs.ReceivedEventData) (body []byte, ok bool) {
	if e.RawAMQPMessage == nil {
		return e.Body, true
	}
	raw := &e.RawAMQPMessage.Body
	switch len(raw.Data) {
	case 0:
	case 1:
		return raw.Data[0], true
	default:
		for _, section := range raw.Data {
			body = append(body, section...)
		}
		return body, true
	}
	if len(raw.Sequence) > 0 {
		return nil, false
	}
	switch value := raw.Value.(type) {
	case nil:
		return nil, true
	case string:
		return []byte(value), true
	case []byte:
		return value, true
	}
	return nil, false
}

// properties are what the producer attached, as text; nil where there is nothing.
func properties(e *azeventhubs.ReceivedEventData) map[string]string {
	var id any
	if raw := e.RawAMQPMessage; raw != nil && raw.Properties != nil {
		id = raw.Properties.MessageID
	}
	n := len(e.Properties)
	for _, there := range [...]bool{e.ContentType != nil, e.CorrelationID != nil, id != nil, e.PartitionKey != nil} {
		if there {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	to := make(map[string]string, n)
	if e.ContentType != nil {
		to[contentType] = *e.ContentType
	}
	if e.CorrelationID != nil {
		to[correlationID] = text(e.CorrelationID)
	}
	if id != nil {
		to[messageID] = text(id)
	}
	if e.PartitionKey != nil {
		to[partitionKey] = *e.PartitionKey
	}
	for name, value := range e.Properties { // last, since what the application calls so is what it means
		to[name] = text(value)
	}
	return to
}

// text is a property's value as text.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool, int8, int16, int32, int64, int, uint8, uint16, uint32, uint64:
		return fmt.Sprint(v)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case amqp.UUID:
		return v.String()
	case amqp.Symbol:
		return string(v)
	}
	if b, err := json.Marshal(v); err == nil {
		return string(b)
	}
	return fmt.Sprint(v)
}
