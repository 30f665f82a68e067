package dispatcher

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

// The oracle knows what must hold, and looks whenever something takes effect. The numbers are those of the invariants in the design; a message
// that never ends counts under 1, and the fence under 0.

// simMessage is what became of a message so far.
type simMessage struct {
	plan   *messagePlan
	queue  *simQueue
	id     string
	name   string // in the trace
	sentAt time.Time

	attempts  map[int]*simAttempt
	failures  int  // Jobs that failed, or that a person deleted while they ran
	succeeded bool // a Job of it has the condition Complete
	meddled   bool // a person deleted a Job of it, and with it the record
	copied    bool // it was copied aside, which is final only with the checkpoint
	done      bool // it has been completed or copied, final or not
	ended     string
	endedAt   time.Time
}

// simAttempt is one attempt on a message.
type simAttempt struct {
	created int // Job objects
	failed  bool
}

// simJob is a Job object.
type simJob struct {
	name, title string
	queue       *simQueue
	messages    []*simMessage // one, or those of a pack
	packed      bool
	attempt     int
	createdAt   time.Time
	finished    bool
	finishedAt  time.Time     // by everybody's clock
	failed      []*simMessage // of a pack that has succeeded
	ending      bool          // the dispatcher asked for its end
	marked      bool
	ttl         float64 // seconds, once it is marked
	deleted     bool
}

// violation is what must not be.
type violation struct {
	invariant int
	text      string
	about     *simMessage // nil: no single message
}

// violate notes a violation. The caller holds the mutex.
func (w *simulation) violate(invariant int, about *simMessage, format string, args ...any) {
	v := violation{invariant, fmt.Sprintf(format, args...), about}
	if about != nil {
		v.text = about.name + ": " + v.text
	}
	w.note("oracle", "VIOLATION", "", v.text)
	w.violations = append(w.violations, v)
}

// checkLaunch is asked before a process requests a Job: it must hold the message by a lease that is trusted. The caller holds the mutex, as
// everywhere below.
func (w *simulation) checkLaunch(p *simProcess, r *apiRequest) {
	q, messages, attempt := w.messagesOf(r.body)
	if at, over := p.over[fenceOf(r)]; over && time.Now().After(at) {
		w.violate(0, messages[0], "%s asks for the Job of attempt %d by %q, a term that it ended %v ago", p.actor, attempt, fenceOf(r), time.Since(at))
	}
	for _, m := range messages {
		if m != nil && !w.holds(p, q, m) {
			w.violate(5, m, "%s asks for the Job of attempt %d without a lease that is trusted", p.actor, attempt)
		}
	}
}

// holds reports whether a process holds a message, and takes note that it launches it.
func (w *simulation) holds(p *simProcess, q *simQueue, m *simMessage) bool {
	for _, s := range slices.Backward(p.sources) {
		if h := s.held[m.id]; s.q == q && h != nil && (h.trusted() || time.Since(h.lostAt) <= w.timeout) {
			h.launched = true // or a try that began before the lease was lost goes on, as the client repeats what a server puts off
			return true
		}
	}
	return false
}

// checkLock looks at what a process did to a lock: who gives it up asks for no Jobs by it any more.
func (w *simulation) checkLock(p *simProcess, r *apiRequest, lock object) {
	if r.verb != "update" || text(lock, "metadata", "labels", fence.LabelLock) == "" || text(lock, "spec", "holderIdentity") != "" {
		return
	}
	spec, _ := lock["spec"].(object)
	term, _ := spec["leaseTransitions"].(float64)
	p.over[fence.Value(r.namespace, r.name, int(term))] = time.Now()
}

// checkTrusted is asked before a process settles a message.
func (w *simulation) checkTrusted(s *simHolder, op string, l *lease.Lease) {
	h := &holding{lease: l, until: l.Deadline()}
	if held := s.held[l.ID]; held != nil && held.lease == l {
		h = held
	}
	if !h.trusted() {
		w.violate(5, s.q.messages[l.ID], "%s sends %s %v after the lease's deadline", s.p.actor, op, time.Since(l.Deadline()))
	}
}

// checkRoom is asked before a process receives.
func (w *simulation) checkRoom(s *simHolder, limit int) {
	held := 0
	var waiting []*holding
	for id, h := range s.held {
		m := s.q.messages[id]
		if m.ended != "" || h.spent || h.lapsed || !h.lostAt.IsZero() || !h.trusted() {
			continue
		}
		held++
		if h.waits() && !m.plan.bad && len(m.attempts) == 0 {
			waiting = append(waiting, h)
		}
	}
	if held+limit > s.q.mostInFlight*s.q.pack {
		w.violate(6, nil, "%s asks %s for %d messages and holds %d, with max-in-flight %d and tasks-per-job %d",
			s.p.actor, s.q.name, limit, held, s.q.mostInFlight, s.q.pack)
	}
	most := s.q.rate * s.q.pack
	if most == 0 || len(waiting)+limit <= most {
		return
	}
	w.after(time.Nanosecond, func() { // those whose launch begins in this very moment do not wait
		w.mu.Lock()
		defer w.mu.Unlock()
		waiting = slices.DeleteFunc(waiting, func(h *holding) bool { return !h.waits() })
		if len(waiting)+limit > most {
			w.violate(6, nil, "%s asks %s for %d messages while %d wait to be launched, with jobs-per-second %d",
				s.p.actor, s.q.name, limit, len(waiting), s.q.rate)
		}
	})
}

// checkRefused is asked when the quota refuses a Job: where it lasts, hardly any may be asked for.
func (w *simulation) checkRefused(q *simQueue) {
	if most := 4*q.mostInFlight + 40; q.refused > most {
		w.violate(7, nil, "more than %d Jobs of %s were asked for while the quota refuses them", most, q.name)
		w.frozen = true
	}
}

// overrun ends a simulation in which requests grow without bound.
func (w *simulation) overrun() bool {
	n := 0
	for _, q := range w.queues {
		n += len(q.messages)
	}
	if most := 3000 + 200*n + int(100*time.Since(w.begun)/time.Second); w.calls > most && !w.frozen {
		w.violate(8, nil, "%d requests in %v for %d messages", w.calls, time.Since(w.begun), n)
		w.frozen = true
	}
	return w.frozen
}

// messagesOf finds the messages that a Job is for, by its annotations. Those that there are not are nil, and there is at least one.
func (w *simulation) messagesOf(job object) (q *simQueue, messages []*simMessage, attempt int) {
	attempt, _ = strconv.Atoi(text(job, "metadata", "annotations", jobs.AnnotationAttempt))
	ids := text(job, "metadata", "annotations", jobs.AnnotationMessageIDs)
	if ids == "" {
		ids = text(job, "metadata", "annotations", jobs.AnnotationMessageID)
	}
	for _, q := range w.queues {
		if q.identity() == text(job, "metadata", "annotations", jobs.AnnotationSource) {
			for id := range jobs.MessageSet(ids).All() {
				messages = append(messages, q.messages[id])
			}
			return q, messages, attempt
		}
	}
	return nil, []*simMessage{nil}, attempt
}

// jobWritten looks at what a process did to a Job.
func (w *simulation) jobWritten(actor string, r *apiRequest, before object) {
	switch r.verb {
	case "create":
		w.jobCreated(actor, r.body)
	case "delete":
		w.jobDeleted(actor, w.jobs[r.name])
	case "patch", "update":
		w.jobChanged(w.jobs[r.name], before)
	}
}

func (w *simulation) jobCreated(actor string, body object) {
	q, messages, attempt := w.messagesOf(body)
	name := text(body, "metadata", "name")
	w.created++
	if slices.Contains(messages, nil) {
		w.violate(2, nil, "%s created Job %s, which is for no message", actor, name)
		return
	}
	packed := text(body, "metadata", "annotations", jobs.AnnotationMessageIDs) != ""
	j := &simJob{
		name: name, title: titleOf(messages, attempt), queue: q, messages: messages, packed: packed, attempt: attempt, createdAt: time.Now(),
	}
	w.jobs[name] = j
	ids := make([]string, len(messages))
	for i, m := range messages {
		ids[i] = m.id
	}
	about := messages[0]
	if want := (jobs.Identity{Source: q.identity(), Messages: jobs.NewMessageSet(ids...), Attempt: attempt}).Name(); name != want {
		w.violate(2, about, "the Job of attempt %d is named %s, want %s", attempt, name, want)
	}
	if text(body, "metadata", "annotations", jobs.AnnotationFence) == "" {
		w.violate(0, about, "the Job of attempt %d carries no fence", attempt)
	}
	w.checkPayload(j, body)
	if len(messages) > q.pack || len(messages) > 1 && attempt >= q.maxAttempts {
		w.violate(7, about, "the pack of attempt %d has %d messages, with tasks-per-job %d and max-attempts %d", attempt, len(messages), q.pack, q.maxAttempts)
	}
	for _, m := range messages {
		w.attemptBegun(actor, m, attempt)
	}
	w.control(j)
}

// titleOf names a Job by its messages and attempt: queue-0/m1,m2#1.
func titleOf(messages []*simMessage, attempt int) string {
	title := messages[0].name
	for _, m := range messages[1:] {
		title += "," + m.id
	}
	return title + "#" + strconv.Itoa(attempt)
}

// mentions reports whether an object of the trace is about a message: itself, or a Job that it is in.
func mentions(object, message string) bool {
	job, _, _ := strings.Cut(object, "#")
	queue, ids, _ := strings.Cut(job, "/")
	own, id, _ := strings.Cut(message, "/")
	return queue == own && slices.Contains(strings.Split(ids, ","), id)
}

func (w *simulation) attemptBegun(actor string, m *simMessage, attempt int) {
	a := m.attempts[attempt]
	if a == nil {
		a = &simAttempt{}
		m.attempts[attempt] = a
	}
	a.created++
	before := m.attempts[attempt-1]
	switch {
	case m.meddled: // what a person deletes may be done again
	case a.created > 1:
		w.violate(2, m, "%s created a second Job of attempt %d", actor, attempt)
	case m.succeeded || m.copied || m.ended != "":
		w.violate(3, m, "%s created the Job of attempt %d after the message was done (succeeded: %v, ended: %q)", actor, attempt, m.succeeded, m.ended)
	case attempt > 1 && (before == nil || !before.failed):
		w.violate(3, m, "%s created the Job of attempt %d before that of attempt %d failed", actor, attempt, attempt-1)
	}
}

// jobChanged looks at a Job that a process has patched.
func (w *simulation) jobChanged(j *simJob, before object) {
	now := w.jobObject(j)
	spec, _ := now["spec"].(object)
	if _, ok := spec["activeDeadlineSeconds"]; ok && !j.ending {
		j.ending = true
		if j.queue.start == 0 {
			w.violate(5, j.messages[0], "the Job of attempt %d is ended, and there is no start-timeout that would ask for it", j.attempt)
		}
		w.after(time.Second, func() { w.finishFor(j, "DeadlineExceeded") })
	}
	ttl, ok := spec["ttlSecondsAfterFinished"].(float64)
	settled := text(now, "metadata", "labels", jobs.LabelSettled)
	var endedAt time.Time
	for _, m := range j.messages {
		if (ok || settled != "") && m.ended == "" {
			w.violate(4, m, "the Job of attempt %d is marked as %q, with ttlSecondsAfterFinished %v, before its message is settled", j.attempt, settled, ttl)
			return
		}
		endedAt = later(endedAt, m.endedAt)
	}
	if settled == "" || settled == text(before, "metadata", "labels", jobs.LabelSettled) {
		return
	}
	j.marked, j.ttl = true, ttl
	if !j.finished {
		return // one that a person's deletion brought about; its time begins when it has finished
	}
	if left := w.due(j, ttl).Sub(endedAt); left < w.window(j.queue) {
		w.violate(4, j.messages[0], "the Job of attempt %d stays for %v after its message was settled, want %v at least", j.attempt, left, w.window(j.queue))
	}
	w.collect(j, ttl)
}

// window is for how long a Job must stay after its message was settled: until no request of a former leader can be under way.
func (w *simulation) window(q *simQueue) time.Duration { return q.leastLease + w.timeout + w.lock }

func (w *simulation) jobDeleted(actor string, j *simJob) {
	if j == nil {
		return
	}
	j.deleted = true
	for _, m := range j.messages {
		if left := time.Since(m.endedAt); actor != person && (m.ended == "" || left < w.window(m.queue)) {
			w.violate(4, m, "%s deleted the Job of attempt %d, whose message ended %q %v ago; it must stay for %v", actor, j.attempt, m.ended, left, w.window(m.queue))
		}
	}
}

// completed is told that a message has left its queue as done.
func (w *simulation) completed(m *simMessage) {
	if !m.succeeded {
		w.violate(1, m, "it was completed, and no Job of it has succeeded")
	}
	w.ended(m, "completed")
}

// poisoned is told that a message was moved aside.
func (w *simulation) poisoned(m *simMessage, reason string) {
	moved := m.queue.memory.Poisoned()
	w.copiedAside(m, moved[len(moved)-1].Message.Body, reason)
	w.ended(m, "poisoned")
}

// copiedAside is told that a message was copied to where the poisoned ones go.
func (w *simulation) copiedAside(m *simMessage, body []byte, reason string) {
	switch {
	case string(body) != m.plan.body:
		w.violate(9, m, "it was poisoned with the body %q, want %q", body, m.plan.body)
	case m.succeeded && !m.meddled: // whether a Job that a person deleted had succeeded may be known to nobody
		w.violate(1, m, "it was poisoned after a Job of it succeeded")
	case !m.plan.bad && !m.meddled && m.failures < m.queue.maxAttempts:
		w.violate(7, m, "it was poisoned after %d failures, with max-attempts %d: %s", m.failures, m.queue.maxAttempts, reason)
	}
}

func (w *simulation) ended(m *simMessage, how string) {
	if m.ended != "" {
		w.violate(1, m, "it was %s after it had been %s", how, m.ended)
	}
	m.ended, m.endedAt = how, time.Now()
	if m.queue.log == nil {
		w.checkCalm(m)
	}
}
