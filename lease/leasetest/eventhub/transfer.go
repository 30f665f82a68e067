package eventhub

// onTransfer takes one frame of a message (2.7.5), and acts on the message once it is complete.
func (s *session) onTransfer(p *composite, payload []byte) *fault {
	if s.incomingWindow == 0 {
		return &fault{condWindow, "more transfers came than the window allows"}
	}
	s.incomingWindow--
	s.nextIncoming++
	if s.incomingWindow <= window/2 {
		s.incomingWindow = window
		s.sendFlow(nil)
	}
	l := s.links[p.uint(0, 0)]
	if l == nil || l.sending {
		return &fault{condUnattached, "a transfer came for a handle that is not that of a sender"}
	}
	if l.detached {
		return nil
	}
	d := &l.delivery
	if !d.more {
		if l.credit == 0 {
			l.detach(&fault{condTransferLimit, "more transfers came than there was credit for"})
			return nil
		}
		if !p.has(1) {
			l.detach(&fault{condNotAllowed, "the first frame of a delivery has no delivery-id"})
			return nil
		}
		l.credit--
		l.deliveryCount++
		d.id, d.format, d.settled = p.uint(1, 0), p.uint(3, 0), false
	}
	d.settled = d.settled || p.bool(4)
	more, aborted := p.bool(5), p.bool(9)
	if p.err != nil {
		return nil // it ends the session
	}
	switch {
	case aborted:
		s.conn.partial -= len(d.payload)
		*d = delivery{}
		l.renew()
		return nil
	case len(d.payload)+len(payload) > s.conn.broker.opts.MaxMessageSize:
		l.detach(&fault{condTooLarge, "the message is larger than the link allows"})
		return nil
	}
	if more || d.more {
		if s.conn.partial+len(payload) > maxPartials*s.conn.broker.opts.MaxMessageSize {
			l.detach(&fault{condLimit, "too many unfinished messages"})
			return nil
		}
		s.conn.partial += len(payload)
		d.payload = append(d.payload, payload...)
		d.more = true
	}
	if more {
		return nil
	}
	done := *d
	s.conn.partial -= len(d.payload)
	*d = delivery{}
	if !done.more {
		done.payload = payload
	}
	l.finish(done)
	return nil
}

// finish acts on a complete message, and settles it.
func (l *link) finish(d delivery) {
	var rejected *fault
	if l.hub != nil {
		rejected = l.store(d)
	} else {
		rejected = l.request(d.payload)
	}
	if l.detached {
		return
	}
	if !d.settled {
		l.settle(d.id, rejected)
	}
	l.renew()
}

// renew gives the sender credit again, once half of it is used up.
func (l *link) renew() {
	if l.credit <= senderCredit/2 {
		l.credit = senderCredit
		l.session.sendFlow(l)
	}
}

// settle sends a disposition: accepted, or rejected with an error.
func (l *link) settle(id uint32, rejected *fault) {
	c := l.conn
	b, at := openFrame(c.out, frameAMQP, l.session.channel)
	b, list := openList(b, codeDisposition)
	b = appendBool(b, true) // the role of a receiver
	b = appendUint(b, id)
	b = appendUint(b, id)
	b = appendBool(b, true)
	if rejected == nil {
		b = append(b, 0x00, 0x53, codeAccepted, 0x45)
	} else {
		var state int
		b, state = openList(b, codeRejected)
		b = appendFault(b, rejected)
		b = closeList(b, state, 1)
	}
	c.out = closeFrame(closeList(b, list, 5), at)
}

// store puts what was sent into the hub.
func (l *link) store(d delivery) *fault {
	b := l.conn.broker
	if f := b.faults.busy(); f != nil {
		return f
	}
	if c := b.faults.rejectSends.Load(); c != nil {
		return &fault{*c, "the broker was told to reject what is sent"}
	}
	messages, err := splitTransfer(d.format, d.payload)
	if err != nil {
		return &fault{condDecode, "the message does not decode: " + err.Error()}
	}
	p := l.hub.partition(l.partition)
	if p == nil { // a link to the whole hub
		p = l.hub.choose(&messages[0])
	}
	p.append(messages)
	l.hub.stats.transfersIn.Add(1)
	l.hub.stats.eventsIn.Add(uint64(len(messages)))
	return nil
}
