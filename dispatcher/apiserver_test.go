package dispatcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiServer is an API server in memory, behind the real client. It keeps whatever it is given, as JSON, and knows no kinds; it has no
// controllers. client-go's fake clientset will not do: it holds a mutex through each request, which in a synctest bubble stops the
// clock as soon as one of them waits, it passes no contexts on, and its watches ignore selectors.
type apiServer struct {
	mu       sync.Mutex
	version  int64
	objects  map[objectKey]object
	raw      map[objectKey]json.RawMessage // each object's encoding
	feeds    map[string]*feed              // by resource
	faults   []*apiFault
	requests map[string]int // by verb and resource
	gate     *watchGate     // before the watches of processes that have none of their own
	fenced   bool           // the fence is installed
	skew     time.Duration  // by how much the server's clock is ahead of everybody else's
}

type objectKey struct{ resource, namespace, name string }

// object is not changed once it is stored: a write replaces it.
type object = map[string]any

// apiRequest is what a request asks for.
type apiRequest struct {
	// verb is get, list, watch, create, dry-run, update, patch or delete.
	verb, resource, namespace, name, sub string
	query                                url.Values
	body                                 object
	selector                             labels.Selector // once it was needed
}

// apiFault makes requests fail.
type apiFault struct {
	verbs, resource string // verbs: any of them, by spaces
	namespace, name string // empty: any
	// delay holds the request up; it ends early with the request's context.
	delay time.Duration
	// answer is the request's error; nil lets it pass.
	answer func(*apiRequest) error
	// afterEffect lets the request take place, and loses the answer.
	afterEffect bool
	// times is how often it hits. Zero: until it is removed.
	times int
}

func newAPIServer() *apiServer {
	return &apiServer{
		objects: map[objectKey]object{}, raw: map[objectKey]json.RawMessage{}, feeds: map[string]*feed{}, requests: map[string]int{},
		gate: newWatchGate(),
	}
}

// connection is one process's way to the API server.
type connection struct {
	server *apiServer
	cut    atomic.Bool
}

var errCut = errors.New("connection cut")

func (c *connection) client(t *testing.T) kubernetes.Interface {
	t.Helper()
	return newClient(t, c)
}

func newClient(t *testing.T, transport http.RoundTripper) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfigAndClient(&rest.Config{
		Host: "http://api", QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"},
	}, &http.Client{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (s *apiServer) inject(f *apiFault) *apiFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	return f
}

func (s *apiServer) remove(f *apiFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = slices.DeleteFunc(s.faults, func(g *apiFault) bool { return f == g })
}

// breakWatches ends all watches that are under way, as when the API server goes away.
func (s *apiServer) breakWatches() { s.gate.set(func(g *gateState) { g.breaks++ }) }

// count is how often a verb was asked of a resource, hit by a fault or not.
func (s *apiServer) count(verb, resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[verb+" "+resource]
}

// RoundTrip implements http.RoundTripper.
func (c *connection) RoundTrip(req *http.Request) (*http.Response, error) {
	r, err := parseRequest(req)
	if err != nil {
		return nil, err
	}
	fault := c.server.hit(r)
	if fault != nil && fault.delay > 0 {
		timer := time.NewTimer(fault.delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	if c.cut.Load() {
		return nil, errCut
	}
	var failure error
	if fault != nil && fault.answer != nil {
		failure = fault.answer(r)
	}
	if failure != nil && !fault.afterEffect {
		return respond(req, nil, failure)
	}
	if r.verb == "watch" {
		return response(req, http.StatusOK, c.server.watch(req.Context(), r, c.server.gate)), nil
	}
	result, err := c.server.do(r)
	if failure != nil {
		err = failure
	}
	return respond(req, result, err)
}

func (s *apiServer) hit(r *apiRequest) *apiFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[r.verb+" "+r.resource]++
	for i, f := range s.faults {
		if f.resource != r.resource || !slices.Contains(strings.Fields(f.verbs), r.verb) ||
			f.namespace != "" && f.namespace != r.namespace || f.name != "" && f.name != r.name {
			continue
		}
		hit := *f
		if f.times > 0 {
			if f.times--; f.times == 0 {
				s.faults = slices.Delete(s.faults, i, i+1)
			}
		}
		return &hit
	}
	return nil
}

func parseRequest(req *http.Request) (*apiRequest, error) {
	r := &apiRequest{query: req.URL.Query()}
	path := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	path = path[2:] // api/v1
	if strings.HasPrefix(req.URL.Path, "/apis/") {
		path = path[1:]
	}
	if path[0] == "namespaces" && len(path) > 2 {
		r.namespace, path = path[1], path[2:]
	}
	path = append(path, "", "")
	r.resource, r.name, r.sub = path[0], path[1], path[2]
	switch req.Method {
	case http.MethodGet:
		switch {
		case r.name != "":
			r.verb = "get"
		case r.query.Get("watch") != "":
			r.verb = "watch"
		default:
			r.verb = "list"
		}
	case http.MethodPost:
		r.verb = "create"
		if r.query.Has("dryRun") {
			r.verb = "dry-run"
		}
	default:
		r.verb = map[string]string{http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[req.Method]
	}
	if req.Body != nil {
		defer req.Body.Close()
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		if len(body) > 0 {
			if err := json.Unmarshal(body, &r.body); err != nil {
				return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL, err)
			}
		}
	}
	if r.name == "" && r.body != nil {
		r.name = text(r.body, "metadata", "name")
	}
	return r, nil
}

func respond(req *http.Request, result any, err error) (*http.Response, error) {
	code := http.StatusOK
	if err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			return nil, err // it never came back from the server
		}
		s := status.Status()
		s.Kind, s.APIVersion = "Status", "v1"
		code, result = int(s.Code), s
	}
	body, encoded := result.(json.RawMessage)
	if !encoded {
		if body, err = json.Marshal(result); err != nil {
			return nil, err
		}
	}
	answer := response(req, code, io.NopCloser(bytes.NewReader(body)))
	if s, ok := result.(metav1.Status); ok && s.Details != nil && s.Details.RetryAfterSeconds > 0 {
		answer.Header.Set("Retry-After", strconv.Itoa(int(s.Details.RetryAfterSeconds)))
	}
	return answer, nil
}

func response(req *http.Request, code int, body io.ReadCloser) *http.Response {
	return &http.Response{
		StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1, Request: req, Body: body,
		Header: http.Header{"Content-Type": {"application/json"}},
	}
}

// do carries out all but watches.
func (s *apiServer) do(r *apiRequest) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := objectKey{r.resource, r.namespace, r.name}
	kind := schema.GroupResource{Resource: r.resource}
	existing := s.objects[key]
	if existing == nil && r.verb != "create" && r.verb != "dry-run" && r.verb != "list" {
		return nil, apierrors.NewNotFound(kind, r.name)
	}
	switch r.verb {
	case "get":
		return s.raw[key], nil
	case "list":
		return s.encodedList(r), nil
	case "create", "dry-run":
		if err := s.admit(r); err != nil { // before it is found to exist, as admission is
			return nil, err
		}
		if existing != nil && r.resource == "events" {
			// They are named by the time, which stands still in a bubble.
			r.name += fmt.Sprintf("-%d", s.version)
			key.name, existing = r.name, nil
			child(r.body, "metadata")["name"] = r.name
		}
		if existing != nil {
			return nil, apierrors.NewAlreadyExists(kind, r.name)
		}
		meta := child(r.body, "metadata")
		meta["namespace"], meta["uid"] = r.namespace, fmt.Sprintf("uid-%d", s.version+1)
		meta["creationTimestamp"] = time.Now().Add(s.skew).UTC().Format(time.RFC3339)
		if r.verb == "dry-run" {
			return r.body, nil
		}
		s.store(key, nil, r.body)
		return s.raw[key], nil
	case "update":
		if v := text(r.body, "metadata", "resourceVersion"); v != "" && v != text(existing, "metadata", "resourceVersion") {
			return nil, apierrors.NewConflict(kind, r.name, errors.New("the object has been modified"))
		}
		if r.sub == "status" {
			changed := clone(existing)
			changed["status"] = r.body["status"]
			s.store(key, existing, changed)
			return s.raw[key], nil
		}
		s.store(key, existing, r.body)
		return s.raw[key], nil
	case "patch":
		s.store(key, existing, merged(existing, r.body))
		return s.raw[key], nil
	case "delete":
		s.store(key, existing, nil)
		return metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"}, nil
	}
	return nil, apierrors.NewMethodNotSupported(kind, r.verb)
}

// store writes an object, or removes it where changed is nil. The caller holds the mutex.
func (s *apiServer) store(key objectKey, old, changed object) {
	s.version++
	last := changed
	if changed == nil {
		last = old
	}
	last = clone(last)
	child(last, "metadata")["resourceVersion"] = strconv.FormatInt(s.version, 10)
	raw, err := json.Marshal(last)
	if err != nil {
		panic(err)
	}
	if changed != nil {
		changed = last
		s.objects[key], s.raw[key] = changed, raw
	} else {
		delete(s.objects, key)
		delete(s.raw, key)
	}
	f := s.feed(key.resource)
	f.changes = append(f.changes, change{s.version, key, old, changed, raw})
	close(f.changed)
	f.changed = make(chan struct{})
}

func (s *apiServer) list(r *apiRequest) []object {
	var items []object
	for _, key := range s.selected(r) {
		items = append(items, s.objects[key])
	}
	return items
}

// selected are the objects that a request asks for, by name. The caller holds the mutex.
func (s *apiServer) selected(r *apiRequest) []objectKey {
	var keys []objectKey
	for key, o := range s.objects {
		if r.selects(key, o) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b objectKey) int {
		return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name)
	})
	return keys
}

func (s *apiServer) encodedList(r *apiRequest) json.RawMessage {
	list := []byte(`{"metadata":{"resourceVersion":"` + strconv.FormatInt(s.version, 10) + `"},"items":[`)
	for i, key := range s.selected(r) {
		if i > 0 {
			list = append(list, ',')
		}
		list = append(list, s.raw[key]...)
	}
	return append(list, "]}"...)
}

func (r *apiRequest) selects(key objectKey, o object) bool {
	if o == nil || key.resource != r.resource || r.namespace != "" && key.namespace != r.namespace {
		return false
	}
	if r.selector == nil {
		selector, err := labels.Parse(r.query.Get("labelSelector"))
		if err != nil {
			panic(err)
		}
		r.selector = selector
	}
	if r.selector.Empty() {
		return true
	}
	set := labels.Set{}
	if meta, ok := o["metadata"].(object); ok {
		if have, ok := meta["labels"].(object); ok {
			for k, v := range have {
				set[k], _ = v.(string)
			}
		}
	}
	return r.selector.Matches(set)
}
