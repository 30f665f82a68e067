package eventhub

import "fmt"

// check walks through the value at the start of b and everything in it, and makes nothing of it.
func check(b []byte) error {
	d := decoder{budget: len(b) + maxExtra}
	_, err := d.check(b, 0)
	return err
}

func (d *decoder) check(b []byte, depth int) (int, error) {
	if depth > maxDepth {
		return 0, errDepth
	}
	if d.budget--; d.budget < 0 {
		return 0, errBudget
	}
	n, err := extent(b, depth)
	if err != nil {
		return 0, err
	}
	b = b[:n]
	rest, count := b[1:], 0
	switch b[0] {
	case 0x00:
		count = 2
	case 0xc0, 0xd0, 0xc1, 0xd1:
		if count, rest, err = compound(b); err != nil {
			return 0, err
		}
		if b[0]&0xf == 1 && count%2 != 0 {
			return 0, errKey
		}
	case 0xe0, 0xf0:
		_, err := d.array(b, depth)
		return n, err
	case 0x45:
	default:
		if !known(b[0]) {
			return 0, fmt.Errorf("%#02x is not a constructor", b[0])
		}
	}
	for range count {
		m, err := d.check(rest, depth+1)
		if err != nil {
			return 0, err
		}
		rest = rest[m:]
	}
	return n, nil
}

// known tells whether a constructor is that of a primitive that is not a compound.
func known(constructor byte) bool {
	switch constructor {
	case 0x40, 0x41, 0x42, 0x43, 0x44, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x60, 0x61, 0x70, 0x71, 0x72, 0x73, 0x74,
		0x80, 0x81, 0x82, 0x83, 0x84, 0x94, 0x98, 0xa0, 0xa1, 0xa3, 0xb0, 0xb1, 0xb3:
		return true
	}
	return false
}
