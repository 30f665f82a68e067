package eventhubs

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

var enqueuedAt = time.Date(2026, 7, 1, 12, 0, 0, 5_000_000, time.UTC)

func poisoned(body string, properties map[string]string) partitioned.Copy {
	l := &lease.Lease{Message: lease.Message{ID: "3/7/1", Body: []byte(body), EnqueuedAt: enqueuedAt, Properties: properties}}
	return partitioned.Copy{
		Poisoned:  lease.Poisoned{Lease: l, Reason: "it failed <5> times & more", Attempts: 5, Job: "job-1"},
		Partition: "3", Sequence: 7, Offset: "700",
	}
}

// nasty is what XML cannot carry, or carries as something else.
const nasty = "\x00\x01\x0b\x1f\x7f\r\n\r\t\"'<>&\u0085\u2028\u2029\uFFFD\uFFFE\uFFFF\U0001F600\U0010FFFF"

func TestPoisonQueue(t *testing.T) {
	azurite := servers.RunAzurite(t, servers.AzuriteOptions{Blob: true, InMemory: true})
	open := func(t *testing.T) (*poisonQueue, storage) {
		t.Helper()
		s, err := Config{ConnectionString: hubs, EventHub: unique("Hub"), PoisonQueue: unique("poison"), CheckpointConnectionString: azurite.ConnectionString()}.settings()
		must(t, err)
		p, err := newPoisonQueue(s)
		must(t, err)
		t.Cleanup(func() { must(t, p.Close()) })
		return p, newStorage(t, s)
	}
	base := func(p *poisonQueue) Envelope {
		return Envelope{
			Source: "azure-event-hubs://ns.servicebus.windows.net/" + strings.ToLower(p.settings.EventHub) + "?group=%24default", EventHub: p.settings.EventHub,
			ConsumerGroup: "$Default", Partition: "3", SequenceNumber: 7, Offset: "700", EnqueuedAt: enqueuedAt,
			Reason: "it failed <5> times & more", Attempts: 5, Job: "job-1",
		}
	}
	only := func(t *testing.T, p *poisonQueue, s storage) Envelope {
		t.Helper()
		got := s.envelopes(p.settings.PoisonQueue)
		if len(got) != 1 {
			t.Fatalf("%d messages in the poison queue, want one", len(got))
		}
		return got[0]
	}

	for name, test := range map[string]struct {
		body   string
		binary bool
	}{
		"text": {"héllo", false}, "empty": {"", false}, "nasty": {nasty, false}, "binary": {"\xff\x00", true},
	} {
		t.Run(name, func(t *testing.T) {
			p, people := open(t)
			must(t, p.Check(t.Context()))
			must(t, p.Copy(t.Context(), poisoned(test.body, map[string]string{"a": nasty, nasty: "b"})))
			must(t, p.Check(t.Context()))
			got := only(t, p, people)
			if string(people.body(got)) != test.body || (got.BodyBase64 != nil) != test.binary || got.BodyBlob != "" {
				t.Errorf("the body is %q", people.body(got))
			}
			got.Body, got.BodyBase64 = nil, nil
			want := base(p)
			want.Properties = map[string]string{"a": nasty, nasty: "b"}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Error(diff)
			}
		})
	}

	t.Run("unreadable", func(t *testing.T) {
		p, people := open(t)
		c := poisoned("", nil)
		c.Lease.Body, c.Lease.Unreadable = nil, fmt.Errorf("no bytes: %w", lease.ErrUnreadable)
		must(t, p.Copy(t.Context(), c))
		want := base(p)
		want.Unreadable = "no bytes: message unreadable"
		if diff := cmp.Diff(only(t, p, people), want); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("the largest that fits, and one more", func(t *testing.T) {
		p, people := open(t)
		empty, err := newEnvelope(p.settings, poisoned("", nil)).marshal()
		must(t, err)
		body := strings.Repeat("x", maxMessage-len(empty))
		must(t, p.Copy(t.Context(), poisoned(body, nil)))
		if got := only(t, p, people); got.BodyBlob != "" || string(people.body(got)) != body {
			t.Errorf("a body that just fits is in blob %q", got.BodyBlob)
		}
		p, people = open(t)
		c := poisoned(body+"xx", nil) // the name of a hub can be a letter longer by now
		must(t, p.Copy(t.Context(), c))
		must(t, p.Copy(t.Context(), c))
		got := people.envelopes(p.settings.PoisonQueue)
		if len(got) != 2 || string(people.body(got[1])) != body+"xx" {
			t.Fatalf("%d messages, want two with the body", len(got))
		}
		wantBlob := azurite.BlobEndpoint() + "/lighterman-checkpoints/poison/" + strings.ToLower(p.settings.EventHub) + "/$default/3/7-" +
			fmt.Sprint(enqueuedAt.UnixMilli())
		if got[0].BodyBlob != wantBlob {
			t.Errorf("the body is in %s, want %s", got[0].BodyBlob, wantBlob)
		}
	})

	t.Run("large in every way", func(t *testing.T) {
		p, people := open(t)
		body := strings.Repeat("\xff", 1<<20)
		c := poisoned(body, map[string]string{"small": "1", "medium": strings.Repeat("\x01", 5000), "large": strings.Repeat("x", 100_000)})
		must(t, p.Copy(t.Context(), c))
		got := only(t, p, people)
		if string(people.body(got)) != body {
			t.Error("the body is another one")
		}
		if got.PropertiesLeftOut != 1 || len(got.Properties) != 2 || got.Properties["small"] != "1" {
			t.Errorf("%d properties were left out, want the largest one", got.PropertiesLeftOut)
		}
	})

	t.Run("fails with reasons", func(t *testing.T) {
		c := Config{
			ConnectionString: hubs, EventHub: "hub", PoisonQueue: "poison",
			CheckpointConnectionString: strings.Replace(azurite.ConnectionString(), servers.AzuriteKey, key, 1),
		}
		s, err := c.settings()
		must(t, err)
		p, err := newPoisonQueue(s)
		must(t, err)
		defer func() { _ = p.Close() }()
		for _, err := range []error{
			p.Check(t.Context()), p.Copy(t.Context(), poisoned("x", nil)), p.Copy(t.Context(), poisoned(strings.Repeat("x", 1<<17), nil)),
		} {
			if !errors.Is(err, lease.ErrUnauthorized) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), key) {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestEnvelopeSize: whatever an event is like, its message fits, and is what XML carries as it is.
func TestEnvelopeSize(t *testing.T) {
	s, err := Config{ConnectionString: hubs, EventHub: "hub", PoisonQueue: "hub-poison", CheckpointConnectionString: account}.settings()
	must(t, err)
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprintf("property %d", i)] = strings.Repeat(nasty, i%5)
	}
	for name, c := range map[string]partitioned.Copy{
		"many properties": poisoned("x", many),
		"one huge":        poisoned("x", map[string]string{"x": strings.Repeat(nasty, 1<<15)}),
		"none":            poisoned("x", nil),
	} {
		t.Run(name, func(t *testing.T) {
			for _, reason := range []string{"short", strings.Repeat("\x01ö", 1<<17)} {
				c.Reason = reason
				e := newEnvelope(s, c)
				e.moveBody("https://example.org/blob")
				b, err := e.shrink()
				must(t, err)
				if len(b) > maxMessage {
					t.Errorf("the message has %d bytes", len(b))
				}
				var escaped bytes.Buffer
				must(t, xml.EscapeText(&escaped, b))
				var text string
				must(t, xml.Unmarshal([]byte("<x>"+escaped.String()+"</x>"), &text))
				var got Envelope
				must(t, json.Unmarshal([]byte(text), &got))
				if len(got.Properties)+got.PropertiesLeftOut != len(c.Lease.Properties) {
					t.Errorf("%d properties and %d left out, want %d together", len(got.Properties), got.PropertiesLeftOut, len(c.Lease.Properties))
				}
				for name, value := range got.Properties {
					if c.Lease.Properties[name] != value {
						t.Errorf("property %q is %q", name, value)
					}
				}
			}
		})
	}
}

func TestPoisonHub(t *testing.T) {
	b := eventhub.Run(t, eventhub.Options{MaxMessageSize: 4096})
	must(t, b.CreateHub("hub", 1))
	open := func(t *testing.T, name string) *poisonHub {
		t.Helper()
		s, err := Config{ConnectionString: b.ConnectionString(), EventHub: "hub", PoisonEventHub: name, CheckpointConnectionString: account}.settings()
		must(t, err)
		p, err := newPoisonHub(s)
		must(t, err)
		t.Cleanup(func() { must(t, p.Close()) })
		return p
	}
	fresh := func(t *testing.T) (*poisonHub, func() eventhub.Event) {
		t.Helper()
		name := unique("poison")
		must(t, b.CreateHub(name, 1))
		return open(t, name), func() eventhub.Event {
			t.Helper()
			events := b.Events(name, "0")
			if len(events) != 1 {
				t.Fatalf("%d events in the poison hub, want one", len(events))
			}
			return events[0]
		}
	}

	t.Run("copies all there is", func(t *testing.T) {
		p, got := fresh(t)
		must(t, p.Check(t.Context()))
		must(t, p.Copy(t.Context(), poisoned("x\xff", map[string]string{
			"a": "1", contentType: "text/plain", messageID: "id", partitionKey: "key", correlationID: "c",
		})))
		e := got()
		if string(e.Body) != "x\xff" || e.ContentType != "text/plain" || e.MessageID != "id" || e.PartitionKey != "key" {
			t.Errorf("the copy is %+v", e)
		}
		want := map[string]any{
			"a": "1", "lighterman-reason": "it failed <5> times & more", "lighterman-attempts": int64(5), "lighterman-job": "job-1",
			"lighterman-source": p.identity, "lighterman-partition": "3", "lighterman-sequence-number": int64(7),
			"lighterman-enqueued-at": "2026-07-01T12:00:00.005Z",
		}
		if diff := cmp.Diff(e.Properties, want); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		p, got := fresh(t)
		c := poisoned("", nil)
		c.Lease.Body, c.Lease.Unreadable = nil, lease.ErrUnreadable
		must(t, p.Copy(t.Context(), c))
		if e := got(); len(e.Body) > 0 || e.Properties["lighterman-unreadable"] != "message unreadable" {
			t.Errorf("the copy is %+v", e)
		}
	})
	t.Run("large events", func(t *testing.T) {
		sizes := map[string]int{}
		for size := 1000; ; size += 50 {
			p, got := fresh(t)
			c := poisoned(strings.Repeat("x", size), nil)
			c.Reason = strings.Repeat("r", 1000)
			err := p.Copy(t.Context(), c)
			if errors.Is(err, lease.ErrInvalid) {
				if !strings.Contains(err.Error(), "use a poison queue") {
					t.Errorf("%v", err)
				}
				break
			}
			must(t, err)
			e := got()
			if len(e.Body) != size {
				t.Errorf("the body has %d bytes, want %d", len(e.Body), size)
			}
			reason, _ := e.Properties["lighterman-reason"].(string)
			sizes[fmt.Sprint(len(reason))]++
		}
		if len(sizes) != 3 || sizes["1000"] == 0 || sizes["128"] == 0 || sizes["0"] == 0 {
			t.Errorf("reasons by their length: %v; want whole, cut and none", sizes)
		}
	})
	t.Run("missing", func(t *testing.T) {
		p := open(t, "missing")
		for _, err := range []error{p.Check(t.Context()), p.Copy(t.Context(), poisoned("x", nil))} {
			if !errors.Is(err, lease.ErrNotFound) || !strings.Contains(err.Error(), `"missing"`) {
				t.Errorf("%v, want lease.ErrNotFound of that hub", err)
			}
		}
	})
	t.Run("reconnects", func(t *testing.T) {
		p, _ := fresh(t)
		for range 3 {
			must(t, p.Copy(t.Context(), poisoned("x", nil)))
			must(t, p.Check(t.Context()))
			b.DropConnections()
		}
		must(t, b.Restart(t.Context()))
		must(t, p.Check(t.Context()))
		b.RejectSends("com.microsoft:server-busy")
		defer b.RejectSends("")
		if err := p.Copy(t.Context(), poisoned("x", nil)); !errors.Is(err, lease.ErrThrottled) {
			t.Errorf("%v, want lease.ErrThrottled", err)
		}
	})
}
