package eventhubs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// Envelope is what a poisoned event is in a poison queue, as JSON: a Storage Queue has no place for anything but a text.
//
// The body is in exactly one of Body, BodyBase64 and BodyBlob, and in none of them where Unreadable is set.
type Envelope struct {
	// Source is the identity of the source: a URL.
	Source        string `json:"source"`
	EventHub      string `json:"eventHub"`
	ConsumerGroup string `json:"consumerGroup"`
	Partition     string `json:"partition"`
	// SequenceNumber and Offset find the event in its partition, until it expires there.
	SequenceNumber int64     `json:"sequenceNumber"`
	Offset         string    `json:"offset"`
	EnqueuedAt     time.Time `json:"enqueuedAt"`
	// Reason says why the event is here, Attempts how many Jobs failed on it, and Job is the last of them.
	Reason   string `json:"reason"`
	Attempts int    `json:"attempts"`
	Job      string `json:"job,omitempty"`
	// Properties are the event's, as text. Those that the message has no room for are left out, the largest first; PropertiesLeftOut is how many.
	Properties        map[string]string `json:"properties,omitempty"`
	PropertiesLeftOut int               `json:"propertiesLeftOut,omitempty"`
	// Body is a body that is UTF-8, and BodyBase64 any other.
	Body       *string `json:"body,omitempty"`
	BodyBase64 *string `json:"bodyBase64,omitempty"`
	// BodyBlob is the URL of a blob with the body, where the message has no room for it.
	BodyBlob string `json:"bodyBlob,omitempty"`
	// Unreadable says why there is no body.
	Unreadable string `json:"unreadable,omitempty"`
}

// maxMessage is the most that a message in a Storage Queue can hold, in bytes of UTF-8.
const maxMessage = 64 * 1024

// newEnvelope makes the envelope with the whole event in it.
func newEnvelope(s settings, c partitioned.Copy) *Envelope {
	e := &Envelope{
		Source:         s.namespace.identity(s.EventHub, s.ConsumerGroup),
		EventHub:       s.EventHub,
		ConsumerGroup:  s.ConsumerGroup,
		Partition:      c.Partition,
		SequenceNumber: c.Sequence,
		Offset:         c.Offset,
		EnqueuedAt:     c.Lease.EnqueuedAt.UTC(),
		Reason:         c.Reason,
		Attempts:       c.Attempts,
		Job:            c.Job,
		Properties:     c.Lease.Properties,
	}
	body := string(c.Lease.Body)
	switch {
	case c.Lease.Unreadable != nil:
		e.Unreadable = c.Lease.Unreadable.Error()
	case utf8.ValidString(body):
		e.Body = &body
	default:
		encoded := base64.StdEncoding.EncodeToString(c.Lease.Body)
		e.BodyBase64 = &encoded
	}
	return e
}

// moveBody says that the body is in a blob.
func (e *Envelope) moveBody(url string) { e.Body, e.BodyBase64, e.BodyBlob = nil, nil, url }

func (e *Envelope) hasBody() bool { return e.Body != nil || e.BodyBase64 != nil }

// marshal makes the message. What is text in a Storage Queue is XML on the way, which can carry neither control characters nor
// U+FFFE and U+FFFF, and makes a line feed of a carriage return; in JSON all of them can be escaped. The sign < and its like are
// escaped too, so that they are one byte each to whoever counts.
func (e *Envelope) marshal() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("making the message for the poison queue: %w", err)
	}
	b = bytes.ReplaceAll(b, []byte("\uFFFE"), []byte(`\ufffe`))
	return bytes.ReplaceAll(b, []byte("\uFFFF"), []byte(`\uffff`)), nil
}

// shrink makes the message of an envelope that is too large even without a body: it leaves out properties, and cuts the reason.
func (e *Envelope) shrink() ([]byte, error) {
	names := make([]string, 0, len(e.Properties))
	for name := range e.Properties {
		names = append(names, name)
	}
	size := func(name string) int { return len(name) + len(e.Properties[name]) }
	sort.Slice(names, func(i, j int) bool {
		a, b := size(names[i]), size(names[j])
		return a < b || a == b && names[i] < names[j]
	})
	// How many can stay is found by trying, since what escaping does to them is hard to tell.
	all, kept := e.Properties, 0
	fits := func(n int) ([]byte, bool, error) {
		e.Properties = make(map[string]string, n)
		for _, name := range names[:n] {
			e.Properties[name] = all[name]
		}
		e.PropertiesLeftOut = len(names) - n
		b, err := e.marshal()
		return b, len(b) <= maxMessage, err
	}
	_, ok, err := fits(0)
	if err == nil && !ok {
		e.Reason = cut(e.Reason, maxReason)
		e.Unreadable = cut(e.Unreadable, maxReason)
	}
	kept = sort.Search(len(names), func(n int) bool {
		_, ok, _ := fits(n + 1)
		return !ok
	})
	b, ok, err := fits(kept)
	if err == nil && !ok {
		err = fmt.Errorf("making the message for the poison queue: it has %d bytes, and %d is the most", len(b), maxMessage)
	}
	return b, err
}

// maxReason is how much of a reason is kept where there is little room.
const maxReason = 1024

// cut cuts a text to a number of bytes.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	const mark = "…"
	return strings.ToValidUTF8(text[:most-len(mark)], "") + mark
}
