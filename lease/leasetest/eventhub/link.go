package eventhub

import (
	"encoding/binary"
	"fmt"
)

// link is a link endpoint (2.6): one that sends events or answers, or one that receives events or requests.
//
// It belongs to its session, and the lock of the connection guards it, except where another is named.
type link struct {
	conn     *conn
	session  *session
	handle   uint32
	name     string
	sending  bool // the peer receives
	detached bool // our detach was sent; what comes before the peer's is to be ignored (2.6.4)

	deliveryCount uint32
	credit        uint32 // what we may still send, or the peer
	drain         bool

	// Of links that send. Receivers of a partition have a part, of answers a replyTo.
	settled   bool
	part      *partition
	group     string
	receiver  string // the name that it gave itself
	epoch     int64
	hasEpoch  bool
	replyTo   string
	batch     [][]byte // batch[at:] is to be sent
	at        int
	current   []byte // what is left of the message that is being sent
	currentID uint32
	started   bool // the first frame of the current message was sent
	queued    bool // in the inbox; guarded by its lock
	cursor    int64
	waiting   bool // in part.waiting; guarded by its lock
	revoked   bool // taken from part.receivers; guarded by its lock

	// Of links that receive. Those for requests have a node, those for events a hub.
	node      string // $cbs or $management
	hub       *hub
	partition string // or empty
	delivery  delivery
}

// delivery is a message on its way in.
type delivery struct {
	more    bool // its first frame came, its last did not
	id      uint32
	format  uint32
	settled bool
	payload []byte
}

const (
	maxReplies    = 256 // answers that wait for credit
	senderCredit  = 1000
	fetchEvents   = 256
	fetchBytes    = 32 << 10
	transferFixed = 64 // more than a transfer frame takes besides its payload
)

// release ends what the link has to do with the rest of the broker.
func (l *link) release() {
	if l.part != nil {
		l.part.leave(l)
	}
	if l.hub != nil {
		l.hub.mu.Lock()
		delete(l.hub.senders, l)
		l.hub.mu.Unlock()
	}
	if l.replyTo != "" && l.conn.replies[l.replyTo] == l {
		delete(l.conn.replies, l.replyTo)
	}
	l.conn.partial -= len(l.delivery.payload)
	l.delivery = delivery{}
	l.batch, l.current = nil, nil
	l.detached = true
}

// detach sends a detach, with an error or without, unless one was sent before.
func (l *link) detach(f *fault) {
	if l.detached {
		return
	}
	l.release()
	c := l.conn
	if c.closing || l.session.ending {
		return
	}
	b, at := openFrame(c.out, frameAMQP, l.session.channel)
	b, list := openList(b, codeDetach)
	b = appendUint(b, l.handle)
	b = appendBool(b, true) // closed
	b = appendFault(b, f)
	c.out = closeFrame(closeList(b, list, 3), at)
	c.inbox.wake()
}

// deliver sends what the link has, as far as credit and window allow, and tells whether to call it again.
func (l *link) deliver() bool {
	s, c := l.session, l.conn
	if l.detached || s.ending || !l.sending {
		return false
	}
	sent := uint64(0)
	for len(c.out) < flushSize {
		if l.current == nil {
			if l.credit == 0 {
				break
			}
			if l.at == len(l.batch) {
				l.batch, l.at = l.batch[:0], 0
				if sent > 0 {
					break // it is the turn of others
				}
				if l.part != nil {
					l.part.read(l, int(min(l.credit, fetchEvents)), fetchBytes)
				}
			}
			if len(l.batch) == 0 {
				if l.drain {
					l.deliveryCount += l.credit
					l.credit = 0
					s.sendFlow(l)
				}
				return false
			}
			l.current, l.batch[l.at] = l.batch[l.at], nil
			l.at++
			l.currentID, l.started = s.deliveryID, false
			s.deliveryID++
			l.deliveryCount++
			l.credit--
			sent++
		}
		if s.remoteWindow == 0 {
			break
		}
		l.transfer()
	}
	if l.part != nil && sent > 0 {
		l.part.hub.stats.transfersOut.Add(sent)
	}
	// Without window or credit, a flow brings the link back.
	return s.remoteWindow > 0 && (l.credit > 0 || l.current != nil)
}

// transfer sends one frame of the current message (2.7.5).
func (l *link) transfer() {
	s, c := l.session, l.conn
	n := min(len(l.current), c.maxFrame-transferFixed)
	more := n < len(l.current)
	b, at := openFrame(c.out, frameAMQP, s.channel)
	b, list := openList(b, codeTransfer)
	b = appendUint(b, l.handle)
	b = appendUint(b, l.currentID)
	if l.started {
		b = append(b, 0x40, 0x40) // the tag and the format are those of the first frame
	} else {
		b = append(b, 0xa0, 4)
		b = binary.BigEndian.AppendUint32(b, l.currentID)
		b = append(b, 0x43) // format 0
	}
	b = appendBool(b, l.settled)
	b = appendBool(b, more)
	b = closeList(b, list, 6)
	b = append(b, l.current[:n]...)
	c.out = closeFrame(b, at)
	l.current, l.started = l.current[n:], true
	if !more {
		l.current = nil
	}
	s.nextOutgoing++
	s.remoteWindow--
}

// reply sends an answer.
func (l *link) reply(message []byte) {
	if len(l.batch)-l.at >= maxReplies {
		l.detach(&fault{condLimit, "too many answers wait for credit"})
		return
	}
	l.batch = append(l.batch, message)
	l.conn.ready(l)
}

// revoke takes a receiver from its partition and detaches it, and tells whether it was there. Any goroutine may call it that holds
// no lock of a partition.
func (l *link) revoke(f *fault) bool {
	if !l.part.leave(l) {
		return false
	}
	l.conn.inbox.post(command{l, f})
	return true
}

func (l *link) String() string {
	if l.hasEpoch {
		return fmt.Sprintf("the receiver %q with the epoch %d", l.receiver, l.epoch)
	}
	return fmt.Sprintf("the receiver %q without an epoch", l.receiver)
}
