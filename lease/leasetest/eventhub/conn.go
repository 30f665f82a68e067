package eventhub

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	handshakeTimeout = 10 * time.Second
	writeTimeout     = 15 * time.Second
	lingerTimeout    = 100 * time.Millisecond
	// flushSize is when a batch of outgoing frames is written; see write.go.
	flushSize = 64 << 10
	// maxPending is how much may wait to be written before the broker stops to read from that peer.
	maxPending = 1 << 20
	maxChannel = 8191
	maxLinks   = 8192 // of one connection
	maxClaims  = 4096 // of one connection
	// maxPartials is how many unfinished messages of the largest size a connection may have.
	maxPartials = 16
)

// conn is a connection with a peer. One goroutine reads and acts on what it reads (serve), another writes (write).
//
// The lock guards everything below it. It is taken before the locks of partitions and hubs; what other connections want of
// this one they leave in its inbox.
type conn struct {
	broker *Broker
	net    net.Conn
	frames *frameReader

	done      chan struct{} // closed by abort
	abortOnce sync.Once
	lingering atomic.Pointer[time.Time] // until when to read on after our close
	inbox     inbox

	mu       sync.Mutex
	drained  sync.Cond // out was taken by the writer
	out      []byte    // frames to be written
	closing  bool      // our close is in out, or was sent: nothing may follow it
	dead     bool      // nobody writes any more
	sessions map[uint16]*session
	replies  map[string]*link // by the address of their target
	claims   map[string]claim
	links    int // attached, in all sessions
	partial  int // bytes of unfinished messages

	// From the peer's open; not written afterwards.
	hostname string
	maxFrame int
	idle     time.Duration
}

func newConn(b *Broker, nc net.Conn) *conn {
	c := &conn{
		broker: b, net: nc, done: make(chan struct{}), inbox: inbox{wakeup: make(chan struct{}, 1)},
		sessions: map[uint16]*session{}, replies: map[string]*link{}, claims: map[string]claim{},
	}
	c.drained.L = &c.mu
	c.frames = newFrameReader(patient{c})
	return c
}

// patient reads from a peer for as long as that is not silent for too long (2.4.5).
type patient struct{ c *conn }

func (p patient) Read(b []byte) (int, error) {
	// A peer that just meets the announced time-out must not be dropped for a little delay: it has twice as long.
	deadline := time.Now().Add(2 * p.c.broker.opts.IdleTimeout)
	if until := p.c.lingering.Load(); until != nil {
		deadline = *until
	}
	if err := p.c.net.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return p.c.net.Read(b)
}

// abort closes the connection without a word.
func (c *conn) abort() {
	c.abortOnce.Do(func() {
		close(c.done)
		_ = c.net.Close()
	})
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.abort()
	timer := time.AfterFunc(handshakeTimeout, c.abort)
	err := c.handshake()
	if !timer.Stop() || err != nil {
		return
	}
	var writer sync.WaitGroup
	writer.Go(c.write)
	bye := c.read()
	c.mu.Lock()
	if bye != nil {
		c.shut(*bye)
	}
	c.mu.Unlock()
	if bye == nil {
		c.abort()
	}
	writer.Wait() // it has a deadline for each write
	if bye != nil && bye.fault != nil {
		_, _ = io.Copy(io.Discard, patient{c}) // see linger
	}
	c.abort()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		s.release()
	}
}

// goodbye is how a connection ends in good order: a close performative, with an error or without.
type goodbye struct{ fault *fault }

// shut appends the close performative, after which the writer ends. The caller holds the lock.
func (c *conn) shut(g goodbye) {
	if c.closing {
		return
	}
	c.closing = true
	b, at := openFrame(c.out, frameAMQP, 0)
	b, list := openList(b, codeClose)
	b = appendFault(b, g.fault)
	c.out = closeFrame(closeList(b, list, 1), at)
	c.inbox.wake()
}

// read acts on frames until the peer closes the connection, breaks the protocol, or is gone (nil).
func (c *conn) read() *goodbye {
	for {
		kind, channel, body, err := c.frames.next()
		if err != nil {
			if isFraming(err) {
				return &goodbye{&fault{condFraming, err.Error()}}
			}
			return nil
		}
		if len(body) == 0 {
			continue
		}
		if kind != frameAMQP {
			return &goodbye{&fault{condFraming, "a SASL frame came after SASL"}}
		}
		c.mu.Lock()
		bye := c.handle(channel, body)
		for len(c.out) > maxPending && !c.dead {
			c.drained.Wait()
		}
		over := c.dead && !c.closing
		c.mu.Unlock()
		if bye != nil {
			return bye
		}
		if over {
			return nil
		}
	}
}

// handle acts on one frame. The caller holds the lock.
func (c *conn) handle(channel uint16, body []byte) *goodbye {
	var p composite
	payload, err := p.parse(body)
	if err != nil {
		return &goodbye{&fault{condDecode, "a performative does not decode: " + err.Error()}}
	}
	if c.closing && p.code != codeClose {
		return nil
	}
	switch p.code {
	case codeClose:
		return &goodbye{}
	case codeBegin:
		return c.begin(channel, &p)
	case codeAttach, codeFlow, codeTransfer, codeDisposition, codeDetach, codeEnd:
	default:
		return &goodbye{&fault{condNotAllowed, "unexpected performative"}}
	}
	s := c.sessions[channel]
	if s == nil {
		return &goodbye{&fault{condNotAllowed, "a frame came on a channel without a session"}}
	}
	var f *fault
	switch {
	case p.code == codeEnd:
		s.onEnd()
	case s.ending: // what comes before the peer's end is to be ignored (2.5.6)
	case p.code == codeAttach:
		f = s.onAttach(&p)
	case p.code == codeFlow:
		f = s.onFlow(&p)
	case p.code == codeTransfer:
		f = s.onTransfer(&p, payload)
	case p.code == codeDisposition:
		s.onDisposition(&p)
	case p.code == codeDetach:
		f = s.onDetach(&p)
	}
	if f == nil && p.err != nil {
		f = &fault{condDecode, p.err.Error()}
	}
	if f != nil {
		s.end(f)
	}
	c.inbox.wake()
	return nil
}

// slowed waits for as long as the fault wants each write delayed.
func (c *conn) slowed() {
	d := time.Duration(c.broker.faults.slow.Load())
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.done:
	}
}
