package eventhub

// Windows count transfer frames (2.5.6).
const (
	window    = 5000
	handleMax = 1023
)

// session is a session (2.5). It belongs to its connection, whose lock guards it.
type session struct {
	conn    *conn
	channel uint16
	ending  bool // our end was sent, the peer's is awaited
	links   map[uint32]*link

	nextIncoming   uint32
	incomingWindow uint32 // what the peer may still send
	nextOutgoing   uint32
	remoteWindow   uint32 // what we may still send
	deliveryID     uint32 // of the next delivery
}

// begin answers a begin. We use the channel numbers that the peer uses.
func (c *conn) begin(channel uint16, p *composite) *goodbye {
	if channel > maxChannel || c.sessions[channel] != nil {
		return &goodbye{&fault{condFraming, "a begin came on a channel that is in use or above the limit"}}
	}
	s := &session{conn: c, channel: channel, links: map[uint32]*link{}, incomingWindow: window}
	s.nextIncoming, s.remoteWindow = p.uint(1, 0), p.uint(2, 0)
	if p.err != nil {
		return &goodbye{&fault{condDecode, p.err.Error()}}
	}
	c.sessions[channel] = s
	b, at := openFrame(c.out, frameAMQP, channel)
	b, list := openList(b, codeBegin)
	b = appendUshort(b, channel) // remote-channel
	b = appendUint(b, s.nextOutgoing)
	b = appendUint(b, window)
	b = appendUint(b, window)
	b = appendUint(b, handleMax)
	c.out = closeFrame(closeList(b, list, 5), at)
	c.inbox.wake()
	return nil
}

// end ends the session with an error.
func (s *session) end(f *fault) {
	s.release()
	s.ending = true
	s.sendEnd(f)
}

// onEnd answers the peer's end, unless it is an answer itself. Links go with their session, detached or not.
func (s *session) onEnd() {
	s.release()
	if !s.ending {
		s.sendEnd(nil)
	}
	delete(s.conn.sessions, s.channel)
}

func (s *session) sendEnd(f *fault) {
	b, at := openFrame(s.conn.out, frameAMQP, s.channel)
	b, list := openList(b, codeEnd)
	b = appendFault(b, f)
	s.conn.out = closeFrame(closeList(b, list, 1), at)
}

// release lets go of all links.
func (s *session) release() {
	for _, l := range s.links {
		l.release()
	}
	s.conn.links -= len(s.links)
	clear(s.links)
}

// sendFlow tells the peer our windows, and the state of a link if there is one (2.7.4).
func (s *session) sendFlow(l *link) {
	c := s.conn
	b, at := openFrame(c.out, frameAMQP, s.channel)
	b, list := openList(b, codeFlow)
	b = appendUint(b, s.nextIncoming)
	b = appendUint(b, s.incomingWindow)
	b = appendUint(b, s.nextOutgoing)
	b = appendUint(b, window)
	n := 4
	if l != nil {
		b = appendUint(b, l.handle)
		b = appendUint(b, l.deliveryCount)
		b = appendUint(b, l.credit)
		b = appendUint(b, 0) // available
		b = appendBool(b, l.drain)
		n = 9
	}
	c.out = closeFrame(closeList(b, list, n), at)
}

// onFlow takes over the peer's windows, and what it says of a link.
func (s *session) onFlow(p *composite) *fault {
	blocked := s.remoteWindow == 0
	// What is in flight counts against the window (2.5.6).
	s.remoteWindow = p.uint(0, 0) + p.uint(1, 0) - s.nextOutgoing
	if s.remoteWindow > 1<<31 {
		s.remoteWindow = 0
	}
	if blocked && s.remoteWindow > 0 {
		for _, l := range s.links {
			if l.sending {
				s.conn.ready(l)
			}
		}
	}
	echo := p.bool(9)
	if !p.has(4) {
		if echo {
			s.sendFlow(nil)
		}
		return nil
	}
	l := s.links[p.uint(4, 0)]
	if l == nil {
		return &fault{condUnattached, "a flow came for a handle that is not attached"}
	}
	if l.detached {
		return nil
	}
	if l.sending {
		l.credit = p.uint(5, 0) + p.uint(6, 0) - l.deliveryCount
		if l.credit > 1<<31 {
			l.credit = 0
		}
		l.drain = p.bool(8)
		s.conn.ready(l)
	}
	if echo {
		s.sendFlow(l)
	}
	return nil
}

// onDisposition answers a receiver that settles second (2.6.12). Nothing else is of interest: events are not kept for a receiver.
func (s *session) onDisposition(p *composite) {
	if fromReceiver := p.bool(0); !fromReceiver || p.bool(3) || !p.has(1) {
		return
	}
	first := p.uint(1, 0)
	b, at := openFrame(s.conn.out, frameAMQP, s.channel)
	b, list := openList(b, codeDisposition)
	b = appendBool(b, false) // the role of a sender
	b = appendUint(b, first)
	b = appendUint(b, p.uint(2, first))
	b = appendBool(b, true)
	b = appendRaw(b, p.raw(4))
	s.conn.out = closeFrame(closeList(b, list, 5), at)
}

// onDetach answers the peer's detach, unless it is an answer itself.
func (s *session) onDetach(p *composite) *fault {
	handle := p.uint(0, 0)
	l := s.links[handle]
	if l == nil {
		return &fault{condUnattached, "a detach came for a handle that is not attached"}
	}
	l.detach(nil)
	delete(s.links, handle)
	s.conn.links--
	return nil
}
