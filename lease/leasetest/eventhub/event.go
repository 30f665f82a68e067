package eventhub

import (
	"fmt"
	"slices"
	"time"

	"github.com/Azure/go-amqp"
)

// Event is an event outside of AMQP: to be sent, or as it is stored.
type Event struct {
	Body       []byte
	Properties map[string]any

	// PartitionKey, MessageID and ContentType are optional.
	PartitionKey, MessageID, ContentType string

	// SequenceNumber, Offset and EnqueuedAt are set by the broker.
	SequenceNumber int64
	Offset         string
	EnqueuedAt     time.Time
}

// Send stores events in a partition. Without one, each goes where its partition key leads, or to the partitions in turn.
func (b *Broker) Send(hub, partition string, events ...Event) error {
	h, err := b.hub(hub)
	if err != nil {
		return err
	}
	messages := make([]message, 0, len(events))
	for i, e := range events {
		m, err := e.message()
		if err != nil {
			return fmt.Errorf("encoding event %d: %w", i, err)
		}
		messages = append(messages, m)
	}
	h.stats.eventsIn.Add(uint64(len(events)))
	if partition != "" {
		p, err := b.partition(hub, partition)
		if err != nil {
			return err
		}
		// An append takes its memory in one piece, which is kept while anything of it is.
		for chunk := range slices.Chunk(messages, fetchEvents) {
			p.append(chunk)
		}
		return nil
	}
	for i := range messages {
		h.choose(&messages[i]).append(messages[i : i+1])
	}
	return nil
}

// Events returns what a partition keeps: nothing, if there is no such hub or partition.
func (b *Broker) Events(hub, partition string) []Event {
	p, err := b.partition(hub, partition)
	if err != nil {
		return nil
	}
	var events []Event
	for _, data := range p.snapshot() {
		events = append(events, decodeEvent(data))
	}
	return events
}

func (e *Event) message() (message, error) {
	m := amqp.NewMessage(e.Body)
	if len(e.Properties) > 0 {
		m.ApplicationProperties = e.Properties
	}
	if e.MessageID != "" || e.ContentType != "" {
		m.Properties = &amqp.MessageProperties{}
		if e.MessageID != "" {
			m.Properties.MessageID = e.MessageID
		}
		if e.ContentType != "" {
			m.Properties.ContentType = &e.ContentType
		}
	}
	b, err := m.MarshalBinary()
	if err != nil {
		return message{}, err
	}
	out, err := split(b)
	out.key, out.hasKey = e.PartitionKey, e.PartitionKey != ""
	return out, err
}

// decodeEvent reads a stored message. What does not decode was checked when it came, and yet is beyond the client's decoder: it is
// an event without anything in it.
func decodeEvent(data []byte) Event {
	var m amqp.Message
	if err := m.UnmarshalBinary(data); err != nil {
		return Event{}
	}
	e := Event{Body: m.GetData(), Properties: m.ApplicationProperties}
	e.SequenceNumber, _ = m.Annotations[annotationSequence].(int64)
	e.Offset, _ = m.Annotations[annotationOffset].(string)
	e.EnqueuedAt, _ = m.Annotations[annotationTime].(time.Time)
	e.PartitionKey, _ = m.Annotations[annotationKey].(string)
	if m.Properties != nil {
		e.MessageID, _ = m.Properties.MessageID.(string)
		if m.Properties.ContentType != nil {
			e.ContentType = *m.Properties.ContentType
		}
	}
	return e
}
