package eventhub

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
)

// peer is a client that says whatever a test wants.
type peer struct {
	t  *testing.T
	nc net.Conn
	fr *frameReader
}

// newPeer connects and gets as far as open. An idle time-out of 0 is none.
func newPeer(t *testing.T, b *Broker, maxFrameSize, idle uint32) *peer {
	t.Helper()
	nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.Addr())
	must(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	must(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
	p := &peer{t, nc, newFrameReader(nc)}
	p.raw(protocolHeader(protocolSASL))
	p.raw(performative(frameSASL, 0, codeInit, 1, appendSymbol(nil, anonymous)))
	p.raw(protocolHeader(protocolAMQP))
	p.header(protocolSASL)
	p.want(codeMechanisms)
	p.want(codeOutcome)
	p.header(protocolAMQP)
	open := appendUint(appendNull(appendString(nil, "peer")), maxFrameSize)
	open = appendUint(appendNull(open), idle)
	p.send(0, codeOpen, 5, open)
	p.want(codeOpen)
	return p
}

// performative makes a frame from encoded fields.
func performative(kind byte, channel uint16, code byte, count int, fields []byte, payload ...byte) []byte {
	b, at := openFrame(nil, kind, channel)
	b, list := openList(b, code)
	b = closeList(append(b, fields...), list, count)
	return closeFrame(append(b, payload...), at)
}

func (p *peer) raw(b []byte) {
	p.t.Helper()
	_, err := p.nc.Write(b)
	must(p.t, err)
}

func (p *peer) send(channel uint16, code byte, count int, fields []byte, payload ...byte) {
	p.t.Helper()
	p.raw(performative(frameAMQP, channel, code, count, fields, payload...))
}

func (p *peer) header(want byte) {
	p.t.Helper()
	id, err := p.fr.protocol()
	must(p.t, err)
	if id != want {
		p.t.Fatalf("got the protocol %d, want %d", id, want)
	}
}

// want reads until a performative comes, and skips flows and keep-alives that come before.
func (p *peer) want(code uint64) *composite {
	p.t.Helper()
	for {
		_, _, body, err := p.fr.next()
		if err != nil {
			p.t.Fatalf("waiting for %#x: %v", code, err)
		}
		if len(body) == 0 {
			continue
		}
		c := &composite{}
		_, err = c.parse(append([]byte(nil), body...))
		must(p.t, err)
		if c.code == code {
			return c
		}
		if c.code != codeFlow {
			p.t.Fatalf("got the performative %#x, want %#x", c.code, code)
		}
	}
}

// wantFault reads until a performative comes with an error.
func (p *peer) wantFault(code uint64, condition string) {
	p.t.Helper()
	c := p.want(code)
	at := 0
	if code == codeDetach {
		at = 2
	}
	var e composite
	_, err := e.parse(c.raw(at))
	must(p.t, err)
	if got := string(field(&e, 0, symbol(""))); got != condition {
		p.t.Errorf("the condition is %s, want %s: %s", got, condition, e.string(1))
	}
}

func (p *peer) begin() {
	p.t.Helper()
	p.send(0, codeBegin, 4, appendUint(appendUint(appendUint(appendNull(nil), 0), 10), 10))
	p.want(codeBegin)
}

// authorize puts a claim into the only connection; how to put one in the long way is tested with the client.
func (p *peer) authorize(b *Broker) {
	b.mu.Lock()
	conn := b.connections()[0]
	b.mu.Unlock()
	conn.mu.Lock()
	defer conn.mu.Unlock()
	conn.claims[""] = claim{RightListen | RightSend, time.Now().Add(time.Hour)}
}

func attachFields(name string, handle uint32, receives bool, source, target string) []byte {
	terminus := func(b []byte, code byte, addr string) []byte {
		b, at := openList(b, code)
		return closeList(appendString(b, addr), at, 1)
	}
	b := appendBool(appendUint(appendString(nil, name), handle), receives)
	b = appendNull(appendNull(b))
	return terminus(terminus(b, 0x28, source), 0x29, target)
}

func (p *peer) attach(handle uint32, receives bool, source, target string) {
	p.t.Helper()
	p.send(0, codeAttach, 7, attachFields("link", handle, receives, source, target))
	p.want(codeAttach)
}

func transferFields(handle, id uint32, more bool) []byte {
	b := appendUint(appendUint(nil, handle), id)
	b = appendUint(append(b, 0xa0, 1, 0), 0)
	return appendBool(appendBool(b, false), more)
}

func TestMisbehaviourIsAnswered(t *testing.T) {
	const full = 6 // fields of a transfer
	for name, c := range map[string]struct {
		act       func(p *peer)
		answer    uint64
		condition string
	}{
		"not a frame":          {func(p *peer) { p.raw([]byte{0, 0, 0, 1, 2, 0, 0, 0}) }, codeClose, condFraming},
		"a frame too large":    {func(p *peer) { p.raw([]byte{0x7f, 0, 0, 0, 2, 0, 0, 0}) }, codeClose, condFraming},
		"a wrong offset":       {func(p *peer) { p.raw([]byte{0, 0, 0, 8, 9, 0, 0, 0}) }, codeClose, condFraming},
		"not a performative":   {func(p *peer) { p.raw([]byte{0, 0, 0, 9, 2, 0, 0, 0, 0x41}) }, codeClose, condDecode},
		"an unknown one":       {func(p *peer) { p.send(0, 0x33, 0, nil) }, codeClose, condNotAllowed},
		"a second open":        {func(p *peer) { p.send(0, codeOpen, 0, nil) }, codeClose, condNotAllowed},
		"no session":           {func(p *peer) { p.send(5, codeFlow, 0, nil) }, codeClose, condNotAllowed},
		"a channel in use":     {func(p *peer) { p.send(0, codeBegin, 0, nil) }, codeClose, condFraming},
		"a wrong type":         {func(p *peer) { p.send(0, codeFlow, 1, appendString(nil, "x")) }, codeEnd, condDecode},
		"a flow for no link":   {func(p *peer) { p.send(0, codeFlow, 5, []byte{0x43, 0x43, 0x43, 0x43, 0x43}) }, codeEnd, condUnattached},
		"a detach for no link": {func(p *peer) { p.send(0, codeDetach, 1, []byte{0x43}) }, codeEnd, condUnattached},
		"a handle in use": {func(p *peer) {
			p.attach(3, false, "", nodeCBS)
			p.send(0, codeAttach, 7, attachFields("x", 3, false, "", nodeCBS))
		}, codeEnd, condHandleInUse},
		"a handle too high": {func(p *peer) { p.send(0, codeAttach, 7, attachFields("x", 5000, false, "", nodeCBS)) }, codeEnd, condLimit},
		"a name too long": {func(p *peer) {
			p.send(0, codeAttach, 7, attachFields(string(make([]byte, 2000)), 0, false, "", nodeCBS))
		}, codeEnd, condFrameSize},
		"a transfer to nobody":  {func(p *peer) { p.send(0, codeTransfer, full, transferFields(9, 0, false)) }, codeEnd, condUnattached},
		"answers to nobody":     {func(p *peer) { p.attach(1, true, nodeCBS, "") }, codeDetach, condInvalidField},
		"no claim":              {func(p *peer) { p.attach(1, true, "hub/ConsumerGroups/$Default/Partitions/0", "me") }, codeDetach, condUnauthorized},
		"no claim to send":      {func(p *peer) { p.attach(1, false, "me", "hub") }, codeDetach, condUnauthorized},
		"no claim to ask":       {func(p *peer) { p.attach(1, false, "me", nodeManagement) }, codeDetach, condUnauthorized},
		"an address of no kind": {func(p *peer) { p.attach(1, true, "hub", "me") }, codeDetach, condNotFound},
		"no delivery-id": {func(p *peer) {
			p.attach(1, false, "me", nodeCBS)
			p.send(0, codeTransfer, 1, appendUint(nil, 1))
		}, codeDetach, condNotAllowed},
		"a message too large": {func(p *peer) {
			p.attach(1, false, "me", nodeCBS)
			for range 3 {
				p.send(0, codeTransfer, full, transferFields(1, 0, true), make([]byte, 50_000)...)
			}
		}, codeDetach, condTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t, Options{MaxMessageSize: 100_000})
			p := newPeer(t, b, maxFrame, 0)
			p.begin()
			c.act(p)
			p.wantFault(c.answer, c.condition)
			if c.answer == codeClose {
				p.send(0, codeClose, 0, nil)
				if _, _, _, err := p.fr.next(); err == nil {
					t.Error("the connection stays open after a close")
				}
			}
		})
	}
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	for name, payload := range map[string][]byte{
		"nothing":       {},
		"no sections":   {1, 2, 3},
		"cut off":       {0x00, 0x53, 0x77, 0xb1, 0xff},
		"nobody to ask": {0x00, 0x53, 0x77, 0x40},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, newBroker(t, Options{}), maxFrame, 0)
			p.begin()
			p.attach(1, false, "me", nodeCBS)
			p.send(0, codeTransfer, 6, transferFields(1, 0, false), payload...)
			var state composite
			_, err := state.parse(p.want(codeDisposition).raw(4))
			must(t, err)
			if state.code != codeRejected {
				t.Errorf("the state is %#x, want rejected", state.code)
			}
		})
	}
}

func TestOtherProtocols(t *testing.T) {
	b := newBroker(t, Options{})
	for name, c := range map[string]struct {
		sent []byte
		want string // all that the broker answers
	}{
		"AMQP without SASL": {protocolHeader(protocolAMQP), string(protocolHeader(protocolSASL))},
		"AMQP 0.9.1":        {[]byte("AMQP\x00\x00\x09\x01"), ""},
		"HTTP":              {[]byte("GET / HTTP/1.1\r\n\r\n"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.Addr())
			must(t, err)
			defer func() { _ = nc.Close() }()
			_, err = nc.Write(c.sent)
			must(t, err)
			if got, _ := io.ReadAll(nc); string(got) != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSmallFrames has a peer that accepts the least that the specification allows, in a window of ten frames.
func TestSmallFrames(t *testing.T) {
	b := newBroker(t, Options{})
	want := make([]byte, 20_000)
	for i := range want {
		want[i] = byte(i / 7)
	}
	must(t, b.Send("hub", "0", Event{Body: want}))
	p := newPeer(t, b, minFrame, 0)
	p.begin()
	p.authorize(b)
	p.attach(1, true, "hub/ConsumerGroups/$Default/Partitions/0", "me")

	var message []byte
	frames := uint32(0)
	for more := true; more; {
		if frames%10 == 0 { // a window, and credit for one
			fields := appendUint(appendUint(nil, frames), 10)
			fields = appendUint(appendUint(fields, 0), 10)
			fields = appendUint(appendUint(appendUint(fields, 1), 0), 1)
			p.send(0, codeFlow, 7, fields)
		}
		_, _, body, err := p.fr.next()
		must(t, err)
		if len(body)+frameHeader > minFrame {
			t.Fatalf("a frame has %d bytes", len(body)+frameHeader)
		}
		var c composite
		payload, err := c.parse(body)
		must(t, err)
		if c.code != codeTransfer {
			t.Fatalf("got the performative %#x", c.code)
		}
		message = append(message, payload...)
		more = c.bool(5)
		frames++
	}
	if got := decodeEvent(message); string(got.Body) != string(want) {
		t.Errorf("%d bytes came, in %d frames", len(got.Body), frames)
	}
}

// TestSingleMessages sends without a batch, which the client never does: in one frame, in two, and aborted.
func TestSingleMessages(t *testing.T) {
	b := newBroker(t, Options{})
	p := newPeer(t, b, maxFrame, 0)
	p.begin()
	p.authorize(b)
	p.attach(1, false, "me", "hub/Partitions/1")
	event := []byte{0x00, 0x53, codeData, 0xa0, 4, 'b', 'o', 'd', 'y'}
	accepted := func() {
		t.Helper()
		var state composite
		_, err := state.parse(p.want(codeDisposition).raw(4))
		must(t, err)
		if state.code != codeAccepted {
			t.Errorf("the state is %#x, want accepted", state.code)
		}
	}
	p.send(0, codeTransfer, 6, transferFields(1, 0, false), event...)
	accepted()
	p.send(0, codeTransfer, 6, transferFields(1, 1, true), event[:3]...)
	p.send(0, codeTransfer, 6, transferFields(1, 1, false), event[3:]...)
	accepted()
	p.send(0, codeTransfer, 6, transferFields(1, 2, true), event[:3]...)
	p.send(0, codeTransfer, 10, append(transferFields(1, 2, false), 0x40, 0x40, 0x42, 0x41)) // aborted
	p.send(0, codeTransfer, 6, transferFields(1, 3, false), event...)
	accepted()
	events := b.Events("hub", "1")
	if len(events) != 3 {
		t.Fatalf("%d events, want 3", len(events))
	}
	for _, e := range events {
		if string(e.Body) != "body" {
			t.Errorf("the event %d has the body %q", e.SequenceNumber, e.Body)
		}
	}
}

func TestSilentPeersAreDropped(t *testing.T) {
	const idle = 50 * time.Millisecond
	b := newBroker(t, Options{IdleTimeout: idle})
	start := time.Now()
	p := newPeer(t, b, maxFrame, 0)
	if _, _, _, err := p.fr.next(); err == nil {
		t.Fatal("a silent peer got a frame")
	}
	if took := time.Since(start); took < idle || took > 100*idle {
		t.Errorf("it took %s", took)
	}
}

func TestKeepAlives(t *testing.T) {
	const idle = 100 * time.Millisecond
	// Each side drops the other when it is silent, so the connection lasts only if both send keep-alives.
	b := newBroker(t, Options{IdleTimeout: idle})
	c, err := amqp.Dial(t.Context(), "amqp://"+b.Addr(), &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous(), IdleTimeout: idle})
	must(t, err)
	select {
	case <-c.Done():
		t.Errorf("the connection ended: %v", c.Err())
	case <-time.After(6 * idle):
	}
	_, err = c.NewSession(testContext(t), nil)
	must(t, err)
	must(t, c.Close())
}

func TestKeepAliveIsAnEmptyFrame(t *testing.T) {
	p := newPeer(t, newBroker(t, Options{}), maxFrame, 50)
	kind, channel, body, err := p.fr.next()
	must(t, err)
	if kind != frameAMQP || channel != 0 || len(body) != 0 {
		t.Errorf("got a frame of kind %d on channel %d with %d bytes", kind, channel, len(body))
	}
}

func TestCloseEndsEverything(t *testing.T) {
	b, err := Start(context.WithoutCancel(t.Context()), Options{})
	must(t, err)
	p := newPeer(t, b, maxFrame, 0)
	b.Close()
	if _, err := p.nc.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open after Close")
	}
	b.Close()
	if b.DropConnections() != 0 {
		t.Error("there are connections after Close")
	}
}
