package eventhubs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// brokerOnly is a world without a storage account.
func brokerOnly(t leasetest.T) (*eventhub.Broker, func(hub string) settings) {
	t.Helper()
	b := eventhub.Run(t, eventhub.Options{})
	must(t, b.CreateHub("hub", 2, "group"))
	return b, func(hub string) settings {
		c := Config{ConnectionString: b.ConnectionString(), EventHub: hub, PoisonQueue: "poison", CheckpointConnectionString: "UseDevelopmentStorage=true"}
		s, err := c.settings()
		must(t, err)
		return s
	}
}

func TestDescribe(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	d, err := h.Describe(t.Context())
	must(t, err)
	if diff := cmp.Diff(d.Partitions, []string{"0", "1"}); diff != "" {
		t.Errorf("the partitions: %s", diff)
	}
	if age := time.Since(d.CreatedAt); age < 0 || age > time.Minute {
		t.Errorf("the hub is %s old", age)
	}
	must(t, b.AddPartitions("hub", 1))
	if d, err := h.Describe(t.Context()); err != nil || len(d.Partitions) != 3 {
		t.Errorf("Describe = %v, %v; want 3 partitions", d, err)
	}
}

func TestEnds(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	want := func(first, last int64) partitioned.Ends {
		t.Helper()
		e, err := h.Ends(t.Context(), "0")
		must(t, err)
		if e.First != first || e.Last != last {
			t.Errorf("Ends = %d to %d, want %d to %d", e.First, e.Last, first, last)
		}
		return e
	}
	want(0, -1)
	must(t, b.Send("hub", "0", bodies(5)...))
	if e := want(0, 4); e.LastOffset != b.Events("hub", "0")[4].Offset || time.Since(e.LastAt) > time.Minute {
		t.Errorf("Ends = %+v, which is not the last event", e)
	}
	must(t, b.Truncate("hub", "0", 3))
	want(3, 4)
	must(t, b.Truncate("hub", "0", 5))
	want(5, 4)
	if _, err := h.Ends(t.Context(), "7"); err == nil {
		t.Error("Ends of a partition that does not exist is well")
	}
}

// TestEmptyEnds: whatever an empty partition says of its beginning, it ends before it.
func TestEmptyEnds(t *testing.T) {
	for _, test := range []struct{ first, last, wantFirst int64 }{{-1, -1, 0}, {0, -1, 0}, {5, 4, 5}, {3, 4, 5}} {
		e := ends(azeventhubs.PartitionProperties{BeginningSequenceNumber: test.first, LastEnqueuedSequenceNumber: test.last, IsEmpty: true})
		if e.First != test.wantFirst || e.Last != test.last {
			t.Errorf("%+v: %+v", test, e)
		}
	}
}

// TestReconnect breaks the connection under everything that uses it, and expects the next call to make it anew.
func TestReconnect(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	r := openReader(t, h, "0", partitioned.Start{After: -1}, 1)
	must(t, b.Send("hub", "0", bodies(1)...))
	calls := []struct {
		name string
		call func(context.Context) error
	}{
		{"Ends", func(ctx context.Context) error { _, err := h.Ends(ctx, "0"); return err }},
		{"Describe", func(ctx context.Context) error { _, err := h.Describe(ctx); return err }},
		{"Read", func(ctx context.Context) error { _, err := r.Read(ctx, 10); return err }},
	}
	for _, c := range calls {
		must(t, c.call(t.Context()))
	}
	for name, breaks := range map[string]func(){
		"restart": func() { must(t, b.Restart(t.Context())) },
		"drop":    func() { b.DropConnections() },
		"forced":  func() { b.CloseConnections("amqp:connection:forced") },
	} {
		for _, c := range calls {
			t.Run(name+", "+c.name, func(t *testing.T) {
				breaks()
				must(t, b.Send("hub", "0", bodies(1)...))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := c.call(ctx); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			})
		}
	}
	b.Stop()
	for _, c := range calls {
		err := c.call(t.Context())
		for c.name == "Read" && err == nil { // with what had arrived
			err = c.call(t.Context())
		}
		if err == nil || lease.Class(err) != "other" {
			t.Errorf("%s without a server: %v, of class %s; want it to pass", c.name, err, lease.Class(err))
		}
	}
}

// TestHungService cancels every kind of call while it waits for an answer. Nothing may be left behind once all is closed: see TestMain.
func TestHungService(t *testing.T) {
	b, of := brokerOnly(t)
	h := openHub(t, of("hub"))
	if _, err := h.Describe(t.Context()); err != nil { // a link to wait on
		t.Fatal(err)
	}
	b.HangManagement(true)
	r := openReader(t, h, "0", partitioned.Start{After: -1}, 1)
	for _, c := range []struct {
		name string
		call func(context.Context) error
	}{
		{"Ends", func(ctx context.Context) error { _, err := h.Ends(ctx, "0"); return err }},
		{"Describe", func(ctx context.Context) error { _, err := h.Describe(ctx); return err }},
		{"Read", func(ctx context.Context) error { _, err := r.Read(ctx, 1); return err }},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		start := time.Now()
		err := c.call(ctx)
		cancel()
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second {
			t.Errorf("%s: %v after %s, want it to end with its context", c.name, err, took)
		}
	}
}

func TestErrors(t *testing.T) {
	b, of := brokerOnly(t)
	with := func(change func(*settings)) *hub {
		s := of("hub")
		if change != nil {
			change(&s)
		}
		return openHub(t, s)
	}
	describe := func(h *hub) error { _, err := h.Describe(t.Context()); return err }
	open := func(h *hub) error {
		_, err := openReader(t, h, "0", partitioned.Start{After: -1}, 1).Read(t.Context(), 1)
		return err
	}
	for name, test := range map[string]struct {
		before func()
		after  func()
		call   func() error
		want   error
		says   []string
	}{
		"no hub": {
			call: func() error { return describe(with(func(s *settings) { s.EventHub = "other" })) },
			want: lease.ErrNotFound, says: []string{`event hub "other"`, "create event hub"},
		},
		"no hub to read": {
			call: func() error { return open(with(func(s *settings) { s.EventHub = "other" })) },
			want: lease.ErrNotFound, says: []string{`event hub "other"`, "partition 0"},
		},
		"no group": {
			call: func() error { return open(with(func(s *settings) { s.ConsumerGroup = "other" })) },
			want: lease.ErrNotFound, says: []string{`consumer group "other"`, `event hub "hub"`},
		},
		"wrong key": {
			call: func() error {
				return describe(with(func(s *settings) {
					s.namespace.connection = strings.Replace(s.namespace.connection, s.namespace.secret, "d3Jvbmc=", 1)
				}))
			},
			want: lease.ErrUnauthorized, says: []string{"check the connection string"},
		},
		"refused claims": {
			before: func() { b.RefuseClaims(true) }, after: func() { b.RefuseClaims(false) },
			call: func() error { return open(with(nil)) },
			want: lease.ErrUnauthorized, says: []string{"check the connection string"},
		},
		"busy": {
			before: func() { b.Throttle(time.Hour) }, after: func() { b.Throttle(0) },
			call: func() error { return describe(with(nil)) },
			want: lease.ErrThrottled,
		},
		"busy to read": {
			before: func() { b.Throttle(time.Hour) }, after: func() { b.Throttle(0) },
			call: func() error { return open(with(nil)) },
			want: lease.ErrThrottled,
		},
		"stolen at once": {
			before: func() { b.RefuseReceivers("hub", "", "", "amqp:link:stolen") }, after: func() { b.RefuseReceivers("hub", "", "", "") },
			call: func() error { return open(with(nil)) },
			want: partitioned.ErrOwned,
		},
		"disabled": {
			before: func() { b.RefuseReceivers("hub", "", "", "com.microsoft:entity-disabled") },
			after:  func() { b.RefuseReceivers("hub", "", "", "") },
			call:   func() error { return open(with(nil)) },
			want:   lease.ErrInvalid, says: []string{"enable event hub"},
		},
	} {
		for _, null := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, null attach %t", name, null), func(t *testing.T) {
				b.NullAttachRefusals(null)
				if test.before != nil {
					test.before()
					defer test.after()
				}
				err := test.call()
				for strings.Contains(err.Error(), "handle-in-use") {
					// go-amqp can use the handle of a link that was detached before it has answered the detach.
					err = test.call()
				}
				if !errors.Is(err, test.want) {
					t.Fatalf("%v is not %v", err, test.want)
				}
				for _, want := range append(test.says, "hub") {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%v; want it to speak of %q", err, want)
					}
				}
				if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "d3Jvbmc=") || strings.Contains(err.Error(), of("hub").namespace.secret) {
					t.Errorf("%q has several lines, or tells a secret", err)
				}
			})
		}
	}
}
