package eventhub

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDecode(t *testing.T) {
	exported := cmp.AllowUnexported(described{}, pair{})
	for name, c := range map[string]struct {
		in   []byte
		want any
	}{
		"null":              {[]byte{0x40}, nil},
		"true":              {[]byte{0x41}, true},
		"a boolean byte":    {[]byte{0x56, 0}, false},
		"ubyte":             {[]byte{0x50, 7}, uint8(7)},
		"byte":              {[]byte{0x51, 0xff}, int8(-1)},
		"ushort":            {[]byte{0x60, 1, 2}, uint16(258)},
		"short":             {[]byte{0x61, 0xff, 0xfe}, int16(-2)},
		"uint0":             {[]byte{0x43}, uint32(0)},
		"smalluint":         {[]byte{0x52, 9}, uint32(9)},
		"uint":              {appendUint(nil, 70000), uint32(70000)},
		"smallint":          {[]byte{0x54, 0xff}, int32(-1)},
		"int":               {[]byte{0x71, 0xff, 0xff, 0xff, 0xff}, int32(-1)},
		"ulong0":            {[]byte{0x44}, uint64(0)},
		"ulong":             {appendUlong(nil, 1<<40), uint64(1 << 40)},
		"smalllong":         {[]byte{0x55, 0x80}, int64(-128)},
		"long":              {appendLong(nil, -5), int64(-5)},
		"float":             {[]byte{0x72, 0x3f, 0x80, 0, 0}, float32(1)},
		"double":            {[]byte{0x82, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0}, float64(1)},
		"timestamp":         {appendTimestamp(nil, 1500), time.UnixMilli(1500).UTC()},
		"uuid":              {append([]byte{0x98}, make([]byte, 16)...), [16]byte{}},
		"string":            {appendString(nil, "héllo"), "héllo"},
		"a long string":     {appendString(nil, strings.Repeat("x", 300)), strings.Repeat("x", 300)},
		"symbol":            {appendSymbol(nil, "s"), symbol("s")},
		"a long symbol":     {appendSymbol(nil, strings.Repeat("x", 300)), symbol(strings.Repeat("x", 300))},
		"binary":            {[]byte{0xa0, 2, 1, 2}, []byte{1, 2}},
		"a long binary":     {[]byte{0xb0, 0, 0, 0, 1, 9}, []byte{9}},
		"list0":             {[]byte{0x45}, []any{}},
		"list8":             {[]byte{0xc0, 3, 2, 0x41, 0x42}, []any{true, false}},
		"list32":            {[]byte{0xd0, 0, 0, 0, 5, 0, 0, 0, 1, 0x41}, []any{true}},
		"map":               {[]byte{0xc1, 4, 2, 0x52, 1, 0x41}, []pair{{uint32(1), true}}},
		"array of nulls":    {[]byte{0xe0, 2, 3, 0x40}, []any{nil, nil, nil}},
		"array of uints":    {[]byte{0xe0, 10, 2, 0x70, 0, 0, 0, 1, 0, 0, 0, 2}, []any{uint32(1), uint32(2)}},
		"array of strings":  {[]byte{0xe0, 6, 2, 0xa1, 1, 'a', 1, 'b'}, []any{"a", "b"}},
		"array of lists":    {[]byte{0xe0, 7, 2, 0xc0, 2, 1, 0x41, 1, 0}, []any{[]any{true}, []any{}}},
		"described":         {[]byte{0x00, 0x53, 5, 0x41}, described{uint64(5), true}},
		"more bytes behind": {[]byte{0x41, 0x42}, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := bytes.Clone(c.in)
			got, err := decode(in)
			must(t, err)
			if d := cmp.Diff(c.want, got, exported); d != "" {
				t.Error(d)
			}
			must(t, check(in))
			if !bytes.Equal(in, c.in) {
				t.Errorf("the input was changed to %x", in)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	deep := bytes.Repeat([]byte{0x00, 0x53, 1}, maxDepth+2)
	for name, in := range map[string][]byte{
		"nothing":              {},
		"an unknown type":      {0x3f},
		"an unknown fixed one": {0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"cut off":              {0x70, 1, 2},
		"a size cut off":       {0xb1, 0},
		"a size too large":     {0xb1, 0xff, 0xff, 0xff, 0xff, 'a'},
		"no room for a count":  {0xc0, 0},
		"a count too large":    {0xc0, 2, 9, 0x41},
		"many of nothing":      {0xf0, 0, 0, 0, 5, 0x7f, 0xff, 0xff, 0xff, 0x40},
		"an array of nothing":  {0xe0, 1, 0},
		"an odd map":           {0xc1, 2, 1, 0x41},
		"no descriptor":        {0x00},
		"too deep":             append(deep, 0x41),
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := decode(in); err == nil {
				t.Errorf("decoded as %v", v)
			}
			if check(in) == nil {
				t.Error("check found nothing")
			}
		})
	}
}

func TestParsePosition(t *testing.T) {
	for in, want := range map[string]position{
		"":                                    {},
		"amqp.annotation.x-opt-offset > '-1'": {},
		"amqp.annotation.x-opt-offset > '@latest'":            {kind: fromLatest},
		"amqp.annotation.x-opt-offset >= '@latest'":           {kind: fromLatest},
		"amqp.annotation.x-opt-offset>'12'":                   {kind: fromOffset, value: 12},
		"amqp.annotation.x-opt-sequence-number >= '3'":        {fromSequence, 3, true},
		"amqp.annotation.x-opt-sequence-number > 3":           {kind: fromSequence, value: 3},
		"  amqp.annotation.x-opt-enqueued-time  >=  '9' ":     {fromTime, 9, true},
		"amqp.annotation.x-opt-sequence-number > '" + maxInt:  {kind: fromSequence, value: -1},
		"amqp.annotation.x-opt-sequence-number > " + maxInt:   {kind: fromSequence, value: math.MaxInt64 - 1},
		"amqp.annotation.x-opt-offset < '1'":                  {kind: -1},
		"amqp.annotation.x-opt-offset > 'x'":                  {kind: -1},
		"amqp.annotation.x-opt-offset":                        {kind: -1},
		"amqp.annotation.x-opt-partition-key > '1'":           {kind: -1},
		"x-opt-offset > '1'":                                  {kind: -1},
		"amqp.annotation.x-opt-offset > '1' OR 1 = 1":         {kind: -1},
		"amqp.annotation.x-opt-sequence-number > '1" + maxInt: {kind: -1},
	} {
		got, f := parsePosition(in)
		switch {
		case want.kind == -1 || want.value == -1:
			if f == nil {
				t.Errorf("%q is understood as %+v", in, got)
			}
		case f != nil || got != want:
			t.Errorf("%q is understood as %+v (%v), want %+v", in, got, f, want)
		}
	}
}

const maxInt = "9223372036854775807"

func TestParseEntity(t *testing.T) {
	for in, want := range map[string]entity{
		"hub":              {hub: "hub"},
		"/hub/":            {hub: "hub"},
		"hub/Partitions/3": {hub: "hub", partition: "3"},
		"hub/consumergroups/$Default/partitions/3": {"hub", "$Default", "3"},
		"":                    {},
		"hub/x":               {},
		"hub/x/y":             {},
		"hub/Partitions":      {},
		"hub/Partitions/3/x":  {},
		"//":                  {},
		"hub/ConsumerGroups/": {},
	} {
		if got, ok := parseEntity(in); ok != (want != entity{}) || (ok && got != want) {
			t.Errorf("%q is %+v, %v", in, got, ok)
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	for name, in := range map[string][]byte{
		"not a section":             {0x41},
		"an unknown section":        {0x00, 0x53, 0x79, 0x40},
		"sections out of order":     {0x00, 0x53, codeValue, 0x40, 0x00, 0x53, codeHeader, 0x45},
		"a section twice":           {0x00, 0x53, codeHeader, 0x45, 0x00, 0x53, codeHeader, 0x45},
		"a nonsense value":          {0x00, 0x53, codeValue, 0x3f},
		"nonsense within":           {0x00, 0x53, codeValue, 0xc0, 2, 1, 0x3f},
		"annotations of no map":     {0x00, 0x53, codeAnnotations, 0x45},
		"a partition key, a number": append(append([]byte{0x00, 0x53, codeAnnotations, 0xc1, 24, 2}, appendSymbol(nil, annotationKey)...), 0x52, 1),
	} {
		if m, err := split(in); err == nil {
			t.Errorf("%s: split as %+v", name, m)
		}
	}
	for name, in := range map[string][]byte{
		"an empty batch":       {},
		"a batch of no binary": {0x00, 0x53, codeData, 0x40},
		"a batch of nonsense":  {0x00, 0x53, codeData, 0xa0, 1, 0x3f},
	} {
		if m, err := splitTransfer(formatBatch, in); err == nil {
			t.Errorf("%s: split as %+v", name, m)
		}
	}
}

// TestAnnotations checks that a sender's own annotations stay, and that it cannot set those of the broker.
func TestAnnotations(t *testing.T) {
	entries := appendString(appendSymbol(nil, "mine"), "stays")
	entries = appendLong(appendSymbol(entries, annotationSequence), 99)
	entries = appendString(appendSymbol(entries, annotationKey), "key")
	entries = append(entries, 0x53, 8, 0x41) // keys can be numbers
	in := append([]byte{0x00, 0x53, codeAnnotations, 0xc1, byte(len(entries) + 1), 8}, entries...)
	in = append(in, 0x00, 0x53, codeData, 0xa0, 1, 'x')
	m, err := split(in)
	must(t, err)
	_, value, _, err := section(m.encode(nil, 5, 6, 7))
	must(t, err)
	got, err := decode(value)
	must(t, err)
	want := []pair{
		{symbol(annotationSequence), int64(5)},
		{symbol(annotationOffset), "6"},
		{symbol(annotationTime), time.UnixMilli(7).UTC()},
		{symbol(annotationKey), "key"},
		{symbol("mine"), "stays"},
		{uint64(8), true},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(pair{})); d != "" {
		t.Error(d)
	}
}
