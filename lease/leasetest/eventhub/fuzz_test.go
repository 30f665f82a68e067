package eventhub

import (
	"bytes"
	"net"
	"testing"
	"time"
)

// FuzzFrame feeds a connection with whatever, as frames after open, and lets it answer. Nothing may panic, no answer may be
// anything but well-formed frames, and no link may stay when the connection is gone.
func FuzzFrame(f *testing.F) {
	frame := func(code byte, count int, fields []byte, payload ...byte) []byte {
		return performative(frameAMQP, 0, code, count, fields, payload...)
	}
	begin := frame(codeBegin, 4, []byte{0x40, 0x43, 0x52, 100, 0x52, 100})
	attach := func(handle uint32, receives bool, source, target string) []byte {
		return frame(codeAttach, 7, attachFields("l", handle, receives, source, target))
	}
	flow := frame(codeFlow, 9, []byte{0x43, 0x52, 100, 0x43, 0x52, 100, 0x43, 0x43, 0x52, 10, 0x43, 0x41})
	const source = "hub/ConsumerGroups/$Default/Partitions/0"
	event := []byte{0x00, 0x53, codeData, 0xa0, 4, 'b', 'o', 'd', 'y'}
	batch := append([]byte{0x00, 0x53, codeData, 0xa0, byte(len(event))}, event...)
	request := []byte{0x00, 0x53, codeProperties, 0xc0, 11, 5, 0xa1, 1, 'i', 0x40, 0x40, 0x40, 0xa1, 2, 'm', 'e'}
	request = append(request, 0x00, 0x53, codeValue, 0xa1, 1, 't')

	f.Add(begin)
	f.Add(bytes.Join([][]byte{begin, attach(0, true, source, "me"), flow, frame(codeDetach, 2, []byte{0x43, 0x41}), frame(codeEnd, 0, nil)}, nil))
	f.Add(bytes.Join([][]byte{begin, attach(0, false, "me", "hub"), frame(codeTransfer, 6, transferFields(0, 0, false), event...)}, nil))
	f.Add(bytes.Join([][]byte{
		begin, attach(0, false, "me", "hub/Partitions/1"),
		frame(codeTransfer, 4, []byte{0x43, 0x43, 0xa0, 1, 0, 0x70, 0x80, 0x01, 0x37, 0x00}, batch...),
	}, nil))
	f.Add(bytes.Join([][]byte{
		begin, attach(0, true, nodeCBS, "me"), flow, attach(1, false, "me", nodeCBS),
		frame(codeTransfer, 6, transferFields(1, 0, false), request...),
	}, nil))
	f.Add(bytes.Join([][]byte{
		begin, attach(0, true, nodeManagement, "me"), flow, attach(1, false, "me", nodeManagement),
		frame(codeTransfer, 6, transferFields(1, 0, true), request[:9]...),
		frame(codeTransfer, 6, transferFields(1, 0, false), request[9:]...),
	}, nil))
	f.Add(frame(codeDisposition, 5, []byte{0x41, 0x43, 0x43, 0x42, 0x45}))
	f.Add(frame(codeClose, 0, nil))
	f.Add([]byte{0, 0, 0, 8, 2, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 12, 2, 0, 0, 0, 0xf0, 0, 0, 0})

	f.Fuzz(func(t *testing.T, data []byte) {
		o := Options{MaxMessageSize: 1 << 16, MaxEvents: 100, MaxBytes: 1 << 20}
		b := &Broker{opts: o.withDefaults(), hubs: map[string]*hub{}, conns: map[*conn]struct{}{}}
		must(t, b.CreateHub("hub", 2))
		must(t, b.Send("hub", "0", numbered(3)...))
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		c := newConn(b, near)
		c.maxFrame = minFrame
		c.claims[""] = claim{RightListen | RightSend, time.Now().Add(time.Hour)}
		in := newFrameReader(bytes.NewReader(data))
		for {
			_, channel, body, err := in.next()
			if err != nil {
				break
			}
			if len(body) == 0 {
				continue
			}
			c.mu.Lock()
			bye := c.handle(channel, body)
			if bye != nil {
				c.shut(*bye)
			}
			c.obey()
			c.pump()
			c.mu.Unlock()
			if bye != nil || len(c.out) > maxPending {
				break
			}
		}
		out := newFrameReader(bytes.NewReader(c.out))
		for {
			_, _, body, err := out.next()
			if err != nil {
				if isFraming(err) || out.r.Buffered() > 0 {
					t.Fatalf("an answer is not a frame: %v", err)
				}
				break
			}
			var p composite
			if _, err := p.parse(body); err != nil {
				t.Fatalf("an answer is not a performative: %v: %x", err, body)
			}
			if len(body)+frameHeader > minFrame {
				t.Fatalf("the performative %#x has %d bytes", p.code, len(body)+frameHeader)
			}
		}
		c.mu.Lock()
		for _, s := range c.sessions {
			s.release()
		}
		c.mu.Unlock()
		h, err := b.hub("hub")
		must(t, err)
		p := h.partition("0")
		if c.links != 0 || c.partial != 0 || len(c.replies) != 0 || len(h.senders) != 0 || len(p.receivers) != 0 || len(p.waiting) != 0 {
			t.Errorf("what stays: %d links, %d bytes, %d replies, %d senders, %d receivers, %d waiting",
				c.links, c.partial, len(c.replies), len(h.senders), len(p.receivers), len(p.waiting))
		}
		// What was stored must be readable.
		for _, id := range []string{"0", "1"} {
			for _, stored := range h.partition(id).snapshot() {
				if _, err := split(stored); err != nil {
					t.Errorf("a stored event does not decode: %v: %x", err, stored)
				}
			}
		}
	})
}
