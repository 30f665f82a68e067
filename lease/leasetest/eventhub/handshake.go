package eventhub

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"
)

const (
	protocolAMQP = 0
	protocolSASL = 3

	// anonymous is the SASL mechanism of whoever authenticates with claims later on; Azure's name for it is accepted too.
	anonymous = "ANONYMOUS"
	cbsSASL   = "MSSBCBS"
)

var errRefused = errors.New("the peer was refused")

// isFraming tells whether a peer can be told what was wrong with what it sent.
func isFraming(err error) bool { return errors.Is(err, errFraming) }

// handshake does what comes before sessions: TLS, SASL (5.3) and open (2.4.1). It is the only one to use the connection.
func (c *conn) handshake() error {
	if t, ok := c.net.(*tls.Conn); ok {
		_ = t.SetDeadline(time.Now().Add(handshakeTimeout))
		if err := t.Handshake(); err != nil { //nolint:noctx // bounded by the deadline, and by abort
			return err
		}
		_ = t.SetDeadline(time.Time{})
	}
	id, err := c.frames.protocol()
	if err != nil {
		return err
	}
	if id != protocolSASL {
		// The answer to a header that is not acceptable is one that is (2.2).
		_ = c.send(protocolHeader(protocolSASL))
		return errRefused
	}
	if err := c.sasl(); err != nil {
		return err
	}
	if id, err = c.frames.protocol(); err != nil {
		return err
	}
	if id != protocolAMQP {
		_ = c.send(protocolHeader(protocolAMQP))
		return errRefused
	}
	if err := c.send(protocolHeader(protocolAMQP)); err != nil {
		return err
	}
	return c.open()
}

// send writes to the peer before there is a writer.
func (c *conn) send(b []byte) error {
	if err := c.net.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.net.Write(b)
	return err
}

// sasl offers what is accepted, and accepts it.
func (c *conn) sasl() error {
	b, at := openFrame(protocolHeader(protocolSASL), frameSASL, 0)
	b, list := openList(b, codeMechanisms)
	// An array of two symbols: constructor, then each with its size.
	b = append(b, 0xe0, byte(2+len(anonymous)+1+len(cbsSASL)+1), 2, 0xa3)
	b = append(append(b, byte(len(anonymous))), anonymous...)
	b = append(append(b, byte(len(cbsSASL))), cbsSASL...)
	if err := c.send(closeFrame(closeList(b, list, 1), at)); err != nil {
		return err
	}
	p, err := c.expect(frameSASL, codeInit)
	if err != nil {
		return err
	}
	mechanism := string(field(p, 0, symbol("")))
	outcome := byte(0)
	if mechanism != anonymous && mechanism != cbsSASL {
		outcome = 1 // authentication failed (5.3.3.6)
	}
	b, at = openFrame(nil, frameSASL, 0)
	b, list = openList(b, codeOutcome)
	b = appendUbyte(b, outcome)
	if err := c.send(closeFrame(closeList(b, list, 1), at)); err != nil {
		return err
	}
	if outcome != 0 {
		return fmt.Errorf("%w: it wants the SASL mechanism %q", errRefused, mechanism)
	}
	return nil
}

// open exchanges the open performatives.
func (c *conn) open() error {
	p, err := c.expect(frameAMQP, codeOpen)
	if err != nil {
		return err
	}
	c.hostname = p.string(1)
	size := p.uint(2, maxFrame)
	c.maxFrame = int(min(max(size, minFrame), maxFrame))
	if idle := p.uint(4, 0); idle > 0 {
		c.idle = max(time.Duration(idle)*time.Millisecond, 20*time.Millisecond)
	}
	b, at := openFrame(nil, frameAMQP, 0)
	b, list := openList(b, codeOpen)
	b = appendString(b, "lighterman-test-broker")
	b = appendNull(b)
	b = appendUint(b, maxFrame)
	b = appendUshort(b, maxChannel)
	b = appendUint(b, uint32(min(c.broker.opts.IdleTimeout.Milliseconds(), 1<<31))) //nolint:gosec // bounded by min
	b = closeFrame(closeList(b, list, 5), at)
	if p.err != nil {
		// The reason is told in a close, which must follow an open (2.4.1).
		b, at = openFrame(b, frameAMQP, 0)
		b, list = openList(b, codeClose)
		b = appendFault(b, &fault{condDecode, p.err.Error()})
		_ = c.send(closeFrame(closeList(b, list, 1), at))
		return p.err
	}
	return c.send(b)
}

// expect reads the one performative that may come now.
func (c *conn) expect(kind byte, code uint64) (*composite, error) {
	for {
		k, _, body, err := c.frames.next()
		if err != nil {
			return nil, err
		}
		if len(body) == 0 && k == frameAMQP {
			continue // a keep-alive
		}
		p := &composite{}
		if _, err := p.parse(body); err != nil {
			return nil, err
		}
		if k != kind || p.code != code {
			return nil, fmt.Errorf("%w: the performative %#x came where %#x was expected", errFraming, p.code, code)
		}
		return p, nil
	}
}
