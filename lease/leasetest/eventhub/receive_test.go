package eventhub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/google/go-cmp/cmp"
)

func TestPositions(t *testing.T) {
	b := newBroker(t, Options{})
	must(t, b.Send("hub", "0", numbered(5)...))
	events := b.Events("hub", "0")
	// Times must differ for a filter to tell events apart; they are the broker's to set, so here they are set afterwards.
	p, err := b.partition("hub", "0")
	must(t, err)
	p.mu.Lock()
	for i := range p.records {
		p.records[i].at = int64(1000 + 10*i)
	}
	p.mu.Unlock()
	at := func(ms int64) *time.Time { return ptr(time.UnixMilli(ms)) }

	for name, c := range map[string]struct {
		start azeventhubs.StartPosition
		want  int64 // the first sequence number
	}{
		"earliest":             {azeventhubs.StartPosition{Earliest: ptr(true)}, 0},
		"latest":               {azeventhubs.StartPosition{Latest: ptr(true)}, 5},
		"default":              {azeventhubs.StartPosition{}, 5},
		"sequence number >":    {azeventhubs.StartPosition{SequenceNumber: ptr(int64(1))}, 2},
		"sequence number >=":   {azeventhubs.StartPosition{SequenceNumber: ptr(int64(1)), Inclusive: true}, 1},
		"sequence number > -1": {azeventhubs.StartPosition{SequenceNumber: ptr(int64(-1))}, 0},
		"offset >":             {azeventhubs.StartPosition{Offset: &events[2].Offset}, 3},
		"offset >=":            {azeventhubs.StartPosition{Offset: &events[2].Offset, Inclusive: true}, 2},
		"offset beyond":        {azeventhubs.StartPosition{Offset: ptr("123456789")}, 5},
		"time >":               {azeventhubs.StartPosition{EnqueuedTime: at(1020)}, 3},
		"time >=":              {azeventhubs.StartPosition{EnqueuedTime: at(1020), Inclusive: true}, 2},
		"time between":         {azeventhubs.StartPosition{EnqueuedTime: at(1015)}, 2},
		"time before":          {azeventhubs.StartPosition{EnqueuedTime: at(1)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := newConsumer(t, b, "other")
			r, err := c2.NewPartitionClient("0", &azeventhubs.PartitionClientOptions{StartPosition: c.start})
			must(t, err)
			defer func() { _ = r.Close(context.WithoutCancel(t.Context())) }()
			if c.want < 5 {
				if got := receive(t, r, 1)[0].SequenceNumber; got != c.want {
					t.Errorf("the first event is %d, want %d", got, c.want)
				}
				return
			}
			// Nothing is there yet. What comes once the receiver is attached is what it gets.
			p, err := b.partition("hub", "0")
			must(t, err)
			next := p.properties().Last + 1
			go func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for b.Receivers("hub", "other", "0") == 0 && t.Context().Err() == nil {
					<-tick.C
				}
				_ = b.Send("hub", "0", Event{Body: []byte("new")})
			}()
			if got := receive(t, r, 1)[0].SequenceNumber; got != next {
				t.Errorf("the first event is %d, want %d", got, next)
			}
		})
	}
}

func TestEpochs(t *testing.T) {
	for name, c := range map[string]struct {
		older, newer *int64
		wins         bool // the newer
	}{
		"equal":        {ptr(int64(1)), ptr(int64(1)), true},
		"higher":       {ptr(int64(1)), ptr(int64(2)), true},
		"lower":        {ptr(int64(2)), ptr(int64(1)), false},
		"missing":      {ptr(int64(0)), nil, false},
		"first":        {nil, ptr(int64(0)), true},
		"both without": {nil, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t, Options{})
			must(t, b.Send("hub", "0", numbered(1)...))
			consumer := newConsumer(t, b, "$Default")
			older := receiver(t, consumer, "0", &azeventhubs.PartitionClientOptions{OwnerLevel: c.older})
			receive(t, older, 1)
			newer := receiver(t, consumer, "0", &azeventhubs.PartitionClientOptions{OwnerLevel: c.newer})
			if !c.wins {
				lost(t, newer)
				return
			}
			receive(t, newer, 1)
			if c.older == nil && c.newer == nil {
				must(t, b.Send("hub", "0", numbered(1)...))
				receive(t, older, 1)
				return
			}
			lost(t, older)
		})
	}
}

// lost waits until a receiver is told that it lost its partition.
func lost(t *testing.T, p *azeventhubs.PartitionClient) {
	t.Helper()
	_, err := p.ReceiveEvents(testContext(t), 1, nil)
	if e := (*azeventhubs.Error)(nil); !errors.As(err, &e) || e.Code != azeventhubs.ErrorCodeOwnershipLost {
		t.Fatalf("got the error %v, want a lost ownership", err)
	}
}

func TestGroupsAreApart(t *testing.T) {
	b := newBroker(t, Options{})
	must(t, b.Send("hub", "0", numbered(1)...))
	one := receiver(t, newConsumer(t, b, "$Default"), "0", &azeventhubs.PartitionClientOptions{OwnerLevel: ptr(int64(1))})
	receive(t, one, 1)
	other := receiver(t, newConsumer(t, b, "OTHER"), "0", &azeventhubs.PartitionClientOptions{OwnerLevel: ptr(int64(2))})
	receive(t, other, 1)
	must(t, b.Send("hub", "0", numbered(1)...))
	receive(t, one, 1)
}

func TestManyEvents(t *testing.T) {
	const n = 10_000
	for name, prefetch := range map[string]int32{"default": 0, "manual": -1, "5,000": 5000, "1": 1} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t, Options{})
			n := n
			if prefetch == 1 {
				n = 500
			}
			must(t, b.Send("hub", "0", numbered(n)...))
			r := receiver(t, newConsumer(t, b, "$Default"), "0", &azeventhubs.PartitionClientOptions{Prefetch: prefetch})
			for i := 0; i < n; {
				for _, e := range receive(t, r, min(500, n-i)) {
					if e.SequenceNumber != int64(i) || string(e.Body) != time.Duration(i).String() {
						t.Fatalf("event %d has the sequence number %d and the body %q", i, e.SequenceNumber, e.Body)
					}
					i++
				}
			}
		})
	}
}

func TestLargeEvents(t *testing.T) {
	b := newBroker(t, Options{})
	p, r := newProducer(t, b), receiver(t, newConsumer(t, b, "$Default"), "0", nil)
	for _, size := range []int{60_000, 65_400, 65_536, 200_000, 1<<20 - 200} {
		body := bytes.Repeat([]byte{byte(size)}, size)
		must(t, send(t, p, &azeventhubs.EventDataBatchOptions{PartitionID: ptr("0")}, &azeventhubs.EventData{Body: body}))
		if got := receive(t, r, 1)[0]; !bytes.Equal(got.Body, body) {
			t.Errorf("an event of %d bytes came as one of %d", size, len(got.Body))
		}
	}
	batch, err := p.NewEventDataBatch(testContext(t), nil)
	must(t, err)
	if err := batch.AddEventData(&azeventhubs.EventData{Body: make([]byte, 1<<20)}, nil); !errors.Is(err, azeventhubs.ErrEventDataTooLarge) {
		t.Errorf("a larger event: %v", err)
	}
}

func TestEventsKeepWhatWasSent(t *testing.T) {
	b := newBroker(t, Options{})
	want := Event{
		Body: []byte("body"), PartitionKey: "key", MessageID: "id", ContentType: "text/plain",
		Properties: map[string]any{"s": "v", "i": int64(300), "b": true, "f": 1.5},
	}
	must(t, b.Send("hub", "0", Event{}, want))
	events := b.Events("hub", "0")
	got := events[1]
	if got.SequenceNumber != 1 || got.Offset <= events[0].Offset || time.Since(got.EnqueuedAt) > time.Minute {
		t.Errorf("got %+v after %+v", got, events[0])
	}
	e := receive(t, receiver(t, newConsumer(t, b, "$Default"), "0", nil), 2)[1]
	if *e.PartitionKey != "key" || *e.ContentType != "text/plain" || e.Offset != got.Offset || !e.EnqueuedTime.Equal(got.EnqueuedAt) {
		t.Errorf("received %+v, stored %+v", e, got)
	}
	got.SequenceNumber, got.Offset, got.EnqueuedAt = 0, "", time.Time{}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want.Properties, e.Properties); d != "" {
		t.Error(d)
	}
}

func TestPartitionKeys(t *testing.T) {
	b := Run(t, Options{})
	must(t, b.CreateHub("hub", 8))
	p := newProducer(t, b)
	for i := range 40 {
		must(t, send(t, p, &azeventhubs.EventDataBatchOptions{PartitionKey: ptr(fmt.Sprint("key", i%10))}, &azeventhubs.EventData{}))
	}
	at, used := map[string]int{}, 0
	for i := range 8 {
		events := b.Events("hub", fmt.Sprint(i))
		if len(events) > 0 {
			used++
		}
		for _, e := range events {
			if was, ok := at[e.PartitionKey]; ok && was != i {
				t.Errorf("the key %s is in the partitions %d and %d", e.PartitionKey, was, i)
			}
			at[e.PartitionKey] = i
		}
	}
	if len(at) != 10 || used < 3 {
		t.Errorf("%d keys in %d partitions", len(at), used)
	}
}

func TestRoundRobin(t *testing.T) {
	b := newBroker(t, Options{})
	p := newProducer(t, b)
	for range 4 {
		must(t, send(t, p, nil, &azeventhubs.EventData{}, &azeventhubs.EventData{}))
	}
	for _, id := range []string{"0", "1"} {
		if n := len(b.Events("hub", id)); n != 4 {
			t.Errorf("partition %s has %d events, want 4", id, n)
		}
	}
	s, err := b.Stats("hub")
	must(t, err)
	if want := (Stats{Received: 4, Events: 8}); s != want {
		t.Errorf("Stats() = %+v, want %+v", s, want)
	}
}

func TestRetention(t *testing.T) {
	b := Run(t, Options{MaxEvents: 100, MaxBytes: 1 << 16})
	must(t, b.CreateHub("hub", 2))
	must(t, b.Send("hub", "0", numbered(1000)...))
	props, err := b.Properties("hub", "0")
	must(t, err)
	if props.First != 900 || props.Last != 999 || props.Empty {
		t.Errorf("by count: %+v", props)
	}
	r := receiver(t, newConsumer(t, b, "$Default"), "0", nil)
	if e := receive(t, r, 1)[0]; e.SequenceNumber != 900 {
		t.Errorf("the first event is %d, want 900", e.SequenceNumber)
	}
	for range 10 {
		must(t, b.Send("hub", "1", Event{Body: make([]byte, 1<<14)}))
	}
	props, err = b.Properties("hub", "1")
	must(t, err)
	if props.First != 7 || props.Last != 9 {
		t.Errorf("by bytes: %+v", props)
	}
	must(t, b.Truncate("hub", "0", 2000))
	props, err = b.Properties("hub", "0")
	must(t, err)
	if props.First != 1000 || props.Last != 999 || !props.Empty {
		t.Errorf("all gone: %+v", props)
	}
}
