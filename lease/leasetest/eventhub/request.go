package eventhub

import (
	"net/http"

	"github.com/Azure/go-amqp"
)

// request is a message to $cbs or $management.
type request struct {
	id         any
	replyTo    string
	properties []pair
	body       any
}

func (r *request) property(name string) string {
	s, _ := lookup(r.properties, name).(string)
	return s
}

// response is what is answered.
type response struct {
	status      int32
	description string
	body        map[string]any
}

// parseRequest reads the sections that requests have (3.2).
func parseRequest(b []byte) (*request, error) {
	r := &request{}
	for len(b) > 0 {
		code, value, n, err := section(b)
		if err != nil {
			return nil, err
		}
		switch code {
		case codeProperties:
			var p composite
			if _, err := p.parse(b); err != nil {
				return nil, err
			}
			r.replyTo = p.string(4)
			if raw := p.raw(0); raw != nil {
				if r.id, err = decode(raw); err != nil {
					return nil, err
				}
			}
			if p.err != nil {
				return nil, p.err
			}
		case codeApplication:
			v, err := decode(value)
			if err != nil {
				return nil, err
			}
			r.properties, _ = v.([]pair)
		case codeValue:
			if r.body, err = decode(value); err != nil {
				return nil, err
			}
		}
		b = b[n:]
	}
	return r, nil
}

// request acts on a request, and has the answer sent to whoever asked.
func (l *link) request(payload []byte) *fault {
	r, err := parseRequest(payload)
	if err != nil {
		return &fault{condDecode, "the request does not decode: " + err.Error()}
	}
	to := l.conn.replies[r.replyTo]
	if to == nil || to.node != l.node {
		return &fault{condNotFound, "nobody receives at the address for the answer"}
	}
	var a response
	if l.node == nodeCBS {
		a = l.conn.putToken(r)
	} else {
		if l.conn.broker.faults.hang.Load() {
			return nil
		}
		a = l.conn.manage(r)
	}
	answer, err := a.encode(r)
	if err != nil {
		return &fault{condInternal, err.Error()}
	}
	to.reply(answer)
	return nil
}

func (a *response) encode(r *request) ([]byte, error) {
	m := &amqp.Message{
		Properties: &amqp.MessageProperties{CorrelationID: r.correlation()},
		ApplicationProperties: map[string]any{
			"status-code": a.status, "status-description": a.description,
		},
	}
	if a.body != nil {
		m.Value = a.body
	}
	return m.MarshalBinary()
}

// correlation is the message id of the request, which has one of four types (3.2.4).
func (r *request) correlation() any {
	switch id := r.id.(type) {
	case string, uint64, []byte:
		return id
	case [16]byte:
		return amqp.UUID(id)
	}
	return ""
}

func refused(status int32, description string) response {
	return response{status: status, description: description}
}

var accepted = response{status: http.StatusAccepted, description: "Accepted"}
