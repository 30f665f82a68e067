package eventhub

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// What a peer may ask of the decoder. Sizes are bounded by the frame; these bound what a small frame can unfold to.
const (
	maxDepth  = 12   // values inside of values
	maxFields = 24   // fields of a performative; attach, the longest, has 14
	maxExtra  = 1024 // values that need no bytes, as in an array of a thousand nulls
)

var (
	errShort  = errors.New("a value is cut off")
	errDepth  = errors.New("values are nested too deeply")
	errFields = errors.New("a composite has too many fields")
	errBudget = errors.New("a compound claims more values than its size allows")
	errKey    = errors.New("a map has no value for its last key")
)

// symbol is a string of the type symbol (1.6.21).
type symbol string

// described is a value with a descriptor (1.2.2).
type described struct{ descriptor, value any }

// pair is an entry of a map. Maps are slices of pairs, as any type may be a key.
type pair struct{ key, value any }

// extent returns how many bytes the value at the start of b takes, from its constructor and size alone (1.2.1).
func extent(b []byte, depth int) (int, error) {
	if len(b) == 0 {
		return 0, errShort
	}
	n := 1
	switch b[0] >> 4 {
	case 0x0:
		if b[0] != 0 {
			return 0, fmt.Errorf("%#02x is not a constructor", b[0])
		}
		if depth >= maxDepth {
			return 0, errDepth
		}
		for range 2 { // the descriptor and the value
			m, err := extent(b[n:], depth+1)
			if err != nil {
				return 0, err
			}
			n += m
		}
		return n, nil
	case 0x4:
	case 0x5:
		n++
	case 0x6:
		n += 2
	case 0x7:
		n += 4
	case 0x8:
		n += 8
	case 0x9:
		n += 16
	case 0xa, 0xc, 0xe:
		if len(b) < 2 {
			return 0, errShort
		}
		n += 1 + int(b[1])
	case 0xb, 0xd, 0xf:
		if len(b) < 5 {
			return 0, errShort
		}
		size := binary.BigEndian.Uint32(b[1:])
		if uint64(size) > uint64(len(b)) {
			return 0, errShort
		}
		n += 4 + int(size)
	default:
		return 0, fmt.Errorf("%#02x is not a constructor", b[0])
	}
	if n > len(b) {
		return 0, errShort
	}
	return n, nil
}

// compound splits a list, map or array into its number of elements and their bytes.
func compound(b []byte) (count int, rest []byte, err error) {
	var c uint32
	switch b[0] >> 4 {
	case 0x4: // list0
		return 0, nil, nil
	case 0xc, 0xe:
		if len(b) < 3 {
			return 0, nil, errShort
		}
		c, rest = uint32(b[2]), b[3:]
	default:
		if len(b) < 9 {
			return 0, nil, errShort
		}
		c, rest = binary.BigEndian.Uint32(b[5:]), b[9:]
	}
	if uint64(c) > uint64(len(rest))+maxExtra {
		return 0, nil, errBudget
	}
	return int(c), rest, nil
}

// decoder turns bytes into Go values. The budget is what all of them together may still unfold to.
type decoder struct{ budget int }

// decode reads the one value that b begins with.
func decode(b []byte) (any, error) {
	d := decoder{budget: len(b) + maxExtra}
	v, _, err := d.value(b, 0)
	return v, err
}

func (d *decoder) value(b []byte, depth int) (any, int, error) {
	if depth > maxDepth {
		return nil, 0, errDepth
	}
	if d.budget--; d.budget < 0 {
		return nil, 0, errBudget
	}
	n, err := extent(b, depth)
	if err != nil {
		return nil, 0, err
	}
	b = b[:n]
	var v any
	switch b[0] {
	case 0x00:
		v, err = d.described(b, depth)
	case 0x45, 0xc0, 0xd0:
		v, err = d.list(b, depth)
	case 0xc1, 0xd1:
		v, err = d.mapping(b, depth)
	case 0xe0, 0xf0:
		v, err = d.array(b, depth)
	default:
		v, err = scalar(b[0], b[1:])
	}
	return v, n, err
}

func (d *decoder) described(b []byte, depth int) (any, error) {
	descriptor, n, err := d.value(b[1:], depth+1)
	if err != nil {
		return nil, err
	}
	v, _, err := d.value(b[1+n:], depth+1)
	return described{descriptor, v}, err
}

func (d *decoder) list(b []byte, depth int) ([]any, error) {
	count, rest, err := compound(b)
	if err != nil {
		return nil, err
	}
	if count > d.budget {
		return nil, errBudget
	}
	list := make([]any, 0, count)
	for range count {
		v, n, err := d.value(rest, depth+1)
		if err != nil {
			return nil, err
		}
		list, rest = append(list, v), rest[n:]
	}
	return list, nil
}

func (d *decoder) mapping(b []byte, depth int) ([]pair, error) {
	list, err := d.list(b, depth)
	if err != nil {
		return nil, err
	}
	if len(list)%2 != 0 {
		return nil, errKey
	}
	pairs := make([]pair, 0, len(list)/2)
	for i := 0; i < len(list); i += 2 {
		pairs = append(pairs, pair{list[i], list[i+1]})
	}
	return pairs, nil
}

// array reads elements that share one constructor (1.6.24).
func (d *decoder) array(b []byte, depth int) ([]any, error) {
	count, rest, err := compound(b)
	if err != nil {
		return nil, err
	}
	if count > d.budget {
		return nil, errBudget
	}
	if len(rest) == 0 {
		return nil, errShort
	}
	constructor, rest := rest[0], rest[1:]
	if constructor == 0 {
		return nil, errors.New("arrays of described values are not supported")
	}
	list := make([]any, 0, count)
	// An element with its constructor before it is a value like any other. The byte before each was used up already, so in
	// a copy the constructor can take its place.
	elements := append([]byte{constructor}, rest...)
	for range count {
		elements[0] = constructor
		v, n, err := d.value(elements, depth+1)
		if err != nil {
			return nil, err
		}
		list, elements = append(list, v), elements[n-1:]
	}
	return list, nil
}

// scalar reads the bytes after the constructor of a primitive that is not a compound (1.6).
func scalar(constructor byte, b []byte) (any, error) {
	be := binary.BigEndian
	switch constructor {
	case 0x40:
		return nil, nil //nolint:nilnil // null is a value
	case 0x41:
		return true, nil
	case 0x42:
		return false, nil
	case 0x43:
		return uint32(0), nil
	case 0x44:
		return uint64(0), nil
	case 0x50:
		return b[0], nil
	case 0x51:
		return int8(b[0]), nil //nolint:gosec // the same bits
	case 0x52:
		return uint32(b[0]), nil
	case 0x53:
		return uint64(b[0]), nil
	case 0x54:
		return int32(int8(b[0])), nil //nolint:gosec // the same bits
	case 0x55:
		return int64(int8(b[0])), nil //nolint:gosec // the same bits
	case 0x56:
		return b[0] != 0, nil
	case 0x60:
		return be.Uint16(b), nil
	case 0x61:
		return int16(be.Uint16(b)), nil //nolint:gosec // the same bits
	case 0x70:
		return be.Uint32(b), nil
	case 0x71, 0x73: // int, char
		return int32(be.Uint32(b)), nil //nolint:gosec // the same bits
	case 0x72:
		return math.Float32frombits(be.Uint32(b)), nil
	case 0x80:
		return be.Uint64(b), nil
	case 0x81:
		return int64(be.Uint64(b)), nil //nolint:gosec // the same bits
	case 0x82:
		return math.Float64frombits(be.Uint64(b)), nil
	case 0x83:
		return time.UnixMilli(int64(be.Uint64(b))).UTC(), nil //nolint:gosec // the same bits
	case 0x98:
		return [16]byte(b), nil
	case 0x74, 0x84, 0x94: // decimals, which nothing here needs
		return append([]byte(nil), b...), nil
	case 0xa0:
		return append([]byte(nil), b[1:]...), nil
	case 0xa1:
		return string(b[1:]), nil
	case 0xa3:
		return symbol(b[1:]), nil
	case 0xb0:
		return append([]byte(nil), b[4:]...), nil
	case 0xb1:
		return string(b[4:]), nil
	case 0xb3:
		return symbol(b[4:]), nil
	}
	return nil, fmt.Errorf("%#02x is not a constructor", constructor)
}
