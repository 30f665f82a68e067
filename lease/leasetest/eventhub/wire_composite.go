package eventhub

import (
	"errors"
	"fmt"
)

// Descriptors of performatives and of what they carry: the numeric form, with the domain 0 (2.7, 2.8, 3.2, 3.4, 3.5, 5.3).
const (
	codeOpen        = 0x10
	codeBegin       = 0x11
	codeAttach      = 0x12
	codeFlow        = 0x13
	codeTransfer    = 0x14
	codeDisposition = 0x15
	codeDetach      = 0x16
	codeEnd         = 0x17
	codeClose       = 0x18

	codeError    = 0x1d
	codeAccepted = 0x24
	codeRejected = 0x25

	codeMechanisms = 0x40
	codeInit       = 0x41
	codeOutcome    = 0x44

	codeHeader      = 0x70
	codeDelivery    = 0x71
	codeAnnotations = 0x72
	codeProperties  = 0x73
	codeApplication = 0x74
	codeData        = 0x75
	codeSequence    = 0x76
	codeValue       = 0x77
	codeFooter      = 0x78
)

var errNotComposite = errors.New("not a described list")

// composite is a described list whose fields were found and not decoded yet. The bytes belong to the frame.
//
// Fields are read with the methods below, which return the default for one that is missing or null. The first field of
// a wrong type is remembered in err, so that a whole performative can be read before looking.
type composite struct {
	code   uint64
	fields [maxFields][]byte
	n      int
	err    error
}

// parse finds the fields of the composite that b begins with, and returns what follows it.
func (c *composite) parse(b []byte) (rest []byte, err error) {
	c.n, c.err = 0, nil
	if len(b) == 0 || b[0] != 0 {
		return nil, errNotComposite
	}
	n, err := extent(b[1:], 1)
	if err != nil {
		return nil, err
	}
	if c.code, err = descriptor(b[1 : 1+n]); err != nil {
		return nil, err
	}
	b = b[1+n:]
	if n, err = extent(b, 1); err != nil {
		return nil, err
	}
	list, rest := b[:n], b[n:]
	if k := list[0]; k != 0x45 && k != 0xc0 && k != 0xd0 {
		return nil, errNotComposite
	}
	count, list, err := compound(list)
	if err != nil {
		return nil, err
	}
	if count > maxFields {
		return nil, errFields
	}
	for i := range count {
		n, err := extent(list, 2)
		if err != nil {
			return nil, err
		}
		c.fields[i], list = list[:n], list[n:]
	}
	c.n = count
	return rest, nil
}

// descriptor reads a numeric descriptor.
func descriptor(b []byte) (uint64, error) {
	switch b[0] {
	case 0x44, 0x53, 0x80:
		v, err := scalar(b[0], b[1:])
		if err != nil {
			return 0, err
		}
		return v.(uint64), nil
	}
	return 0, errors.New("only numeric descriptors are supported")
}

// raw is the encoding of a field, or nil for one that is missing or null.
func (c *composite) raw(i int) []byte {
	if i >= c.n || c.fields[i][0] == 0x40 {
		return nil
	}
	return c.fields[i]
}

func (c *composite) has(i int) bool { return c.raw(i) != nil }

// field decodes a field as a T.
func field[T any](c *composite, i int, missing T) T {
	raw := c.raw(i)
	if raw == nil {
		return missing
	}
	v, err := decode(raw)
	if err == nil {
		if t, ok := v.(T); ok {
			return t
		}
		err = fmt.Errorf("field %d of %#x is a %T, want a %T", i, c.code, v, missing)
	}
	if c.err == nil {
		c.err = err
	}
	return missing
}

func (c *composite) uint(i int, missing uint32) uint32 { return field(c, i, missing) }
func (c *composite) bool(i int) bool                   { return field(c, i, false) }
func (c *composite) string(i int) string               { return field(c, i, "") }

// address reads the address of a source or target (3.5.3, 3.5.4), which may be of any type: only strings are known here.
func address(raw []byte) (addr string, dynamic bool, filter []byte, err error) {
	if raw == nil {
		return "", false, nil, nil
	}
	var t composite
	if _, err := t.parse(raw); err != nil {
		return "", false, nil, err
	}
	addr, dynamic = t.string(0), t.bool(4)
	return addr, dynamic, t.raw(7), t.err
}

// lookup finds a key of the type string or symbol.
func lookup(pairs []pair, key string) any {
	for _, p := range pairs {
		switch k := p.key.(type) {
		case string:
			if k == key {
				return p.value
			}
		case symbol:
			if string(k) == key {
				return p.value
			}
		}
	}
	return nil
}

// integer reads whichever type of integer a peer chose.
func integer(v any) (int64, bool) {
	switch n := v.(type) {
	case int8:
		return int64(n), true
	case int16:
		return int64(n), true
	case int32:
		return int64(n), true
	case int64:
		return n, true
	case uint8:
		return int64(n), true
	case uint16:
		return int64(n), true
	case uint32:
		return int64(n), true
	case uint64:
		return int64(n), n <= 1<<63-1 //nolint:gosec // told by the second result
	}
	return 0, false
}
