package jobs

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The environment variables that hand over what a producer attached beside a message's body. In a pack, it is in the message's line.
const (
	// EnvProperties is a JSON object of strings; absent where there is nothing.
	EnvProperties = "LIGHTERMAN_PROPERTIES"
	// EnvPropertiesLeftOut is how many properties there was no room for; absent where all are there.
	EnvPropertiesLeftOut = "LIGHTERMAN_PROPERTIES_LEFT_OUT"
)

const (
	// maxEnvProperties is the most bytes of JSON that fit EnvProperties.
	maxEnvProperties = maxEnvString - len(EnvProperties) - len("=") - len("\x00")
	// propertiesKey is that of the properties in the Secret of a message.
	propertiesKey = "properties"
)

// AddProperties hands over with a message's payload what its producer attached to it, as far as there is room. What there is none for is left out and
// counted, and neither stops the message nor changes its payload: whoever needs the payload only must not fail for what others attach.
//
// In all modes but PayloadAuto and PayloadEnv, no property stands in the Job.
func (c *Content) AddProperties(mode PayloadMode, properties map[string]string) {
	if len(properties) == 0 {
		return
	}
	mayBeLiteral := mode == PayloadAuto || mode == PayloadEnv
	room := corev1.MaxSecretSize
	for _, data := range c.data {
		room -= len(data)
	}
	if mayBeLiteral {
		room = max(room, smallPayload)
	}
	encoded, leftOut := encodeProperties(properties, min(room, maxEnvProperties))
	c.leftOut = leftOut
	switch {
	case encoded == nil:
	case mayBeLiteral && len(encoded) <= smallPayload:
		c.literal, c.properties = escape(string(encoded)), properties
	default:
		if c.data == nil {
			c.data = make(map[string][]byte, 1)
		}
		if c.refs == nil {
			c.refs = make(map[string]string, 1)
		}
		c.data[propertiesKey], c.refs[EnvProperties] = encoded, propertiesKey
	}
}

// withoutLiteral is the content with the properties that are written into the Job in the Secret instead.
func (c *Content) withoutLiteral() *Content {
	moved := *c
	moved.literal, moved.properties = "", nil
	moved.data, moved.refs = maps.Clone(c.data), maps.Clone(c.refs)
	moved.AddProperties(PayloadSecret, c.properties)
	return &moved
}

// encodeProperties is the properties as a JSON object of so many bytes at most, sorted by name. Where that is not all of them, the largest are left out;
// it is nil where none is in it.
func encodeProperties(properties map[string]string, room int) (encoded []byte, leftOut int) {
	if len(properties) == 0 {
		return nil, 0
	}
	size := 0
	for name, value := range properties {
		size += len(name) + len(value)
	}
	if size <= room { // JSON makes no text shorter: what is far too large is not even written
		if encoded = marshal(properties); len(encoded) <= room {
			return encoded, 0
		}
	}
	kept := smallest(properties, room)
	if len(kept) == 0 {
		return nil, len(properties)
	}
	return marshal(kept), len(properties) - len(kept)
}

// marshal is a value as JSON.
func marshal(value any) []byte {
	var b bytes.Buffer
	encode(&b, value)
	return b.Bytes()[:b.Len()-1] // less the newline
}

// smallest is those of the properties that fit into so many bytes of JSON, beginning with the shortest.
func smallest(properties map[string]string, room int) map[string]string {
	size := func(name string) int { return len(name) + len(properties[name]) }
	names := slices.SortedFunc(maps.Keys(properties), func(a, b string) int { return cmp.Or(cmp.Compare(size(a), size(b)), cmp.Compare(a, b)) })
	kept := make(map[string]string)
	var b bytes.Buffer
	used := len("{}") - len(",") // the last has none
	for _, name := range names {
		if size(name) > room-used {
			break
		}
		b.Reset()
		encode(&b, name) // with a newline, for the colon
		encode(&b, properties[name])
		if used += b.Len(); used > room {
			break
		}
		kept[name] = properties[name]
	}
	return kept
}
