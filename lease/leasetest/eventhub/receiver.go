package eventhub

import (
	"fmt"
	"slices"
	"strings"
)

// maxReceivers is how many receivers without an epoch a partition can have in one consumer group, as in Azure.
const maxReceivers = 5

// join makes a link a receiver of its partition, if epochs allow it. Then it returns those that have to go for it.
//
// A receiver with an epoch is alone. It gives way to one with the same epoch or a higher one, and to no other.
func (p *partition) join(l *link, pos position, strict bool) ([]*link, *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, &fault{condNotFound, "the hub was deleted"}
	}
	same := 0
	for _, o := range p.receivers {
		if o.group != l.group {
			continue
		}
		same++
		if o.hasEpoch && (!l.hasEpoch || o.epoch > l.epoch) {
			return nil, &fault{condStolen, fmt.Sprintf("%s is connected to partition %s, which keeps %s away", o, p.id, l)}
		}
	}
	if !l.hasEpoch && same >= maxReceivers {
		return nil, &fault{condLimit, fmt.Sprintf("partition %s has %d receivers of the consumer group %s, and can have no more", p.id, same, l.group)}
	}
	cursor, f := p.seek(pos, strict)
	if f != nil {
		return nil, f
	}
	l.cursor = cursor
	var older []*link
	if l.hasEpoch {
		for _, o := range p.receivers {
			if o.group == l.group {
				older = append(older, o)
			}
		}
		for _, o := range older {
			p.remove(o)
		}
	}
	l.part = p // before others can see the link, and under the lock that they see it by
	p.receivers = append(p.receivers, l)
	return older, nil
}

// remove takes a receiver away. The caller holds the lock.
func (p *partition) remove(l *link) {
	is := func(o *link) bool { return o == l }
	p.receivers = slices.DeleteFunc(p.receivers, is)
	if l.waiting {
		p.waiting = slices.DeleteFunc(p.waiting, is)
		l.waiting = false
	}
	l.revoked = true
}

// leave takes a receiver away, and tells whether it was there.
func (p *partition) leave(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.revoked {
		return false
	}
	p.remove(l)
	return true
}

// attachReceiver finds what a link is to receive from.
func (s *session) attachReceiver(l *link, a *attach) *fault {
	c, b := s.conn, s.conn.broker
	e, ok := parseEntity(a.source)
	if !ok || e.group == "" || e.partition == "" {
		return &fault{condNotFound, fmt.Sprintf("nothing can be received from %q", a.source)}
	}
	if f := c.authorize(a.source, RightListen); f != nil {
		return f
	}
	if f := b.faults.refusal(e); f != nil {
		return f
	}
	h, err := b.hub(e.hub)
	if err != nil {
		return &fault{condNotFound, err.Error()}
	}
	l.group = strings.ToLower(e.group)
	if !h.groups[l.group] {
		return &fault{condNotFound, fmt.Sprintf("the hub %q has no consumer group %q", h.name, e.group)}
	}
	p := h.partition(e.partition)
	if p == nil {
		return &fault{condNotFound, fmt.Sprintf("the hub %q has no partition %q", h.name, e.partition)}
	}
	l.receiver, _ = lookup(a.properties, "com.microsoft:receiver-name").(string)
	l.receiver = shorten(l.receiver, 64)
	if v := lookup(a.properties, "com.microsoft:epoch"); v != nil {
		if l.epoch, l.hasEpoch = integer(v); !l.hasEpoch || l.epoch < 0 {
			return &fault{condOutOfRange, "an epoch is an integer that is not negative"}
		}
	}
	expression, err := selector(a.filter)
	if err != nil {
		return &fault{condDecode, "the filter does not decode: " + err.Error()}
	}
	pos, f := parsePosition(expression)
	if f != nil {
		return f
	}
	older, f := p.join(l, pos, b.opts.StrictPositions)
	if f != nil {
		return f
	}
	for _, o := range older {
		o.conn.inbox.post(command{o, &fault{condStolen, fmt.Sprintf("%s has to give way to %s", o, l)}})
	}
	return nil
}
