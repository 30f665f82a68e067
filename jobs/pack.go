package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
)

const (
	// MaxPackLines is the most bytes of JSON Lines in a pack: a Secret, less the room for the array.
	MaxPackLines = corev1.MaxSecretSize - maxEnvString
	// maxPackIDs is the most bytes that the ids of a pack come to, as the value of an annotation: half of what all annotations of an object may.
	maxPackIDs = 128 << 10
	// arrayKey is that of the array in the Secret of a pack.
	arrayKey = "array"
)

// Message is what a task is told of its message.
type Message struct {
	ID string
	// Body is the payload, byte for byte.
	Body []byte
	// EnqueuedAt is when the message came into its source; zero where that is not known.
	EnqueuedAt time.Time
	// TraceParent is what the producer says of the trace that the message belongs to (W3C Trace Context); empty where it does not.
	TraceParent string
	// Properties are what the producer attached beside the body; it may be nil.
	Properties map[string]string
}

// Pack gathers the messages of one Job, as long as they fit, in the form in which they are handed over: JSON Lines, a line for each message.
type Pack struct {
	attempt int
	lines   bytes.Buffer
	// array is the JSON array for EnvPayload, without its end; noArray says that it cannot be had.
	array   bytes.Buffer
	noArray bool
	ids     int // bytes
	n       int
}

// NewPack begins a pack for an attempt. With PayloadAsFile, it makes no array.
func NewPack(mode PayloadMode, attempt int) *Pack {
	return &Pack{attempt: attempt, noArray: mode == PayloadAsFile}
}

// packLine is one line of the file, but for the properties: addProperties puts them at its end.
type packLine struct {
	ID          string  `json:"id"`
	Attempt     int     `json:"attempt"`
	EnqueuedAt  string  `json:"enqueued_at,omitempty"`
	TraceParent string  `json:"traceparent,omitempty"`
	Data        *string `json:"data,omitempty"`
	DataBase64  []byte  `json:"data_base64,omitempty"`
}

// Add takes on one message more. It returns false, and is as before, where there is no room for it.
func (p *Pack) Add(m Message) bool {
	ids := p.ids + len(m.ID)
	if p.n > 0 {
		ids++ // the space
		if ids > maxPackIDs {
			return false
		}
	}
	line := packLine{ID: m.ID, Attempt: p.attempt, EnqueuedAt: enqueuedAt(m.EnqueuedAt), TraceParent: m.TraceParent}
	if utf8.Valid(m.Body) {
		data := string(m.Body)
		line.Data = &data
	} else {
		line.DataBase64 = m.Body
	}
	before := p.lines.Len()
	encode(&p.lines, line)
	full := p.lines.Len() > MaxPackLines
	if !full {
		p.addProperties(m.Properties, MaxPackLines-(p.lines.Len()-before))
		// A line that is alone can be longer only by the notice that there is no room for its properties. So large a payload has no array beside it, and
		// the Secret has room for that.
		full = p.lines.Len() > MaxPackLines && before > 0
	}
	if full {
		p.lines.Truncate(before)
		return false
	}
	p.ids = ids
	p.n++
	p.addToArray(line.Data)
	return true
}

const (
	propertiesField = `,"properties":`
	leftOutField    = `,"properties_left_out":`
	// maxLeftOutField is the most bytes of that, with the number.
	maxLeftOutField = len(leftOutField) + len("4294967295")
)

// addProperties puts what the producer attached at the end of the line that was written last, as far as so many bytes allow, and says how many properties
// were left out. The line is the same with whatever others the message is packed.
func (p *Pack) addProperties(properties map[string]string, room int) {
	if len(properties) == 0 {
		return
	}
	room -= len(propertiesField)
	encoded, leftOut := encodeProperties(properties, room)
	if leftOut > 0 {
		encoded, leftOut = encodeProperties(properties, room-maxLeftOutField)
	}
	p.lines.Truncate(p.lines.Len() - len("}\n"))
	if encoded != nil {
		p.lines.WriteString(propertiesField)
		p.lines.Write(encoded)
	}
	if leftOut > 0 {
		p.lines.WriteString(leftOutField)
		p.lines.WriteString(strconv.Itoa(leftOut))
	}
	p.lines.WriteString("}\n")
}

// addToArray takes on one element more. Where it cannot be had, or the array would become too long, there is none.
func (p *Pack) addToArray(data *string) {
	if p.noArray = p.noArray || data == nil; p.noArray {
		return
	}
	if p.array.Len() == 0 {
		p.array.WriteByte('[')
	} else {
		p.array.WriteByte(',')
	}
	encode(&p.array, data)
	p.array.Truncate(p.array.Len() - 1) // the newline
	p.noArray = p.array.Len()+len("]") > maxEnvPayload
}

// encode writes a value as a line of JSON, the text as it is but for what JSON demands.
func encode(to *bytes.Buffer, value any) {
	e := json.NewEncoder(to)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		panic(err) // strings and numbers into memory
	}
}

// Size is how many bytes the lines have.
func (p *Pack) Size() int { return p.lines.Len() }

// Len is how many messages there are.
func (p *Pack) Len() int { return p.n }

// Content is what the containers are given. The pack may not be added to afterwards.
func (p *Pack) Content() *Content {
	c := &Content{
		env:  []corev1.EnvVar{{Name: EnvPayloadFile, Value: PackFile}},
		data: map[string][]byte{packFileName: p.lines.Bytes()},
		file: packFileName,
	}
	if p.noArray {
		return c
	}
	p.array.WriteByte(']')
	array := p.array.Bytes()
	if len(array) <= smallPayload {
		c.env = append(c.env, corev1.EnvVar{Name: EnvPayload, Value: escape(string(array))})
		return c
	}
	c.data[arrayKey], c.refs = array, map[string]string{EnvPayload: arrayKey}
	return c
}

// TooLargeForPack is the ErrPayload of a message that fits no pack.
func TooLargeForPack(body []byte) error {
	return fmt.Errorf("%w: it has %d bytes, and its line of JSON does not fit the %d that a pack has room for", ErrPayload, len(body), MaxPackLines)
}
