package eventhub

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"
)

// condition is that of the AMQP error in an error. The client's own errors do not unwrap, but print what they wrap.
func condition(err error) string {
	if e := (*amqp.Error)(nil); errors.As(err, &e) {
		return string(e.Condition)
	}
	if e := (*azeventhubs.Error)(nil); errors.As(err, &e) {
		_, rest, _ := strings.Cut(e.Error(), "Condition: ")
		c, _, _ := strings.Cut(rest, ",")
		return c
	}
	return ""
}

func TestSteal(t *testing.T) {
	b := newBroker(t, Options{})
	must(t, b.Send("hub", "0", numbered(1)...))
	r := receiver(t, newConsumer(t, b, "$Default"), "0", nil)
	receive(t, r, 1)
	if n := b.Steal("hub", "other", "0"); n != 0 {
		t.Errorf("%d receivers of another group", n)
	}
	if n := b.Steal("hub", "$default", "0"); n != 1 {
		t.Errorf("%d receivers, want 1", n)
	}
	lost(t, r)
}

func TestDetachIsRecovered(t *testing.T) {
	b := newBroker(t, Options{})
	must(t, b.Send("hub", "0", numbered(1)...))
	r := receiver(t, newConsumer(t, b, "$Default"), "0", nil)
	receive(t, r, 1)
	if n := b.Detach("hub", "", "", condDetachForced); n != 1 {
		t.Errorf("%d receivers, want 1", n)
	}
	must(t, b.Send("hub", "0", numbered(1)...))
	if e := receive(t, r, 1)[0]; e.SequenceNumber != 1 {
		t.Errorf("the event after a detach is %d, want 1", e.SequenceNumber)
	}

	p := newProducer(t, b)
	must(t, send(t, p, nil, &azeventhubs.EventData{}))
	if n := b.DetachSenders("hub", "", condDetachForced); n != 1 {
		t.Errorf("%d senders, want 1", n)
	}
	must(t, send(t, p, nil, &azeventhubs.EventData{}))
}

func TestConnectionsComeBack(t *testing.T) {
	b := newBroker(t, Options{})
	p, r := newProducer(t, b), receiver(t, newConsumer(t, b, "$Default"), "0", nil)
	to0 := &azeventhubs.EventDataBatchOptions{PartitionID: ptr("0")}
	next := int64(0)
	for name, disturb := range map[string]func(){
		"nothing": func() {},
		"drop all": func() {
			if n := b.DropConnections(); n == 0 {
				t.Error("there was no connection")
			}
		},
		"drop one": func() {
			if !b.DropConnection() {
				t.Error("there was no connection")
			}
		},
		"close":   func() { b.CloseConnections(condForced) },
		"restart": func() { must(t, b.Restart(t.Context())) },
	} {
		addr := b.Addr()
		must(t, send(t, p, to0, &azeventhubs.EventData{}))
		receive(t, r, 1)
		disturb()
		must(t, send(t, p, to0, &azeventhubs.EventData{}))
		if e := receive(t, r, 1)[0]; e.SequenceNumber != next+1 {
			t.Errorf("%s: the event afterwards is %d, want %d", name, e.SequenceNumber, next+1)
		}
		if b.Addr() != addr {
			t.Errorf("%s: the address is %s, was %s", name, b.Addr(), addr)
		}
		next += 2
	}
}

func TestStop(t *testing.T) {
	b := newBroker(t, Options{})
	must(t, b.Send("hub", "0", numbered(3)...))
	b.Stop()
	c := consumerWith(t, b.ConnectionString(), "$Default", &azeventhubs.ConsumerClientOptions{RetryOptions: impatient})
	if _, err := c.GetEventHubProperties(testContext(t), nil); err == nil {
		t.Error("a stopped broker answers")
	}
	must(t, b.Restart(t.Context()))
	receive(t, receiver(t, newConsumer(t, b, "$Default"), "0", nil), 3)
	b.Close()
	if err := b.Restart(t.Context()); err == nil {
		t.Error("a closed broker starts again")
	}
}

func TestThrottle(t *testing.T) {
	for name, null := range map[string]bool{"terminus": false, "null": true} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t, Options{NullAttachRefusals: null})
			p := producerWith(t, b.ConnectionString(), &azeventhubs.ProducerClientOptions{RetryOptions: impatient})
			must(t, send(t, p, nil, &azeventhubs.EventData{}))
			_, err := p.GetEventHubProperties(testContext(t), nil)
			must(t, err)
			b.Throttle(time.Hour)
			if err := send(t, p, nil, &azeventhubs.EventData{}); condition(err) != condBusy {
				t.Errorf("sending: %v", err)
			}
			if _, err := p.GetEventHubProperties(testContext(t), nil); err == nil {
				t.Error("properties: no error")
			}
			c := consumerWith(t, b.ConnectionString(), "$Default", &azeventhubs.ConsumerClientOptions{RetryOptions: impatient})
			r := receiver(t, c, "0", nil)
			if _, err := r.ReceiveEvents(testContext(t), 1, nil); condition(err) != condBusy {
				t.Errorf("receiving: %v", err)
			}
			b.Throttle(0)
			must(t, b.Send("hub", "0", Event{}))
			receive(t, receiver(t, newConsumer(t, b, "$Default"), "0", nil), 1)
		})
	}
}

func TestRejectSends(t *testing.T) {
	b := newBroker(t, Options{})
	p := newProducer(t, b)
	b.RejectSends(condLimit)
	if err := send(t, p, nil, &azeventhubs.EventData{}); condition(err) != condLimit {
		t.Errorf("got %v", err)
	}
	b.RejectSends("")
	must(t, send(t, p, nil, &azeventhubs.EventData{}))
}

func TestHangManagement(t *testing.T) {
	b := newBroker(t, Options{})
	p := newProducer(t, b)
	b.HangManagement(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := p.GetEventHubProperties(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	b.HangManagement(false)
	_, err := p.GetEventHubProperties(testContext(t), nil)
	must(t, err)
}

func TestSlow(t *testing.T) {
	b := newBroker(t, Options{})
	must(t, b.Send("hub", "0", numbered(1)...))
	const d = 20 * time.Millisecond
	b.Slow(d)
	start := time.Now()
	receive(t, receiver(t, newConsumer(t, b, "$Default"), "0", nil), 1)
	if took := time.Since(start); took < 3*d { // session, claim and link are answers of their own
		t.Errorf("it took %s", took)
	}
}

func TestRefuseClaims(t *testing.T) {
	b := newBroker(t, Options{})
	b.RefuseClaims(true)
	unauthorized(t, b.ConnectionString(), nil)
	b.RefuseClaims(false)
	must(t, send(t, newProducer(t, b), nil, &azeventhubs.EventData{}))
}

func TestRefuseReceivers(t *testing.T) {
	b := newBroker(t, Options{NullAttachRefusals: true})
	must(t, b.Send("hub", "0", numbered(1)...))
	b.RefuseReceivers("hub", "", "0", "com.microsoft:entity-disabled")
	c := newConsumer(t, b, "$Default")
	if _, err := receiver(t, c, "0", nil).ReceiveEvents(testContext(t), 1, nil); condition(err) != "com.microsoft:entity-disabled" {
		t.Errorf("got %v", err)
	}
	b.RefuseReceivers("hub", "", "0", "")
	receive(t, receiver(t, c, "0", nil), 1)
}

func TestWhatDoesNotExist(t *testing.T) {
	for name, null := range map[string]bool{"terminus": false, "null": true} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t, Options{NullAttachRefusals: null})
			for what, open := range map[string]func() error{
				"partition": func() error {
					_, err := receiver(t, newConsumer(t, b, "$Default"), "7", nil).ReceiveEvents(testContext(t), 1, nil)
					return err
				},
				"group": func() error {
					_, err := receiver(t, newConsumer(t, b, "nobody"), "0", nil).ReceiveEvents(testContext(t), 1, nil)
					return err
				},
				"sender's partition": func() error {
					return send(t, newProducer(t, b), &azeventhubs.EventDataBatchOptions{PartitionID: ptr("7")}, &azeventhubs.EventData{})
				},
			} {
				if err := open(); condition(err) != condNotFound {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

func TestHubsComeAndGo(t *testing.T) {
	b := newBroker(t, Options{NullAttachRefusals: true})
	p := newProducer(t, b)
	before, err := p.GetEventHubProperties(testContext(t), nil)
	must(t, err)
	must(t, b.Send("hub", "0", numbered(3)...))
	r := receiver(t, newConsumer(t, b, "$Default"), "0", nil)
	receive(t, r, 3)
	if err := b.CreateHub("HUB", 1); err == nil {
		t.Error("a second hub with the same name")
	}
	must(t, b.DeleteHub("hub"))
	if _, err := r.ReceiveEvents(testContext(t), 1, nil); condition(err) != condNotFound {
		t.Errorf("receiving from what is gone: %v", err)
	}
	if _, err := p.GetEventHubProperties(testContext(t), nil); err == nil {
		t.Error("a deleted hub has properties")
	}
	if err := b.DeleteHub("hub"); err == nil {
		t.Error("deleted twice")
	}
	must(t, b.CreateHub("hub", 2))
	must(t, b.AddPartitions("hub", 2))
	must(t, b.Send("hub", "3", numbered(1)...))
	receive(t, receiver(t, newConsumer(t, b, "$Default"), "3", nil), 1)
	after, err := p.GetEventHubProperties(testContext(t), nil)
	must(t, err)
	if len(after.PartitionIDs) != 4 || !after.CreatedOn.After(before.CreatedOn) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}
