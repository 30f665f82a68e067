package dispatcher

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lighterman-dev/lighterman/jobs"
)

// simConnection is a process's way to the API server of the simulation.
type simConnection struct {
	w *simulation
	p *simProcess
}

type apiAnswer struct {
	result any
	err    error
}

// RoundTrip implements http.RoundTripper.
func (c *simConnection) RoundTrip(req *http.Request) (*http.Response, error) {
	r, err := parseRequest(req)
	if err != nil {
		return nil, err
	}
	w, p, ctx := c.w, c.p, req.Context()
	op := r.verb + " " + r.resource
	w.mu.Lock()
	if op == "create jobs" {
		w.checkLaunch(p, r)
	}
	f := p.fate(nothing, op, r.name)
	object := w.title(r.name)
	w.mu.Unlock()

	inTime := func(age time.Duration) bool {
		// Without the fence, a request may arrive for as long as its sender could have waited for it, and no later: the server, or what is in
		// between, gives up. What a paused process sent arrives whenever it goes on, where there is a fence.
		return op != "create jobs" || age <= w.timeout || w.fenced && fenceOf(r) != ""
	}
	answer, err := travel(ctx, p, op, object, f, inTime, func() (a apiAnswer) {
		switch {
		case f.refused != 0:
			a.err = refusal(r, f)
			w.mu.Lock()
			w.note(p.actor, op, object, a.err.Error())
			w.mu.Unlock()
		case r.verb == "watch":
		default:
			a.result, a.err = w.takeEffect(p, r)
		}
		return a
	})
	switch {
	case err != nil:
		return nil, err
	case r.verb == "watch" && answer.err == nil:
		return response(req, http.StatusOK, w.api.watch(ctx, r, p.gate)), nil
	}
	resp, err := respond(req, answer.result, answer.err)
	if err == nil && f.refused != 0 && f.retryAfter > 0 {
		resp.Header.Set("Retry-After", strconv.Itoa(int(f.retryAfter/time.Second)))
	}
	return resp, err
}

// refusal is the answer of a server in trouble.
func refusal(r *apiRequest, f fate) error {
	kind := schema.GroupResource{Resource: r.resource}
	switch {
	case f.refused == http.StatusConflict && (r.verb == "update" || r.verb == "patch"):
		return apierrors.NewConflict(kind, r.name, errors.New("the simulation was faster"))
	case f.refused == http.StatusTooManyRequests:
		return apierrors.NewTooManyRequests("the simulation is busy", int(f.retryAfter/time.Second))
	case f.refused == http.StatusServiceUnavailable:
		return apierrors.NewServiceUnavailable("the simulation is down")
	}
	return apierrors.NewInternalError(errors.New("the simulation failed"))
}

// takeEffect carries out a request of a process.
func (w *simulation) takeEffect(p *simProcess, r *apiRequest) (any, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.usurped != nil && r.resource == "leases" {
		if lock, ok := p.belief(r); ok {
			raw, err := json.Marshal(lock)
			return json.RawMessage(raw), err
		}
	}
	if r.resource == "events" {
		w.calls++
		return r.body, nil // nobody reads them
	}
	op, name := r.verb+" "+r.resource, w.title(r.name)
	var result any
	err := w.refuse(r)
	if err == nil {
		w.api.mu.Lock()
		before := w.api.objects[objectKey{r.resource, r.namespace, r.name}]
		w.api.mu.Unlock()
		result, err = w.api.do(r)
		switch {
		case err != nil:
		case r.resource == "jobs":
			w.jobWritten(p.actor, r, before)
			name = w.title(r.name)
		case r.resource == "leases":
			w.checkLock(p, r, r.body)
		case r.resource == "secrets" && r.verb == "create":
			w.checkSecret(p.actor, r)
		}
	}
	if jobs.Fenced(err) {
		p.usurped = nil // it is told now
	}
	switch {
	case err != nil:
		w.note(p.actor, op, name, err.Error())
	case r.verb != "get" && r.verb != "list" && r.verb != "dry-run":
		w.note(p.actor, op, name, w.summary(r))
	}
	return result, err
}

// refuse is what a person's mistakes make the API server say to Jobs. The caller holds the mutex.
func (w *simulation) refuse(r *apiRequest) error {
	if r.resource != "jobs" && r.resource != "secrets" || r.verb != "create" && r.verb != "dry-run" {
		return nil
	}
	for _, q := range w.queues {
		if text(r.body, "metadata", "labels", jobs.LabelTemplate) == q.name && q.broken["quota"] > 0 {
			if r.verb == "create" && r.resource == "jobs" {
				q.refused++
				w.checkRefused(q)
			}
			return apierrors.NewForbidden(jobsResource, r.name, errors.New("exceeded quota: small, requested: count/jobs.batch=1"))
		}
	}
	return nil
}

func fenceOf(r *apiRequest) string {
	return text(r.body, "metadata", "annotations", jobs.AnnotationFence)
}

// title is what the trace calls an object: a Job by its message and attempt.
func (w *simulation) title(name string) string {
	if j := w.jobs[name]; j != nil {
		return j.title
	}
	return name
}

// summary is what the trace says of a request that went well.
func (w *simulation) summary(r *apiRequest) string {
	said := "ok"
	if outcome := text(r.body, "metadata", "labels", jobs.LabelSettled); outcome != "" {
		said += ", settled: " + outcome
	}
	if holder := text(r.body, "spec", "holderIdentity"); holder != "" {
		said += ", held by " + holder
	}
	if fence := fenceOf(r); fence != "" {
		said += ", fence " + fence
	}
	return said
}
