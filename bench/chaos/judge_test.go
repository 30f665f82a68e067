package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// asPlanned is the evidence of a run in which all went well.
func asPlanned() *evidence {
	e := &evidence{sent: append(plan(1, queueKind, 200), plan(1, streamKind, 200)...), poison: make(map[string][]poison)}
	for _, m := range e.sent {
		for attempt := 1; attempt <= m.attempts(); attempt++ {
			job := fmt.Sprintf("%s-%d", m.id, attempt)
			e.runs = append(e.runs, taskRun{id: m.id, attempt: attempt, job: job, uid: "uid of " + job, pod: job + "-x"})
		}
		if m.poisoned() {
			p := poison{body: m.payload()}
			if strings.HasPrefix(m.queue, streamKind) {
				p.attempts, p.job = fmt.Sprint(maxAttempts), fmt.Sprintf("%s-%d", m.id, maxAttempts)
			}
			e.poison[m.queue] = append(e.poison[m.queue], p)
		}
	}
	return e
}

// first finds a message of a kind of source.
func (e *evidence) first(t *testing.T, kind string, wanted func(message) bool) message {
	t.Helper()
	for _, m := range e.sent {
		if strings.HasPrefix(m.queue, kind) && wanted(m) {
			return m
		}
	}
	t.Fatal("the plan has no such message")
	return message{}
}

func quick(m message) bool { return m.fails == 0 && m.sleep == 0 }

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
	if v.attempts != len(e.runs) || v.poisoned == 0 || v.lost+v.doubled+v.twins+v.poisonTwin > 0 {
		t.Errorf("the counts are %+v for %d runs", v, len(e.runs))
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
				again := e.runs[e.runOf(e.first(t, streamKind, quick), 1)]
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
				again := e.runs[e.runOf(e.first(t, queueKind, quick), 1)]
				again.attempt, again.uid = 2, "another uid"
				e.runs = append(e.runs, again)
			},
			"took 2 attempts, not 1", nil,
		},
		"one attempt too few": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, func(m message) bool { return m.fails == 1 })
				e.runs = slices.Delete(e.runs, e.runOf(m, 2), e.runOf(m, 2)+1)
			},
			"took 1 attempts, not 2", nil,
		},
		"an attempt without the one before": {
			func(t *testing.T, e *evidence) {
				m := e.first(t, queueKind, func(m message) bool { return m.fails == 1 })
				e.runs = slices.Delete(e.runs, e.runOf(m, 1), e.runOf(m, 1)+1)
			},
			"never ran, but attempt 2 did", nil,
		},
		"a Job for nothing": {
			func(_ *testing.T, e *evidence) { e.runs = append(e.runs, taskRun{id: "stranger", attempt: 1}) },
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
	runs, err := parseRecord("queue-a-00001 1 job-1 uid pod\nqueue-a-00001 2 job-2 uid2 pod2\n")
	want := []taskRun{{"queue-a-00001", 1, "job-1", "uid", "pod"}, {"queue-a-00001", 2, "job-2", "uid2", "pod2"}}
	if err != nil || !slices.Equal(runs, want) {
		t.Errorf("parseRecord: %v, %v; want %v", runs, err, want)
	}
	for name, text := range map[string]string{
		"a line that was cut off": "queue-a-00001 1 job-1 uid pod\nqueue-a-00002 1 job",
		"no end of line":          "queue-a-00001 1 job-1 uid pod",
		"two lines in one":        "queue-a-00001 1 jobqueue-a-00002 1 job-1 uid pod uid pod\n",
		"no number":               "queue-a-00001 one job-1 uid pod\n",
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
		switch {
		case m.poisoned():
			kinds["poisoned"]++
		case m.fails > 0:
			kinds["failing"]++
		case m.sleep > 0:
			kinds["long"]++
		}
	}
	if len(kinds) != 3 {
		t.Errorf("the plan of 500 has %v; some poisoned, failing and long ones are wanted", kinds)
	}
}
