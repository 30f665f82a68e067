package eventhub

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// The annotations by which events are known.
const (
	annotationSequence = "x-opt-sequence-number"
	annotationOffset   = "x-opt-offset"
	annotationTime     = "x-opt-enqueued-time"
	annotationKey      = "x-opt-partition-key"
)

// formatBatch is the message format of a batch: each data section is an encoded message.
const formatBatch = 0x80013700

// message is one that came in, cut at the sections that the broker changes (3.2). The rest, the bare message, stays as it is.
type message struct {
	header      []byte // as it came, or nil
	annotations []byte // keys and values, without those that the broker sets
	count       int    // keys in annotations
	key         string // the partition key
	hasKey      bool
	bare        []byte
}

// batchOverhead is more than the broker's own annotations take.
const batchOverhead = 160

func (m *message) size() int {
	return len(m.header) + len(m.annotations) + len(m.key) + len(m.bare) + batchOverhead
}

// encode appends the message with the annotations that a stored event has.
func (m *message) encode(b []byte, sequence, offset, ms int64) []byte {
	b = append(b, m.header...)
	b = append(b, 0x00, 0x53, codeAnnotations, 0xd1, 0, 0, 0, 0, 0, 0, 0, 0)
	at := len(b)
	n := 2 * (3 + m.count)
	b = appendLong(appendSymbol(b, annotationSequence), sequence)
	b = appendSymbol(b, annotationOffset)
	var digits [20]byte
	b = appendVariable(b, 0xa1, strconv.AppendInt(digits[:0], offset, 10))
	b = appendTimestamp(appendSymbol(b, annotationTime), ms)
	if m.hasKey {
		b = appendString(appendSymbol(b, annotationKey), m.key)
		n += 2
	}
	b = append(b, m.annotations...)
	binary.BigEndian.PutUint32(b[at-8:], length(len(b)-at+4))
	binary.BigEndian.PutUint32(b[at-4:], length(n))
	return append(b, m.bare...)
}

// section returns the code, the value and the end of the section that b begins with.
func section(b []byte) (code uint64, value []byte, n int, err error) {
	if len(b) < 2 || b[0] != 0 {
		return 0, nil, 0, errors.New("a message does not consist of sections")
	}
	d, err := extent(b[1:], 1)
	if err != nil {
		return 0, nil, 0, err
	}
	if code, err = descriptor(b[1 : 1+d]); err != nil {
		return 0, nil, 0, err
	}
	v, err := extent(b[1+d:], 1)
	if err != nil {
		return 0, nil, 0, err
	}
	return code, b[1+d : 1+d+v], 1 + d + v, nil
}

// split cuts a message, and checks on the way that a receiver will be able to read it.
func split(b []byte) (message, error) {
	var m message
	var previous uint64
	for rest := b; len(rest) > 0; {
		code, value, n, err := section(rest)
		if err != nil {
			return m, err
		}
		if code < codeHeader || code > codeFooter || code < previous || (code == previous && code != codeData && code != codeSequence) {
			return m, fmt.Errorf("section %#x is not allowed there", code)
		}
		previous = code
		if err := check(value); err != nil {
			return m, fmt.Errorf("section %#x: %w", code, err)
		}
		switch code {
		case codeHeader:
			m.header = rest[:n]
		case codeDelivery: // for the broker, which makes nothing of them
		case codeAnnotations:
			if err := m.annotate(value); err != nil {
				return m, err
			}
		default:
			if m.bare == nil {
				m.bare = rest
			}
		}
		rest = rest[n:]
	}
	return m, nil
}

// annotate takes over annotations of a sender. It cannot set those that are the broker's to set.
func (m *message) annotate(b []byte) error {
	if k := b[0]; k == 0x40 {
		return nil
	} else if k != 0xc1 && k != 0xd1 {
		return errors.New("annotations are not a map")
	}
	count, rest, err := compound(b)
	if err != nil {
		return err
	}
	for range count / 2 {
		k, err := extent(rest, 2)
		if err != nil {
			return err
		}
		v, err := extent(rest[k:], 2)
		if err != nil {
			return err
		}
		entry, value := rest[:k+v], rest[k:k+v]
		rest = rest[k+v:]
		name := ""
		if c := entry[0]; c == 0xa3 || c == 0xb3 || c == 0xa1 || c == 0xb1 {
			key, err := scalar(c, entry[1:k])
			if err != nil {
				return err
			}
			name = fmt.Sprint(key)
		}
		switch name {
		case annotationSequence, annotationOffset, annotationTime:
		case annotationKey:
			key, err := decode(value)
			if err != nil {
				return err
			}
			if m.key, m.hasKey = key.(string); !m.hasKey && key != nil {
				return errors.New("a partition key is not a string")
			}
		default:
			m.annotations = append(m.annotations, entry...)
			m.count++
		}
	}
	return nil
}

// splitTransfer returns the messages of a transfer: one, or those of a batch. All have the partition key of the batch.
func splitTransfer(format uint32, payload []byte) ([]message, error) {
	m, err := split(payload)
	if err != nil {
		return nil, err
	}
	if format != formatBatch {
		return []message{m}, nil
	}
	var messages []message
	for rest := m.bare; len(rest) > 0; {
		code, value, n, err := section(rest)
		if err != nil {
			return nil, err
		}
		rest = rest[n:]
		if code != codeData {
			continue
		}
		v, err := scalarBinary(value)
		if err != nil {
			return nil, err
		}
		e, err := split(v)
		if err != nil {
			return nil, fmt.Errorf("event %d of a batch: %w", len(messages), err)
		}
		if m.hasKey { // the key of the batch is that of all, or they would not be in one place
			e.key, e.hasKey = m.key, true
		}
		messages = append(messages, e)
	}
	if len(messages) == 0 {
		return nil, errors.New("a batch is empty")
	}
	return messages, nil
}

// scalarBinary returns what is in a value of the type binary, without a copy.
func scalarBinary(b []byte) ([]byte, error) {
	switch b[0] {
	case 0xa0:
		return b[2:], nil
	case 0xb0:
		return b[5:], nil
	}
	return nil, errors.New("a data section is not binary")
}
