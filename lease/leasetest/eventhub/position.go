package eventhub

import (
	"strconv"
	"strings"
)

// kinds of positions, each what a filter compares with.
const (
	fromStart = iota
	fromLatest
	fromOffset
	fromSequence
	fromTime
)

// position is where a receiver starts.
type position struct {
	kind      int
	value     int64
	inclusive bool
}

const (
	selectorName = "apache.org:selector-filter:string"
	selectorCode = uint64(0x0000468C00000004)
)

// selector finds the selector in a filter set (3.5.8). Filters of other kinds are ignored, and yet echoed: no client of Event Hubs has
// any.
func selector(raw []byte) (string, error) {
	if raw == nil {
		return "", nil
	}
	v, err := decode(raw)
	if err != nil {
		return "", err
	}
	pairs, ok := v.([]pair)
	if !ok {
		return "", errNotComposite
	}
	for _, p := range pairs {
		d, ok := p.value.(described)
		if !ok {
			continue
		}
		if name, ok := d.descriptor.(symbol); d.descriptor == selectorCode || (ok && string(name) == selectorName) {
			s, _ := d.value.(string)
			return s, nil
		}
	}
	return "", nil
}

// parsePosition reads a selector: an annotation, > or >=, and a value in quotes. None is the start.
func parsePosition(s string) (position, *fault) {
	s = strings.TrimSpace(s)
	if s == "" {
		return position{}, nil
	}
	refuse := func() (position, *fault) {
		return position{}, &fault{condInvalidField, "the filter is not understood: " + strconv.Quote(s)}
	}
	name, value, ok := strings.Cut(s, ">")
	if !ok {
		return refuse()
	}
	name, ok = strings.CutPrefix(strings.TrimSpace(name), "amqp.annotation.")
	if !ok {
		return refuse()
	}
	var p position
	value, p.inclusive = strings.CutPrefix(value, "=")
	value = strings.TrimSpace(value)
	if len(value) >= 2 && value[0] == '\'' && value[len(value)-1] == '\'' {
		value = value[1 : len(value)-1]
	}
	switch name {
	case annotationOffset:
		p.kind = fromOffset
		switch strings.ToLower(value) {
		case "@latest":
			return position{kind: fromLatest}, nil
		case "-1":
			return position{}, nil
		}
	case annotationSequence:
		p.kind = fromSequence
	case annotationTime:
		p.kind = fromTime
	default:
		return refuse()
	}
	var err error
	if p.value, err = strconv.ParseInt(value, 10, 64); err != nil {
		return refuse()
	}
	// Nothing is after the largest number; it must not become the smallest.
	if p.kind == fromSequence && p.value == 1<<63-1 {
		p.value--
	}
	return p, nil
}
