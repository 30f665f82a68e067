package eventhub

import "fmt"

const (
	nodeCBS        = "$cbs"
	nodeManagement = "$management"

	maxName     = 1024 // of a link, and of an address
	attachFixed = 128  // more than an attach takes besides its name, source and target
)

// attach is what the broker wants to know of an attach (2.7.3).
type attach struct {
	source, target string
	filter         []byte
	properties     []pair
}

func readAttach(p *composite) (attach, *fault) {
	a := attach{properties: field[[]pair](p, 13, nil)}
	var dynamicSource, dynamicTarget bool
	var err error
	if a.source, dynamicSource, a.filter, err = address(p.raw(5)); err != nil {
		return a, &fault{condDecode, "the source does not decode: " + err.Error()}
	}
	if a.target, dynamicTarget, _, err = address(p.raw(6)); err != nil {
		return a, &fault{condDecode, "the target does not decode: " + err.Error()}
	}
	if len(a.source) > maxName || len(a.target) > maxName {
		return a, &fault{condInvalidField, "an address is too long"}
	}
	if dynamicSource || dynamicTarget {
		return a, &fault{condNotImpl, "the broker makes no nodes for those who attach"}
	}
	return a, nil
}

// onAttach answers an attach: with another, and, if the link cannot be, with a detach.
func (s *session) onAttach(p *composite) *fault {
	c := s.conn
	handle := p.uint(1, 0)
	// The answer has the same name, source and target, and the peer may accept less than it sends.
	if len(p.raw(0)) > maxName || len(p.raw(0))+len(p.raw(5))+len(p.raw(6)) > c.maxFrame-attachFixed {
		return &fault{condFrameSize, "the answer to an attach would be larger than a frame"}
	}
	switch {
	case handle > handleMax || c.links >= maxLinks:
		return &fault{condLimit, "too many links"}
	case s.links[handle] != nil:
		return &fault{condHandleInUse, "an attach came for a handle that is in use"}
	}
	l := &link{conn: c, session: s, handle: handle, name: p.string(0), sending: p.bool(2)}
	l.settled = field(p, 3, byte(2)) != 0
	if !l.sending {
		l.deliveryCount = p.uint(9, 0) // it starts where the sender says
	}
	s.links[handle] = l
	c.links++

	a, refused := readAttach(p)
	if p.err != nil {
		return nil // it ends the session
	}
	if refused == nil {
		refused = s.open(l, &a)
	}
	null := refused != nil && c.broker.faults.nullRefusals.Load()
	s.sendAttach(l, p, null)
	if refused != nil {
		l.detach(refused)
		return nil
	}
	if l.sending {
		c.ready(l)
	} else {
		l.credit = senderCredit
		s.sendFlow(l)
	}
	return nil
}

// open connects a link with what its address names.
func (s *session) open(l *link, a *attach) *fault {
	c := s.conn
	node := a.target
	if l.sending {
		node = a.source
	}
	switch node {
	case nodeManagement:
		if f := c.authorizeAny(); f != nil {
			return f
		}
		if f := c.broker.faults.busy(); f != nil {
			return f
		}
	case nodeCBS:
	default:
		if f := c.broker.faults.busy(); f != nil {
			return f
		}
		if l.sending {
			return s.attachReceiver(l, a)
		}
		return s.attachSender(l, a)
	}
	l.node = node
	if l.sending {
		if a.target == "" {
			return &fault{condInvalidField, "answers need a target address to be known by"}
		}
		l.replyTo = a.target
		c.replies[a.target] = l
	}
	return nil
}

// attachSender finds where a link is to send to.
func (s *session) attachSender(l *link, a *attach) *fault {
	c := s.conn
	e, ok := parseEntity(a.target)
	if !ok || e.group != "" {
		return &fault{condNotFound, fmt.Sprintf("nothing can be sent to %q", a.target)}
	}
	if f := c.authorize(a.target, RightSend); f != nil {
		return f
	}
	h, err := c.broker.hub(e.hub)
	if err != nil {
		return &fault{condNotFound, err.Error()}
	}
	if e.partition != "" && h.partition(e.partition) == nil {
		return &fault{condNotFound, fmt.Sprintf("the hub %q has no partition %q", h.name, e.partition)}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return &fault{condNotFound, "the hub was deleted"}
	}
	l.hub, l.partition = h, e.partition
	h.senders[l] = e.partition
	return nil
}

// sendAttach echoes what the peer asked for: settlement modes, source with filter, and target. A refusal can be without the
// latter two, which says that there is no terminus (2.6.3).
func (s *session) sendAttach(l *link, p *composite, null bool) {
	source, target := p.raw(5), p.raw(6)
	if null {
		source, target = nil, nil
	}
	b, at := openFrame(s.conn.out, frameAMQP, s.channel)
	b, list := openList(b, codeAttach)
	b = appendString(b, l.name)
	b = appendUint(b, l.handle)
	b = appendBool(b, !l.sending)
	b = appendUbyte(b, field(p, 3, byte(2)))
	b = appendUbyte(b, field(p, 4, byte(0)))
	b = appendRaw(b, source)
	b = appendRaw(b, target)
	b = append(b, 0x40, 0x40) // unsettled, incomplete-unsettled
	if l.sending {
		b = appendUint(b, 0) // initial-delivery-count
	} else {
		b = appendNull(b)
	}
	b = appendUlong(b, uint64(s.conn.broker.opts.MaxMessageSize)) //nolint:gosec // it is positive
	s.conn.out = closeFrame(closeList(b, list, 11), at)
}
