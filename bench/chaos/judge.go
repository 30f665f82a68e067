package main

import (
	"fmt"
	"slices"
	"strings"
)

// A verdict says what is wrong, if anything is, and counts.
type verdict struct {
	wrong []string // each a reason to fail

	runs       int // containers that were started
	attempts   int
	lost       int // messages that never ran, or that are missing from their poison queue
	doubled    int // attempts that ran as two Jobs
	twins      int // attempts that ran as two pods of one Job: Kubernetes's doing
	poisoned   int
	poisonTwin int // second copies in a poison queue
}

func (v *verdict) fail(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}

// judge holds the evidence against what must be.
func judge(e *evidence) *verdict {
	v := &verdict{runs: len(e.runs)}
	v.judgeRuns(e)
	v.judgePoison(e)
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

// judgeRuns looks at what ran: each message, so many attempts as it takes, each as one Job.
func (v *verdict) judgeRuns(e *evidence) {
	runs := make(map[string]map[int][]taskRun, len(e.sent))
	for _, m := range e.sent {
		runs[m.id] = make(map[int][]taskRun, 1)
	}
	for _, r := range e.runs {
		if runs[r.id] == nil {
			v.fail("the Job %s ran for %q, which was never sent", r.job, r.id)
			continue
		}
		runs[r.id][r.attempt] = append(runs[r.id][r.attempt], r)
	}
	for _, m := range e.sent {
		v.judgeMessage(m, runs[m.id])
	}
	for _, name := range sortedKeys(e.sameNames) {
		v.fail("there were %d Jobs of the name %s, one after the other", e.sameNames[name], name)
	}
}

func (v *verdict) judgeMessage(m message, attempts map[int][]taskRun) {
	if len(attempts) == 0 {
		v.lost++
		v.fail("%s is lost: it never ran", m.id)
		return
	}
	highest, twins := 0, false
	for attempt, runs := range attempts {
		v.attempts++
		highest = max(highest, attempt)
		uids := make(map[string]bool)
		for _, r := range runs {
			uids[r.uid] = true
		}
		switch {
		case len(uids) > 1:
			v.doubled++
			v.fail("attempt %d of %s ran as %d Jobs: %v", attempt, m.id, len(uids), runs)
		case len(runs) > 1:
			// The Job controller made a second pod, as it may when the API server dies before it has the answer. It then removes one
			// of the two, which can fail the Job.
			v.twins += len(runs) - 1
			twins = true
		}
	}
	for attempt := 1; attempt < highest; attempt++ {
		if attempts[attempt] == nil {
			v.fail("attempt %d of %s never ran, but attempt %d did", attempt, m.id, highest)
		}
	}
	if want := m.attempts(); highest < want || highest > want && !twins {
		v.fail("%s took %d attempts, not %d", m.id, highest, want)
	}
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
				// A Storage Queue cannot copy and delete in one step, so that an answer that is lost in between makes a second copy.
				if strings.HasPrefix(queue, streamKind) {
					v.fail("the poison queue of %s holds %s twice", queue, m.id)
				}
				continue
			}
			v.poisoned++
			if p.attempts != "" && (p.attempts != fmt.Sprint(maxAttempts) || !strings.HasSuffix(p.job, "-"+p.attempts)) {
				v.fail("the poisoned %s is said to have had %s attempts, the last as Job %s", m.id, p.attempts, p.job)
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

// someOf shows the first of many.
func someOf(names []string) string {
	const enough = 5
	names = slices.Sorted(slices.Values(names))
	if len(names) <= enough {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:enough], ", ") + ", …"
}
