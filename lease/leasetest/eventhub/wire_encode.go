package eventhub

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// The encoder appends to a buffer; a frame, or a list in it, is opened, filled and closed, and closing writes its size.

const (
	frameAMQP = 0
	frameSASL = 1
)

func openFrame(b []byte, kind byte, channel uint16) ([]byte, int) {
	at := len(b)
	b = append(b, 0, 0, 0, 0, 2, kind)
	return binary.BigEndian.AppendUint16(b, channel), at
}

func closeFrame(b []byte, at int) []byte {
	binary.BigEndian.PutUint32(b[at:], length(len(b)-at))
	return b
}

// length is a size as it goes on the wire. Nothing that is sent is near to the limit.
func length(n int) uint32 { return uint32(min(n, math.MaxUint32)) } //nolint:gosec // bounded by min, and never negative

// openList begins a described list.
func openList(b []byte, code byte) ([]byte, int) {
	b = append(b, 0x00, 0x53, code, 0xd0, 0, 0, 0, 0, 0, 0, 0, 0)
	return b, len(b)
}

func closeList(b []byte, at, count int) []byte {
	binary.BigEndian.PutUint32(b[at-8:], length(len(b)-at+4))
	binary.BigEndian.PutUint32(b[at-4:], length(count))
	return b
}

func appendNull(b []byte) []byte { return append(b, 0x40) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 0x41)
	}
	return append(b, 0x42)
}

func appendUbyte(b []byte, v byte) []byte { return append(b, 0x50, v) }

func appendUshort(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, 0x60), v)
}

func appendUint(b []byte, v uint32) []byte {
	switch {
	case v == 0:
		return append(b, 0x43)
	case v < 256:
		return append(b, 0x52, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, 0x70), v)
}

func appendUlong(b []byte, v uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0x80), v)
}

func appendLong(b []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0x81), uint64(v)) //nolint:gosec // the same bits
}

func appendTimestamp(b []byte, ms int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0x83), uint64(ms)) //nolint:gosec // the same bits
}

// appendVariable appends a value of the types binary (0xa0), string (0xa1) or symbol (0xa3).
func appendVariable[T ~string | ~[]byte](b []byte, short byte, v T) []byte {
	if len(v) < 256 {
		b = append(b, short, byte(len(v)&0xff))
	} else {
		b = binary.BigEndian.AppendUint32(append(b, short+0x10), length(len(v)))
	}
	return append(b, v...)
}

func appendString(b []byte, v string) []byte { return appendVariable(b, 0xa1, v) }
func appendSymbol(b []byte, v string) []byte { return appendVariable(b, 0xa3, v) }

// appendRaw appends what a peer encoded, or null.
func appendRaw(b, raw []byte) []byte {
	if raw == nil {
		return appendNull(b)
	}
	return append(b, raw...)
}

// fault is an error that goes to a peer (2.8.14).
type fault struct{ condition, description string }

func (f *fault) String() string { return f.condition + ": " + f.description }

// maxDescription keeps what a peer sent, and an error tells again, from being too long for a frame of any size.
const maxDescription = 200

// Conditions that the broker uses itself (2.8.15 to 2.8.18). The faults can send any other.
const (
	condInternal      = "amqp:internal-error"
	condNotFound      = "amqp:not-found"
	condUnauthorized  = "amqp:unauthorized-access"
	condDecode        = "amqp:decode-error"
	condLimit         = "amqp:resource-limit-exceeded"
	condNotAllowed    = "amqp:not-allowed"
	condInvalidField  = "amqp:invalid-field"
	condNotImpl       = "amqp:not-implemented"
	condDeleted       = "amqp:resource-deleted"
	condFraming       = "amqp:connection:framing-error"
	condForced        = "amqp:connection:forced"
	condWindow        = "amqp:session:window-violation"
	condUnattached    = "amqp:session:unattached-handle"
	condHandleInUse   = "amqp:session:handle-in-use"
	condStolen        = "amqp:link:stolen"
	condDetachForced  = "amqp:link:detach-forced"
	condTransferLimit = "amqp:link:transfer-limit-exceeded"
	condTooLarge      = "amqp:link:message-size-exceeded"
	condFrameSize     = "amqp:frame-size-too-small"
	condBusy          = "com.microsoft:server-busy"
	condOutOfRange    = "com.microsoft:argument-out-of-range"
)

// shorten cuts a string, at the start of a character.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func appendFault(b []byte, f *fault) []byte {
	if f == nil {
		return appendNull(b)
	}
	b, at := openList(b, codeError)
	b = appendSymbol(b, f.condition)
	b = appendString(b, shorten(f.description, maxDescription))
	return closeList(b, at, 2)
}
