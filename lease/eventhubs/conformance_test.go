package eventhubs

import (
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
)

func TestConformance(t *testing.T) {
	shared := newWorld(t)
	leasetest.Run(t, leasetest.Harness{
		Lease:    time.Second,
		Binary:   true,
		MaxBody:  1_000_000,
		NewQueue: func(t leasetest.T) leasetest.Queue { return newQueue(t, shared) },
		NewRestartable: func(t leasetest.T) leasetest.Queue {
			own := world{eventhub.Run(t, eventhub.Options{}), shared.azurite}
			q := newQueue(t, own)
			q.Restart = func(t leasetest.T) { must(t, own.broker.Restart(t.Context())) }
			return q
		},
		Missing: func(t leasetest.T) lease.Source { return newSource(t, shared.config(unique("missing"))) },
		WrongCredentials: func(t leasetest.T) (lease.Source, string) {
			const wrong = "bm90IHRoZSBrZXk="
			c := shared.config(shared.newHubOn(t, 1))
			i := strings.Index(c.ConnectionString, "SharedAccessKey=")
			c.ConnectionString = c.ConnectionString[:i] + "SharedAccessKey=" + wrong + ";UseDevelopmentEmulator=true"
			return newSource(t, c), wrong
		},
	})
}

// newQueue is an event hub of two partitions as producers and people see it.
func newQueue(t leasetest.T, w world) leasetest.Queue {
	t.Helper()
	hub := w.newHubOn(t, 2)
	storage := newStorage(t, w.settings(t, hub))
	send := producer(t, w, hub)
	return leasetest.Queue{
		Source: func(t leasetest.T, d time.Duration) lease.Source {
			c := w.config(hub)
			c.LeaseDuration = d
			return newSource(t, c)
		},
		Send: func(t leasetest.T, bodies ...string) {
			for _, body := range bodies {
				must(t, w.broker.Send(hub, "", eventhub.Event{Body: []byte(body)}))
			}
		},
		Poisoned: func(t leasetest.T) []string {
			var bodies []string
			for _, e := range storage.envelopes(w.config(hub).PoisonQueue) {
				bodies = append(bodies, string(storage.body(e)))
			}
			return bodies
		},
		BrokenPoison: func(t leasetest.T, d time.Duration) lease.Source {
			c := w.config(hub)
			c.LeaseDuration, c.PoisonQueue, c.PoisonEventHub = d, "", unique("missing")
			return newSource(t, c)
		},
		SendUnreadable: func(leasetest.T) {
			send(&azeventhubs.AMQPAnnotatedMessage{Body: azeventhubs.AMQPAnnotatedMessageBody{Value: int64(7)}})
		},
	}
}
