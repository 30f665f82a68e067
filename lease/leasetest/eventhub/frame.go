package eventhub

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	frameHeader = 8
	// maxFrame is the max-frame-size that the broker announces. Azure announces the same.
	maxFrame = 64 << 10
	// minFrame is the least max-frame-size that a peer may have (2.7.1).
	minFrame = 512
)

var errFraming = errors.New("framing error")

// frameReader reads frames (2.3). The body of one is valid until the next is read.
type frameReader struct {
	r   *bufio.Reader
	buf []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// protocol reads a protocol header and returns its id: 0 for AMQP, 3 for SASL (2.2).
func (f *frameReader) protocol() (byte, error) {
	var h [8]byte
	if _, err := io.ReadFull(f.r, h[:]); err != nil {
		return 0, err
	}
	if string(h[:4]) != "AMQP" || h[5] != 1 || h[6] != 0 || h[7] != 0 {
		return 0, fmt.Errorf("%w: the peer does not speak AMQP 1.0.0", errFraming)
	}
	return h[4], nil
}

// next reads one frame. An empty body is a keep-alive (2.4.5).
func (f *frameReader) next() (kind byte, channel uint16, body []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(f.r, h[:]); err != nil {
		return 0, 0, nil, err
	}
	size, offset := binary.BigEndian.Uint32(h[:]), int(h[4])*4
	if size < frameHeader || size > maxFrame {
		return 0, 0, nil, fmt.Errorf("%w: a frame has a size of %d bytes, at most %d are allowed", errFraming, size, maxFrame)
	}
	if offset < frameHeader || offset > int(size) {
		return 0, 0, nil, fmt.Errorf("%w: the data offset %d is outside of the frame", errFraming, offset)
	}
	n := int(size) - frameHeader
	if cap(f.buf) < n {
		f.buf = make([]byte, n, max(n, 4096))
	}
	f.buf = f.buf[:n]
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return 0, 0, nil, err
	}
	return h[5], binary.BigEndian.Uint16(h[6:]), f.buf[offset-frameHeader:], nil
}

func protocolHeader(id byte) []byte { return []byte{'A', 'M', 'Q', 'P', id, 1, 0, 0} }
