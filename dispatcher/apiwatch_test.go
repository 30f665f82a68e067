package dispatcher

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// feed is all that ever happened to the objects of one resource.
type feed struct {
	changes []change
	changed chan struct{} // closed and replaced with each change
}

type change struct {
	version  int64
	key      objectKey
	old, new object          // nil where it did not exist, or does not any more
	raw      json.RawMessage // of the new object, or of the last state of one that was deleted
}

// watchGate stands before the watches of one process: it can hold them back, so that the process's caches grow stale, and break them off.
type watchGate struct {
	mu    sync.Mutex
	state gateState
}

type gateState struct {
	held    bool
	breaks  int  // how often the watches were broken off so far
	expired bool // the last time, because the version that they had reached is too old: whoever watches must list again
	changed chan struct{}
}

// expired is the last word of such a watch.
var expired = json.RawMessage(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}`)

func newWatchGate() *watchGate { return &watchGate{state: gateState{changed: make(chan struct{})}} }

func (g *watchGate) look() gateState {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}

func (g *watchGate) set(change func(*gateState)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.state)
	close(g.state.changed)
	g.state.changed = make(chan struct{})
}

// feed is a resource's feed. The caller holds the mutex.
func (s *apiServer) feed(resource string) *feed {
	f := s.feeds[resource]
	if f == nil {
		f = &feed{changed: make(chan struct{})}
		s.feeds[resource] = f
	}
	return f
}

// watchStream is the body of the answer to a watch: the changes since a resource version. It needs no goroutine of its own: who reads from it
// waits for the next change.
type watchStream struct {
	server *apiServer
	r      *apiRequest
	feed   *feed
	from   int64 // the last version that the watcher knows
	next   int   // in the feed's changes
	buffer []byte
	gate   *watchGate
	breaks int // of the gate, when the watch began

	stopped <-chan struct{} // the request's context has ended
	cause   func() error    // why
	closed  chan struct{}
}

// watch streams the changes since the resource version that was asked for, as far as the gate lets them pass; without one, all do.
func (s *apiServer) watch(ctx context.Context, r *apiRequest, gate *watchGate) *watchStream {
	w := &watchStream{server: s, r: r, gate: gate, stopped: ctx.Done(), cause: ctx.Err, closed: make(chan struct{})}
	if gate != nil {
		w.breaks = gate.look().breaks
	}
	w.from, _ = strconv.ParseInt(r.query.Get("resourceVersion"), 10, 64)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.feed = s.feed(r.resource)
	if r.query.Get("sendInitialEvents") != "true" {
		return w
	}
	w.from, w.next = s.version, len(w.feed.changes)
	for _, key := range s.selected(r) {
		w.send("ADDED", s.raw[key])
	}
	kind := map[string][2]string{"jobs": {"batch/v1", "Job"}, "cronjobs": {"batch/v1", "CronJob"}}[r.resource]
	bookmark, err := json.Marshal(object{"apiVersion": kind[0], "kind": kind[1], "metadata": object{
		"resourceVersion": strconv.FormatInt(s.version, 10),
		"annotations":     object{metav1.InitialEventsAnnotationKey: "true"},
	}})
	if err != nil {
		panic(err)
	}
	w.send("BOOKMARK", bookmark)
	return w
}

func (w *watchStream) send(kind string, raw []byte) {
	w.buffer = append(w.buffer, `{"type":"`+kind+`","object":`...)
	w.buffer = append(w.buffer, raw...)
	w.buffer = append(w.buffer, "}\n"...)
}

// Read implements io.Reader.
func (w *watchStream) Read(p []byte) (int, error) {
	for {
		var gate gateState
		var changed <-chan struct{}
		if w.gate != nil {
			gate = w.gate.look()
		}
		if !gate.held {
			if gate.breaks > w.breaks && len(w.buffer) == 0 {
				if !gate.expired {
					return 0, io.EOF
				}
				w.breaks = gate.breaks
				w.send("ERROR", expired)
			}
			if len(w.buffer) == 0 {
				changed = w.collect()
			}
			if len(w.buffer) > 0 {
				n := copy(p, w.buffer)
				w.buffer = w.buffer[n:]
				return n, nil
			}
		}
		select {
		case <-gate.changed:
		case <-changed:
		case <-w.stopped:
			return 0, w.cause()
		case <-w.closed:
			return 0, http.ErrBodyReadAfterClose
		}
	}
}

// collect puts what happened since the last time into the buffer, and returns what tells of the next change.
func (w *watchStream) collect() (changed <-chan struct{}) {
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	for _, c := range w.feed.changes[w.next:] {
		if c.version > w.from {
			w.see(c)
		}
	}
	w.next = len(w.feed.changes)
	return w.feed.changed
}

// see sends what the watcher sees of a change: an object whose labels change can come into view, and go out of it.
func (w *watchStream) see(c change) {
	switch was, is := w.r.selects(c.key, c.old), w.r.selects(c.key, c.new); {
	case was && is:
		w.send("MODIFIED", c.raw)
	case is:
		w.send("ADDED", c.raw)
	case was:
		w.send("DELETED", c.raw)
	}
}

// Close implements io.Closer.
func (w *watchStream) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return nil
}
