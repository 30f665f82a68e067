package eventhub

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultGroup is the consumer group that every hub has.
const DefaultGroup = "$Default"

const maxPartitions = 2000 // what Azure allows at most

// hub is an event hub.
type hub struct {
	name    string
	created time.Time
	groups  map[string]bool // names in lower case; never changed

	turn atomic.Uint64 // of round robin

	mu         sync.RWMutex
	partitions []*partition
	senders    map[*link]string // to the partition they send to, or ""
	gone       bool             // it was deleted

	stats hubCounters
}

type hubCounters struct{ transfersOut, eventsIn, transfersIn atomic.Uint64 }

// Stats are what went through a hub.
type Stats struct {
	// Delivered is the number of transfers to receivers, one for each event.
	Delivered uint64
	// Received is the number of transfers from senders, each an event or a batch, and Events what was in them.
	Received, Events uint64
}

// partition finds a partition by its id.
func (h *hub) partition(id string) *partition {
	n, err := strconv.Atoi(id)
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err != nil || n < 0 || n >= len(h.partitions) || h.partitions[n].id != id {
		return nil
	}
	return h.partitions[n]
}

// all returns the partitions: all, or the one that is named.
func (h *hub) all(id string) []*partition {
	if id != "" {
		if p := h.partition(id); p != nil {
			return []*partition{p}
		}
		return nil
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Clone(h.partitions)
}

// choose picks the partition for events without one: by the key, or in turn.
func (h *hub) choose(m *message) *partition {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := uint64(len(h.partitions))
	if m.hasKey {
		f := fnv.New64a()
		_, _ = f.Write([]byte(m.key))
		return h.partitions[f.Sum64()%n]
	}
	return h.partitions[(h.turn.Add(1)-1)%n]
}

// entity is what an address or an audience names.
type entity struct{ hub, group, partition string }

// parseEntity reads <hub>[/ConsumerGroups/<group>][/Partitions/<id>].
func parseEntity(addr string) (entity, bool) {
	parts := strings.Split(strings.Trim(addr, "/"), "/")
	e := entity{hub: parts[0]}
	for parts = parts[1:]; len(parts) >= 2; parts = parts[2:] {
		switch strings.ToLower(parts[0]) {
		case "consumergroups":
			e.group = parts[1]
		case "partitions":
			e.partition = parts[1]
		default:
			return e, false
		}
	}
	return e, len(parts) == 0 && e.hub != ""
}

// CreateHub makes a hub with the group $Default and those that are named. Names of hubs and groups are the same in upper and
// lower case.
func (b *Broker) CreateHub(name string, partitions int, groups ...string) error {
	if name == "" || strings.ContainsAny(name, "/$") {
		return fmt.Errorf("creating the hub %q: a name has neither / nor $ and is not empty", name)
	}
	if partitions < 1 || partitions > maxPartitions {
		return fmt.Errorf("creating the hub %q: it has 1 to %d partitions, not %d", name, maxPartitions, partitions)
	}
	h := &hub{name: name, created: time.Now().UTC(), groups: map[string]bool{strings.ToLower(DefaultGroup): true}, senders: map[*link]string{}}
	for _, g := range groups {
		h.groups[strings.ToLower(g)] = true
	}
	for i := range partitions {
		h.partitions = append(h.partitions, newPartition(h, i, &b.opts))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hubs[strings.ToLower(name)] != nil {
		return fmt.Errorf("creating the hub %q: there is one", name)
	}
	b.hubs[strings.ToLower(name)] = h
	return nil
}

// DeleteHub removes a hub with its events, and detaches whoever sends to it or receives from it.
func (b *Broker) DeleteHub(name string) error {
	b.mu.Lock()
	h := b.hubs[strings.ToLower(name)]
	delete(b.hubs, strings.ToLower(name))
	b.mu.Unlock()
	if h == nil {
		return fmt.Errorf("deleting the hub %q: there is none", name)
	}
	deleted := &fault{condDeleted, "the hub " + name + " was deleted"}
	for _, p := range h.all("") {
		p.mu.Lock()
		p.gone = true
		receivers := slices.Clone(p.receivers)
		p.mu.Unlock()
		for _, l := range receivers {
			l.revoke(deleted)
		}
	}
	h.mu.Lock()
	h.gone = true
	h.mu.Unlock()
	h.detachSenders("", deleted)
	return nil
}

// AddPartitions adds n partitions to a hub. Partition keys may lead to other partitions from then on.
func (b *Broker) AddPartitions(name string, n int) error {
	h, err := b.hub(name)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if n < 1 || len(h.partitions)+n > maxPartitions {
		return fmt.Errorf("adding %d partitions to the hub %q, which has %d: it can have %d", n, name, len(h.partitions), maxPartitions)
	}
	for range n {
		h.partitions = append(h.partitions, newPartition(h, len(h.partitions), &b.opts))
	}
	return nil
}

func (b *Broker) hub(name string) (*hub, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.hubs[strings.ToLower(name)]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("there is no hub %q", name)
}

func (b *Broker) partition(name, id string) (*partition, error) {
	h, err := b.hub(name)
	if err != nil {
		return nil, err
	}
	if p := h.partition(id); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("the hub %q has no partition %q", name, id)
}

// Properties are those of a partition.
func (b *Broker) Properties(hub, partition string) (PartitionProperties, error) {
	p, err := b.partition(hub, partition)
	if err != nil {
		return PartitionProperties{}, err
	}
	return p.properties(), nil
}

// Truncate drops the events before a sequence number, as retention does.
func (b *Broker) Truncate(hub, partition string, before int64) error {
	p, err := b.partition(hub, partition)
	if err != nil {
		return err
	}
	p.truncate(before)
	return nil
}

// Stats tells what went through a hub since it was created.
func (b *Broker) Stats(hub string) (Stats, error) {
	h, err := b.hub(hub)
	if err != nil {
		return Stats{}, err
	}
	return Stats{Delivered: h.stats.transfersOut.Load(), Received: h.stats.transfersIn.Load(), Events: h.stats.eventsIn.Load()}, nil
}
