package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// asPlanned is the evidence of a run in which all went well.
func asPlanned() *evidence {
	e := &evidence{poison: make(map[string][]poison), provided: 7, eventIDs: make(map[string]string)}
	for _, kind := range kinds {
		e.sent = append(e.sent, plan(1, kind, 600)...)
	}
	waiting, next := make(map[string][]message), make(map[string]int64)
	for _, m := range e.sent {
		waiting[m.queue] = append(waiting[m.queue], m)
		if kindOf(m.queue) == eventKind {
			partition := strconv.Itoa(m.partition)
			e.eventIDs[m.id] = partitioned.MessageID(partition, next[m.queue+partition], time.UnixMilli(1))
			next[m.queue+partition]++
		}
	}
	for hub := range hubCount {
		for partition := range partitionCount {
			end := partitionEnd{hub: queueName(eventKind, hub), partition: strconv.Itoa(partition)}
			end.last = next[end.hub+end.partition] - 1
			end.checkpoint, end.lastOffset, end.offset = end.last, "the last", "the last"
			e.ends = append(e.ends, end)
		}
	}
	for _, queue := range sortedKeys(waiting) {
		for attempt := 1; attempt <= maxAttempts; attempt++ {
			waiting[queue] = e.runAll(queue, attempt, waiting[queue])
		}
		for _, m := range waiting[queue] {
			p := poison{body: m.payload(), message: e.eventIDs[m.id]}
			if kindOf(queue) != queueKind {
				last := e.runs[e.runOf(m, maxAttempts)]
				p.attempts, p.job = fmt.Sprint(maxAttempts), last.job
			}
			e.poison[queue] = append(e.poison[queue], p)
		}
	}
	return e
}

// runAll runs an attempt of some messages, in packs where the queue has them, and returns those that fail.
func (e *evidence) runAll(queue string, attempt int, messages []message) (failed []message) {
	size := 1
	if packed(queue) {
		size = packSizes[attempt-1]
	}
	for given := range slices.Chunk(messages, size) {
		name := fmt.Sprintf("%s-%d", given[0].id, attempt)
		j := job{attempt: attempt, given: given}
		for _, m := range given {
			e.runs = append(e.runs, taskRun{id: m.id, attempt: attempt, job: name, uid: "uid of " + name, pod: name + "-x", message: e.nameOf(m)})
			if m.failsAt(attempt) || j.crashes() {
				failed = append(failed, m)
			}
		}
	}
	return failed
}

// nameOf is what lighterman calls a message.
func (e *evidence) nameOf(m message) string {
	if name := e.eventIDs[m.id]; name != "" {
		return name
	}
	return "name-of-" + m.id
}

// first finds a message of a kind of source.
func (e *evidence) first(t *testing.T, kind string, wanted func(message) bool) message {
	t.Helper()
	for _, m := range e.sent {
		if kindOf(m.queue) == kind && wanted(m) {
			return m
		}
	}
	t.Fatal("the plan has no such message")
	return message{}
}

func quick(m message) bool { return m.fails == 0 && m.sleep == 0 }

// inPack finds a message in a pack of some attempt of which another failed, by making the whole pack fail or by being named, and which does not fail itself.
func (e *evidence) inPack(t *testing.T, crashed bool) (good message, attempt int) {
	t.Helper()
	packs := make(map[string]*job)
	for _, r := range e.runs {
		m := e.sent[slices.IndexFunc(e.sent, func(m message) bool { return m.id == r.id })]
		if !packed(m.queue) {
			continue
		}
		if packs[r.uid] == nil {
			packs[r.uid] = &job{attempt: r.attempt}
		}
		packs[r.uid].given = append(packs[r.uid].given, m)
	}
	for _, uid := range sortedKeys(packs) {
		j := packs[uid]
		bad := slices.IndexFunc(j.given, func(m message) bool { return m.failsAt(j.attempt) })
		fine := slices.IndexFunc(j.given, func(m message) bool { return m.fails == 0 })
		if bad >= 0 && fine >= 0 && j.crashes() == crashed {
			return j.given[fine], j.attempt
		}
	}
	t.Fatal("the plan has no such pack")
	return message{}, 0
}

// join puts an attempt of a message into the Job of another.
func (e *evidence) join(m, other message, attempt int) {
	with, r := e.runs[e.runOf(other, attempt)], &e.runs[e.runOf(m, attempt)]
	r.job, r.uid, r.pod = with.job, with.uid, with.pod
}

// runOf finds the index of a run.
func (e *evidence) runOf(m message, attempt int) int {
	return slices.IndexFunc(e.runs, func(r taskRun) bool { return r.id == m.id && r.attempt == attempt })
}

func TestJudgeFindsNothingWrong(t *testing.T) {
	e := asPlanned()
	v := judge(e)
	if len(v.wrong) > 0 {
		t.Errorf("a run as planned is judged wrong: %q", v.wrong)
	}
	if v.passed != hubCount*partitionCount {
		t.Errorf("%d checkpoints are at the last event, want all %d", v.passed, hubCount*partitionCount)
	}
	if v.attempts != len(e.runs) || v.poisoned == 0 || v.lost+v.doubled+v.twins+v.poisonTwin > 0 || v.provided != e.provided {
		t.Errorf("the counts are %+v for %d runs", v, len(e.runs))
	}
	if full := v.packs * packSizes[0]; v.packs == 0 || v.packedMessages <= v.packs || v.packedMessages > full || v.crashed == 0 || v.named == 0 {
		t.Errorf("the counts of packs are %+v; some failed and some named messages are wanted", v)
	}
}

func TestJudgeFinds(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*testing.T, *evidence)
		says  string // in one of the complaints; empty: there is none
		count func(*verdict) int
	}{
		"a message that never ran": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, quick)
				e.runs = slices.DeleteFunc(e.runs, func(r taskRun) bool { return r.id == m.id })
			},
			"is lost: it never ran", func(v *verdict) int { return v.lost },
		},
		"an attempt that ran as two Jobs": {
			func(t *testing.T, e *evidence) {
				again := e.runs[e.runOf(e.first(t, streamKind, func(m message) bool { return quick(m) && !packed(m.queue) }), 1)]
				again.uid, again.pod = "another uid", "another pod"
				e.runs = append(e.runs, again)
			},
			"ran as 2 Jobs", func(v *verdict) int { return v.doubled },
		},
		"an attempt that ran as two pods of one Job": {
			func(t *testing.T, e *evidence) {
				again := e.runs[e.runOf(e.first(t, streamKind, quick), 1)]
				again.pod = "another pod"
				e.runs = append(e.runs, again)
			},
			"", func(v *verdict) int { return v.twins },
		},
		"a Job that was created again after it was gone": {
			func(_ *testing.T, e *evidence) { e.sameNames = map[string]int{"a-1": 2} },
			"2 Jobs of the name a-1", nil,
		},
		"one attempt too many": {
			func(t *testing.T, e *evidence) {
				again := e.runs[e.runOf(e.first(t, queueKind, func(m message) bool { return quick(m) && !packed(m.queue) }), 1)]
				again.attempt, again.job, again.uid = 2, "another-2", "another uid"
				e.runs = append(e.runs, again)
			},
			"took 2 attempts, not 1", nil,
		},
		"one attempt too few": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, func(m message) bool { return m.fails == 1 && !packed(m.queue) })
				e.runs = slices.Delete(e.runs, e.runOf(m, 2), e.runOf(m, 2)+1)
			},
			"took 1 attempts, not 2", nil,
		},
		"a message that was not tried again although its pack failed": {
			func(t *testing.T, e *evidence) {
				m, attempt := e.inPack(t, true)
				e.runs = slices.DeleteFunc(e.runs, func(r taskRun) bool { return r.id == m.id && r.attempt > attempt })
			},
			"attempts, not ", nil,
		},
		"a message that was tried again although its pack named others": {
			func(t *testing.T, e *evidence) {
				m, attempt := e.inPack(t, false)
				name := fmt.Sprintf("%s-%d", m.id, attempt+1)
				e.runs = append(e.runs, taskRun{id: m.id, attempt: attempt + 1, job: name, uid: "uid of " + name, pod: name + "-x", message: e.nameOf(m)})
			},
			"attempts, not ", nil,
		},
		"an attempt that ran in two packs": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, streamKind, func(m message) bool { return packed(m.queue) && quick(m) })
				other := e.runs[len(e.runs)-1]
				for _, r := range e.runs {
					if r.attempt == 1 && strings.HasPrefix(r.id, m.queue) && r.uid != e.runs[e.runOf(m, 1)].uid {
						other = r
					}
				}
				other.id, other.message = m.id, e.nameOf(m)
				e.runs = append(e.runs, other)
			},
			"ran as 2 Jobs", func(v *verdict) int { return v.doubled },
		},
		"a message twice in one pack": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, func(m message) bool { return packed(m.queue) && quick(m) })
				e.runs = append(e.runs, e.runs[e.runOf(m, 1)])
			},
			"was twice in one pack", nil,
		},
		"a pack that is too large": {
			func(t *testing.T, e *evidence) {
				first := e.first(t, queueKind, func(m message) bool { return packed(m.queue) })
				with := e.runs[e.runOf(first, 1)].uid
				other := e.first(t, queueKind, func(m message) bool { return packed(m.queue) && e.runs[e.runOf(m, 1)].uid != with })
				e.join(other, first, 1)
			},
			"was given 6 messages, and attempt 1 of queue-a has room for 5", nil,
		},
		"a last attempt that was not alone": {
			func(t *testing.T, e *evidence) {
				last := func(m message) bool { return packed(m.queue) && e.runOf(m, maxAttempts) >= 0 }
				first := e.first(t, streamKind, last)
				e.join(e.first(t, streamKind, func(m message) bool { return last(m) && m != first }), first, maxAttempts)
			},
			"was given 2 messages, and attempt 3 of stream-a has room for 1", nil,
		},
		"a pack where there should be none": {
			func(t *testing.T, e *evidence) {
				single := func(m message) bool { return m.queue == queueName(queueKind, 1) && quick(m) }
				first := e.first(t, queueKind, single)
				e.join(e.first(t, queueKind, func(m message) bool { return single(m) && m != first }), first, 1)
			},
			"was given 2 messages, and attempt 1 of queue-b has room for 1", nil,
		},
		"a pack of two queues": {
			func(t *testing.T, e *evidence) {
				e.join(e.first(t, queueKind, func(m message) bool { return packed(m.queue) && quick(m) }),
					e.first(t, streamKind, func(m message) bool { return packed(m.queue) && quick(m) }), 1)
			},
			"of queue-a and stream-a-", nil,
		},
		"an attempt that is not the Job's": {
			func(t *testing.T, e *evidence) { e.runs[e.runOf(e.first(t, queueKind, quick), 1)].attempt = 2 },
			"as attempt 2", nil,
		},
		"an attempt without the one before": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, func(m message) bool { return m.fails == 1 })
				e.runs = slices.Delete(e.runs, e.runOf(m, 1), e.runOf(m, 1)+1)
			},
			"never ran, but attempt 2 did", nil,
		},
		"a Job for nothing": {
			func(_ *testing.T, e *evidence) {
				e.runs = append(e.runs, taskRun{id: "stranger", attempt: 1, job: "a-1"})
			},
			`"stranger", which was never sent`, nil,
		},
		"a message missing from its poison queue": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, queueKind, message.poisoned).queue
				e.poison[queue] = e.poison[queue][1:]
			},
			"missing from the poison queue", func(v *verdict) int { return v.lost },
		},
		"a good message in the poison queue": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, quick)
				e.poison[m.queue] = append(e.poison[m.queue], poison{body: m.payload()})
			},
			"holds what does not belong there", nil,
		},
		"a good message in the poison queue whose pack failed": {
			func(t *testing.T, e *evidence) {
				m, _ := e.inPack(t, true)
				e.poison[m.queue] = append(e.poison[m.queue], poison{body: m.payload()})
			},
			"holds what does not belong there", nil,
		},
		"a message in the poison queue of another": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, message.poisoned)
				e.poison[streamKind+"-a"] = append(e.poison[streamKind+"-a"], poison{body: m.payload()})
			},
			"holds what does not belong there", nil,
		},
		"a changed body in the poison queue": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, streamKind, message.poisoned).queue
				e.poison[queue][0].body += " "
			},
			"holds what does not belong there", func(v *verdict) int { return v.lost },
		},
		"a second copy in the poison queue of a stream": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, streamKind, message.poisoned).queue
				e.poison[queue] = append(e.poison[queue], e.poison[queue][0])
			},
			"twice", func(v *verdict) int { return v.poisonTwin },
		},
		"a second copy in the poison queue of a queue": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, queueKind, message.poisoned).queue
				e.poison[queue] = append(e.poison[queue], e.poison[queue][0])
			},
			"", func(v *verdict) int { return v.poisonTwin },
		},
		"a second copy in the poison queue of an event hub": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, eventKind, message.poisoned).queue
				e.poison[queue] = append(e.poison[queue], e.poison[queue][0])
			},
			"", func(v *verdict) int { return v.eventTwin },
		},
		"a poisoned event that is said to be another": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, eventKind, message.poisoned).queue
				e.poison[queue][0].message = e.poison[queue][1].message
			},
			"is said to be message", nil,
		},
		"an event that never ran": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, eventKind, quick)
				e.runs = slices.DeleteFunc(e.runs, func(r taskRun) bool { return r.id == m.id })
			},
			"is lost: it never ran", func(v *verdict) int { return v.lost },
		},
		"an event that ran as another": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, eventKind, quick)
				e.runs[e.runOf(m, 1)].message += "0"
			},
			"attempt 1 of event-", nil,
		},
		"a message that has another name at its second attempt": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, streamKind, func(m message) bool { return m.fails == 1 })
				e.runs[e.runOf(m, 2)].message = "another"
			},
			"ran for message another, not name-of-stream-", nil,
		},
		"an event that is not in its event hub": {
			func(t *testing.T, e *evidence) { delete(e.eventIDs, e.first(t, eventKind, quick).id) }, "is not in its event hub", nil,
		},
		"a checkpoint before the last event": {
			func(_ *testing.T, e *evidence) { e.ends[3].checkpoint-- }, "the checkpoint of partition 3 of event-a is at ",
			func(v *verdict) int { return hubCount*partitionCount - v.passed },
		},
		"a checkpoint beyond the last event": {
			func(_ *testing.T, e *evidence) { e.ends[4].checkpoint++ }, "the checkpoint of partition 0 of event-b is at ", nil,
		},
		"a checkpoint with the offset of another event": {
			func(_ *testing.T, e *evidence) { e.ends[0].offset = "another" }, "has the offset \"another\", and the last event \"the last\"", nil,
		},
		"wrong attempts on a poisoned message": {
			func(t *testing.T, e *evidence) {
				queue := e.first(t, streamKind, message.poisoned).queue
				e.poison[queue][0].attempts = "2"
			},
			"is said to have had 2 attempts", nil,
		},
		"a message left": {
			func(_ *testing.T, e *evidence) { e.left = map[string]int64{"queue-a": 1} }, "queue-a still holds 1 messages", nil,
		},
		"an unmarked Job": {
			func(_ *testing.T, e *evidence) { e.unsettled = []string{"a-1"} }, "1 Jobs are not marked as settled: a-1", nil,
		},
		"a Job beyond its retention": {
			func(_ *testing.T, e *evidence) { e.overdue = []string{"a-1"} }, "1 Jobs are kept for longer than they should: a-1", nil,
		},
		"a Secret": {
			func(_ *testing.T, e *evidence) { e.secrets = []string{"payload"} }, "1 Secrets are left: payload", nil,
		},
		"a death": {
			func(_ *testing.T, e *evidence) { e.complaints = []string{"lighterman-1 ended unasked"} }, "ended unasked", nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := asPlanned()
			test.spoil(t, e)
			v := judge(e)
			found := slices.ContainsFunc(v.wrong, func(s string) bool { return strings.Contains(s, test.says) })
			if test.says == "" && len(v.wrong) > 0 || test.says != "" && !found {
				t.Errorf("the judge complains of %q, want %q", v.wrong, test.says)
			}
			if test.count != nil && test.count(v) != 1 {
				t.Errorf("the judge counts %d, want 1: %+v", test.count(v), v)
			}
		})
	}
}

func TestRecord(t *testing.T) {
	runs, err := parseRecord("queue-a-00001 1 job-1 uid pod m1\nqueue-a-00001 2 job-2 uid2 pod2 m1\n")
	want := []taskRun{{"queue-a-00001", 1, "job-1", "uid", "pod", "m1"}, {"queue-a-00001", 2, "job-2", "uid2", "pod2", "m1"}}
	if err != nil || !slices.Equal(runs, want) {
		t.Errorf("parseRecord: %v, %v; want %v", runs, err, want)
	}
	for name, text := range map[string]string{
		"a line that was cut off": "queue-a-00001 1 job-1 uid pod m1\nqueue-a-00002 1 job",
		"no end of line":          "queue-a-00001 1 job-1 uid pod m1",
		"two lines in one":        "queue-a-00001 1 jobqueue-a-00002 1 job-1 uid pod m2 uid pod m1\n",
		"no number":               "queue-a-00001 one job-1 uid pod m1\n",
	} {
		if runs, err := parseRecord(text); err == nil {
			t.Errorf("%s is read as %v", name, runs)
		}
	}
}

func TestPlanDependsOnTheSeedAlone(t *testing.T) {
	if !slices.Equal(plan(7, queueKind, 500), plan(7, queueKind, 500)) {
		t.Error("one seed makes two plans")
	}
	if slices.Equal(plan(7, queueKind, 500), plan(8, queueKind, 500)) {
		t.Error("two seeds make one plan")
	}
	kinds := make(map[string]int)
	for _, m := range plan(7, queueKind, 500) {
		if m.fails > 0 && !m.crash {
			kinds["named"]++
		}
		if m.fails > 0 && !m.crash && !packed(m.queue) {
			t.Errorf("%s is to be named as failed, and is in no pack", m.id)
		}
		switch {
		case m.poisoned():
			kinds["poisoned"]++
		case m.fails > 0:
			kinds["failing"]++
		case m.sleep > 0:
			kinds["long"]++
		}
	}
	if len(kinds) != 4 {
		t.Errorf("the plan of 500 has %v; some poisoned, failing, named and long ones are wanted", kinds)
	}
}

func TestPlanOfEvents(t *testing.T) {
	partitions := make(map[string]int)
	for _, m := range plan(7, eventKind, 500) {
		partitions[fmt.Sprint(m.queue, "/", m.partition)]++
	}
	if len(partitions) != hubCount*partitionCount {
		t.Errorf("the plan of 500 has events for %v, want all %d partitions of %d event hubs", partitions, partitionCount, hubCount)
	}
}

func TestShares(t *testing.T) {
	for all := range 10 {
		sum := 0
		for _, kind := range kinds {
			n := share(kind, all)
			if n < all/3 || n > (all+2)/3 {
				t.Errorf("of %d messages, %d are given to %s", all, n, kind)
			}
			sum += n
		}
		if sum != all {
			t.Errorf("of %d messages, %d are given to someone", all, sum)
		}
	}
}

func TestReadEnvelope(t *testing.T) {
	p, err := readEnvelope(`{"eventHub":"event-a","partition":"3","sequenceNumber":7,"enqueuedAt":"1970-01-01T00:00:01.5Z","attempts":3,"job":"a-3","body":"Übung"}`)
	want := poison{body: "Übung", attempts: "3", job: "a-3", message: "3/7/1500"}
	if err != nil || p != want {
		t.Errorf("readEnvelope: %+v, %v; want %+v", p, err, want)
	}
	if p, err := readEnvelope("no envelope"); err == nil {
		t.Errorf("what is no envelope is read as %+v", p)
	}
}
