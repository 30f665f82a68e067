package main

import (
	"fmt"
	"slices"
	"strings"
)

// A verdict says what is wrong, if anything is, and counts.
type verdict struct {
	wrong []string // each a reason to fail

	runs       int // messages that a container was started for
	attempts   int
	lost       int // messages that never ran, or that are missing from their poison queue
	doubled    int // attempts that ran as two Jobs
	twins      int // Jobs that ran as a second pod: Kubernetes's doing
	poisoned   int
	poisonTwin int // second copies in a poison queue
	eventTwin  int // those of events among them
	passed     int // partitions whose checkpoint is at their last event

	packs, packedMessages int // Jobs that were given packs, and the messages in them
	crashed, named        int // such Jobs that failed, and that succeeded with messages named as failed
	provided              int // Secrets with payloads
}

func (v *verdict) fail(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}

// judge holds the evidence against what must be.
func judge(e *evidence) *verdict {
	v := &verdict{runs: len(e.runs), provided: e.provided}
	v.judgeRuns(e)
	v.judgePoison(e)
	v.judgeCheckpoints(e)
	for _, queue := range sortedKeys(e.left) {
		v.fail("%s still holds %d messages", queue, e.left[queue])
	}
	for what, names := range map[string][]string{
		"Jobs are not marked as settled": e.unsettled, "Jobs are kept for longer than they should": e.overdue, "Secrets are left": e.secrets,
	} {
		if len(names) > 0 {
			v.fail("%d %s: %s", len(names), what, someOf(names))
		}
	}
	v.wrong = append(v.wrong, e.complaints...)
	return v
}

// A job is one that ran.
type job struct {
	name    string
	attempt int
	given   []message
	pods    map[string]bool
}

// crashes says whether the Job fails as a whole, by one of its messages.
func (j *job) crashes() bool {
	return slices.ContainsFunc(j.given, func(m message) bool { return m.crash && m.failsAt(j.attempt) })
}

// judgeRuns looks at what ran: each message, so many attempts as it takes, each in one Job.
func (v *verdict) judgeRuns(e *evidence) {
	sent := make(map[string]message, len(e.sent))
	runs := make(map[string]map[int][]taskRun, len(e.sent))
	for _, m := range e.sent {
		sent[m.id] = m
		runs[m.id] = make(map[int][]taskRun, 1)
	}
	ran := make(map[string]*job, len(e.runs)) // by UID
	for _, r := range e.runs {
		m, known := sent[r.id]
		if !known {
			v.fail("the Job %s ran for %q, which was never sent", r.job, r.id)
			continue
		}
		runs[r.id][r.attempt] = append(runs[r.id][r.attempt], r)
		j := ran[r.uid]
		if j == nil {
			j = &job{name: r.job, attempt: r.attempt, pods: make(map[string]bool, 1)}
			ran[r.uid] = j
		}
		j.pods[r.pod] = true
		if !slices.Contains(j.given, m) {
			j.given = append(j.given, m)
		}
		if r.attempt != j.attempt || !strings.HasSuffix(r.job, fmt.Sprintf("-%d", r.attempt)) {
			v.fail("the Job %s was given %s as attempt %d", r.job, r.id, r.attempt)
		}
	}
	for _, uid := range sortedKeys(ran) {
		v.judgeJob(ran[uid])
	}
	for _, m := range e.sent {
		v.judgeMessage(m, runs[m.id], ran)
		v.judgeName(e, m, runs[m.id])
	}
	for _, name := range sortedKeys(e.sameNames) {
		v.fail("there were %d Jobs of the name %s, one after the other", e.sameNames[name], name)
	}
}

// judgeJob looks at what a Job was given: one message, or as many of one queue as a pack of the attempt may have.
func (v *verdict) judgeJob(j *job) {
	// The Job controller made a second pod, as it may when the API server dies before it has the answer. It then removes one
	// of the two, which can fail the Job.
	v.twins += len(j.pods) - 1
	queue, limit := j.given[0].queue, 1
	if packed(queue) && j.attempt >= 1 && j.attempt <= maxAttempts {
		limit = packSizes[j.attempt-1]
	}
	if n := len(j.given); n > limit {
		v.fail("the Job %s was given %d messages, and attempt %d of %s has room for %d", j.name, n, j.attempt, queue, limit)
	}
	for _, m := range j.given {
		if m.queue != queue {
			v.fail("the Job %s was given %s of %s and %s of %s", j.name, j.given[0].id, queue, m.id, m.queue)
		}
	}
	if !packed(queue) {
		return
	}
	v.packs++
	v.packedMessages += len(j.given)
	switch {
	case j.crashes():
		v.crashed++
	case slices.ContainsFunc(j.given, func(m message) bool { return m.failsAt(j.attempt) }):
		v.named++
	}
}

func (v *verdict) judgeMessage(m message, attempts map[int][]taskRun, ran map[string]*job) {
	if len(attempts) == 0 {
		v.lost++
		v.fail("%s is lost: it never ran", m.id)
		return
	}
	highest, twins := 0, false
	for attempt, runs := range attempts {
		v.attempts++
		highest = max(highest, attempt)
		uids, pods := make(map[string]bool), make(map[string]bool)
		for _, r := range runs {
			uids[r.uid] = true
			pods[r.pod] = true
		}
		if len(uids) > 1 {
			v.doubled++
			v.fail("attempt %d of %s ran as %d Jobs: %v", attempt, m.id, len(uids), runs)
		}
		if len(pods) < len(runs) {
			v.fail("attempt %d of %s was twice in one pack: %v", attempt, m.id, runs)
		}
		twins = twins || len(uids) == 1 && len(pods) > 1
	}
	for attempt := 1; attempt < highest; attempt++ {
		if attempts[attempt] == nil {
			v.fail("attempt %d of %s never ran, but attempt %d did", attempt, m.id, highest)
		}
	}
	if want := wanted(m, attempts, ran); highest < want || highest > want && !twins {
		v.fail("%s took %d attempts, not %d", m.id, highest, want)
	}
}

// judgeName looks at what lighterman calls a message: the same at each attempt, and, for an event, its place in its partition.
func (v *verdict) judgeName(e *evidence, m message, attempts map[int][]taskRun) {
	want, known := e.eventIDs[m.id]
	if kindOf(m.queue) == eventKind && !known {
		v.fail("%s is not in its event hub", m.id)
		return
	}
	for attempt := 1; attempt <= maxAttempts; attempt++ {
		for _, r := range attempts[attempt] {
			if want == "" {
				want = r.message
			}
			if r.message != want {
				v.fail("attempt %d of %s ran for message %s, not %s", attempt, m.id, r.message, want)
			}
		}
	}
}

// wanted is how many attempts a message takes: until one succeeds. By whom it was made to fail, where not by itself, shows in the Job that it was in.
func wanted(m message, attempts map[int][]taskRun, ran map[string]*job) int {
	for attempt := 1; attempt < maxAttempts; attempt++ {
		fails := m.failsAt(attempt)
		for _, r := range attempts[attempt] {
			fails = fails || ran[r.uid].crashes()
		}
		if !fails {
			return attempt
		}
	}
	return maxAttempts
}

// judgePoison looks at the poison queues: the tasks that always fail and no others, unchanged.
func (v *verdict) judgePoison(e *evidence) {
	wanted := make(map[string]message)
	for _, m := range e.sent {
		if m.poisoned() {
			wanted[m.queue+" "+m.payload()] = m
		}
	}
	found := make(map[string]int)
	for _, queue := range sortedKeys(e.poison) {
		for _, p := range e.poison[queue] {
			key := queue + " " + p.body
			m, ok := wanted[key]
			if !ok {
				v.fail("the poison queue of %s holds what does not belong there: %q", queue, p.body)
				continue
			}
			if found[key]++; found[key] > 1 {
				v.poisonTwin++
				switch kindOf(queue) {
				case streamKind:
					v.fail("the poison queue of %s holds %s twice", queue, m.id)
				case eventKind:
					// Nor can an event be copied and passed by the checkpoint in one step.
					v.eventTwin++
				default:
					// A Storage Queue cannot copy and delete in one step, so that an answer that is lost in between makes a second copy.
				}
				continue
			}
			v.poisoned++
			if p.attempts != "" && (p.attempts != fmt.Sprint(maxAttempts) || !strings.HasSuffix(p.job, "-"+p.attempts)) {
				v.fail("the poisoned %s is said to have had %s attempts, the last as Job %s", m.id, p.attempts, p.job)
			}
			if want := e.eventIDs[m.id]; p.message != want {
				v.fail("the poisoned %s is said to be message %q, not %q", m.id, p.message, want)
			}
		}
	}
	for _, m := range e.sent {
		if m.poisoned() && found[m.queue+" "+m.payload()] == 0 {
			v.lost++
			v.fail("%s is missing from the poison queue", m.id)
		}
	}
}

// judgeCheckpoints looks at the checkpoints: each at the last event of its partition.
func (v *verdict) judgeCheckpoints(e *evidence) {
	for _, p := range e.ends {
		switch {
		case p.checkpoint != p.last:
			v.fail("the checkpoint of partition %s of %s is at %d, and the last event %d", p.partition, p.hub, p.checkpoint, p.last)
		case p.offset != p.lastOffset:
			v.fail("the checkpoint of partition %s of %s has the offset %q, and the last event %q", p.partition, p.hub, p.offset, p.lastOffset)
		default:
			v.passed++
		}
	}
}

// kindOf is the kind of source that a name is of.
func kindOf(queue string) string {
	kind, _, _ := strings.Cut(queue, "-")
	return kind
}

// someOf shows the first of many.
func someOf(names []string) string {
	const enough = 5
	names = slices.Sorted(slices.Values(names))
	if len(names) <= enough {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:enough], ", ") + ", …"
}
