package eventhub

import (
	"encoding/binary"
	"sync"
	"time"
)

// inbox is where others leave what a connection has to do. Its lock is the innermost of all.
type inbox struct {
	wakeup chan struct{} // has room for one

	mu       sync.Mutex
	ready    []*link // that may have something to send
	commands []command
}

// command detaches a link, or closes the connection if there is none.
type command struct {
	link  *link
	fault *fault
}

func (i *inbox) wake() {
	select {
	case i.wakeup <- struct{}{}:
	default:
	}
}

func (i *inbox) post(cmd command) {
	i.mu.Lock()
	i.commands = append(i.commands, cmd)
	i.mu.Unlock()
	i.wake()
}

// ready has the writer look at a link, which it does once however often it is told.
func (c *conn) ready(l *link) {
	c.inbox.mu.Lock()
	if !l.queued {
		l.queued = true
		c.inbox.ready = append(c.inbox.ready, l)
	}
	c.inbox.mu.Unlock()
	c.inbox.wake()
}

// write is the goroutine that writes. It gathers frames, those that the reader left and transfers, and writes many at once.
func (c *conn) write() {
	defer func() {
		c.mu.Lock()
		c.dead = true
		c.drained.Broadcast()
		closing := c.closing
		c.mu.Unlock()
		if closing {
			c.linger()
		} else {
			c.abort()
		}
	}()
	var keepalive <-chan time.Time
	if c.idle > 0 {
		// Twice as often as the peer wants to hear from us (2.4.5).
		ticker := time.NewTicker(c.idle / 2)
		defer ticker.Stop()
		keepalive = ticker.C
	}
	var buf []byte
	for {
		c.mu.Lock()
		c.obey()
		c.pump()
		buf, c.out = c.out, buf[:0]
		closing := c.closing
		c.drained.Broadcast()
		c.mu.Unlock()

		if len(buf) == 0 {
			if closing {
				return
			}
			select {
			case <-c.inbox.wakeup:
				continue
			case <-keepalive:
				buf = binary.BigEndian.AppendUint64(buf, frameHeader<<32|2<<24)
			case <-c.done:
				return
			}
		}
		c.slowed()
		if err := c.send(buf); err != nil {
			return
		}
		if cap(buf) > 2*maxPending {
			buf = nil
		}
	}
}

// linger gives the peer a moment to read our close: a connection that is closed with unread bytes is reset, which loses what
// was sent.
func (c *conn) linger() {
	until := time.Now().Add(lingerTimeout)
	c.lingering.Store(&until)
	_ = c.net.SetReadDeadline(until)
}

// obey does what others left in the inbox. The caller holds the lock.
func (c *conn) obey() {
	c.inbox.mu.Lock()
	commands := c.inbox.commands
	c.inbox.commands = nil
	c.inbox.mu.Unlock()
	for _, cmd := range commands {
		if cmd.link != nil {
			cmd.link.detach(cmd.fault)
		} else {
			c.shut(goodbye{cmd.fault})
		}
	}
}

// pump fills the buffer with transfers of the links that have something to send, in turn. The caller holds the lock.
func (c *conn) pump() {
	for len(c.out) < flushSize && !c.closing {
		c.inbox.mu.Lock()
		if len(c.inbox.ready) == 0 {
			c.inbox.mu.Unlock()
			return
		}
		l := c.inbox.ready[0]
		c.inbox.ready[0] = nil
		c.inbox.ready = c.inbox.ready[1:]
		if len(c.inbox.ready) == 0 {
			c.inbox.ready = c.inbox.ready[:0:0]
		}
		l.queued = false
		c.inbox.mu.Unlock()
		if l.deliver() {
			c.ready(l)
		}
	}
}
