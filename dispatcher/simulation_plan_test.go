package dispatcher

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// plan is all that a seed decides beforehand: the templates and their messages, who is at work, and what goes wrong and when. What goes wrong
// with single requests is decided as they come, from the storms (see fate).
type plan struct {
	chance
	style     string
	replicas  int
	shards    int
	fenced    bool
	skew      time.Duration // of the API server's clock
	lock      time.Duration // the leader lock's duration
	timeout   time.Duration // of one request to the API server, or to a source
	slots     int           // over all templates
	templates []*templatePlan
	storms    []storm
	mishaps   []*mishap
	mistakes  []mistake
	stalls    []stall
	cuts      []cut
	meddling  int           // percent of the Jobs that a person deletes
	length    time.Duration // when all is healed
}

// templatePlan is a template with its queue.
type templatePlan struct {
	name        string
	maxAttempts int
	backoff     [2]time.Duration
	lease       time.Duration
	maxInFlight int
	rate        int // Jobs per second; 0: no limit
	maxPending  int
	start       time.Duration // start-timeout; 0: off
	ttl         int           // the template's own; 0: none
	pack        int           // tasks-per-job
	batchWait   time.Duration // with packs
	payload     string        // how payloads reach the containers
	waits       bool          // the source's Receive waits for a message
	partitions  int           // of a log; 0: the source is a queue
	sends       []messagePlan
	// calm says that nothing goes wrong with the template, its source or the API server, so that its messages must end in time.
	calm bool
}

type messagePlan struct {
	at       time.Duration // when it is sent
	body     string
	failures int  // so many Jobs fail
	bad      bool // no Job can carry it, by way of its template
}

// annotations are those of the template, keys and values in turn.
func (t *templatePlan) annotations() []string {
	a := []string{
		"max-attempts", strconv.Itoa(t.maxAttempts), "retry-backoff", fmt.Sprintf("%v..%v", t.backoff[0], t.backoff[1]),
		"lease-duration", t.lease.String(), "max-in-flight", strconv.Itoa(t.maxInFlight),
	}
	if t.rate > 0 {
		a = append(a, "jobs-per-second", strconv.Itoa(t.rate))
	}
	if t.maxPending > 0 {
		a = append(a, "max-pending", strconv.Itoa(t.maxPending))
	}
	if t.start > 0 {
		a = append(a, "start-timeout", t.start.String())
	}
	if t.pack > 1 {
		a = append(a, "tasks-per-job", strconv.Itoa(t.pack), "batch-wait", t.batchWait.String())
	}
	if t.payload != "auto" {
		a = append(a, "payload", t.payload)
	}
	return a
}

// storm is a time in which requests go wrong.
type storm struct {
	from, to time.Duration
	process  int // by number; -1: all
	api      bool
	source   int // by the template's number; -1: all, -2: none
	percent  int // of the requests
}

// everyone and nothing are numbers that stand for no single process or template.
const (
	everyone = -1
	nothing  = -2
)

// mishap befalls a process at the n-th request of a kind.
type mishap struct {
	process int
	what    string // crash, stop, pause or usurped
	op      string // the kind of request, as in "create jobs"; empty: any
	n       int
	before  bool          // the request has not left yet; else its answer has not arrived
	lasting time.Duration // until the process is there again
	done    bool
}

// mistake is something that a person does to a template, and mends later.
type mistake struct {
	from, to time.Duration
	template int
	what     string // quota, secret, invalid, paused, lease, limit or foreign
}

// cut is what befalls the readers of a log, as when its broker starts anew: all are cut off, or another reader takes a partition for a while.
type cut struct {
	from, to  time.Duration
	template  int
	partition int // everyone: all readers are cut off
}

// stall makes the caches of a process grow stale, and then breaks its watches off.
type stall struct {
	from, to time.Duration
	process  int
	broken   bool
	expired  bool // it must list again
}

// newPlan draws the plan of a seed.
func newPlan(seed uint64) *plan {
	p := &plan{chance: chance(seed)}
	d := p.of("plan")
	p.style = pick(&d, "storms", "storms", "storms", "crashes", "crashes", "zombies", "zombies", "mistakes", "isolation")
	p.replicas = pick(&d, 2, 2, 2, 3)
	p.shards = pick(&d, 1, 1, 1, 1, 2, 4)
	p.fenced = d.percent(50)
	p.lock = time.Duration(pick(&d, 10, 15, 20)) * time.Second
	if p.shards > 1 {
		p.lock *= 2 // looking after the members is half the work of such a seed
	}
	p.timeout = time.Duration(d.from(5, 10)) * time.Second
	p.skew = time.Duration(pick(&d, 0, 0, 5, -5, 30, -30)) * time.Second
	p.slots = pick(&d, 10_000, 10_000, 10_000, d.from(3, 8))
	p.length = d.between(60*time.Second, 150*time.Second)
	if d.percent(30) {
		p.meddling = 4
	}
	n := pick(&d, 1, 1, 2, 2, 3)
	if p.style == "isolation" {
		n, p.meddling, p.slots = max(n, 2), 0, 10_000
	}
	for i := range n {
		p.templates = append(p.templates, p.newTemplate(i))
	}
	p.addLogs()
	switch p.style {
	case "isolation":
		p.isolate(&d)
		return p
	case "mistakes":
		if p.meddling, p.slots = 0, 10_000; d.percent(70) {
			for _, t := range p.templates {
				t.beCalm()
			}
		}
		for range d.from(1, 3) {
			p.addMistake(&d, everyone)
		}
		return p
	case "storms":
		for range d.from(1, 4) {
			p.addStorm(&d)
		}
	}
	if p.style != "storms" && d.percent(60) {
		p.addStorm(&d)
	}
	for range pick(&d, 0, 0, 1, 2) {
		p.addMistake(&d, everyone)
	}
	for range pick(&d, 0, 1, 2, 4) {
		p.addStall(&d)
	}
	for range map[string]int{"storms": d.below(2), "crashes": d.from(1, 4), "zombies": d.from(1, 3)}[p.style] {
		p.addMishap(&d)
	}
	return p
}

func (p *plan) newTemplate(i int) *templatePlan {
	t := &templatePlan{name: "queue-" + strconv.Itoa(i)}
	d := p.of("template", t.name)
	t.maxAttempts = d.from(2, 4)
	t.backoff[0] = time.Duration(d.from(1, 4)) * time.Second
	t.backoff[1] = t.backoff[0] * time.Duration(pick(&d, 1, 2))
	t.lease = time.Duration(d.from(20, 60)) * time.Second
	t.maxInFlight = d.from(2, 10)
	t.rate = pick(&d, 0, 0, 0, d.from(1, 5))
	t.maxPending = pick(&d, 0, 0, 0, 0, d.from(1, 4))
	t.start = pick(&d, 0, 0, 0, 8*time.Second)
	t.ttl = pick(&d, 0, 0, 1, 200)
	t.waits = d.percent(75)
	t.pack, t.payload = 1, pick(&d, "auto", "auto", "env", "env", "secret", "file")
	if d.percent(40) {
		t.pack, t.payload = d.from(2, 6), pick(&d, "auto", "file")
		t.batchWait = pick(&d, 0, time.Second, 3*time.Second)
	}
	for range d.from(3, pick(&d, 6, 12, 25)) {
		m := messagePlan{body: fmt.Sprintf("message %d of $(SECRET) %s", len(t.sends), t.name)}
		if d.percent(70) {
			m.at = d.between(0, 5*time.Second)
		} else {
			m.at = d.between(0, p.length*2/3)
		}
		switch {
		case t.payload == "env" && d.percent(5):
			m.bad, m.body = true, strings.Repeat("\x00", 100_000) // its base64 is too long
		case d.percent(25):
			m.failures = d.from(1, t.maxAttempts-1)
		case d.percent(10):
			m.failures = 1000
		}
		t.sends = append(t.sends, m)
	}
	return t
}

// addLogs makes logs of some sources, with dice of its own: what was drawn before there were logs stays as it was. By the name of the dice, none of
// the seeds that are kept has any.
func (p *plan) addLogs() {
	d := p.of("logs67")
	if !d.percent(30) {
		return
	}
	for i, t := range p.templates {
		if d.percent(40) {
			continue
		}
		t.partitions = d.from(1, 4)
		for range pick(&d, 0, 0, 1, 3) {
			c := cut{from: d.between(0, p.length), template: i, partition: pick(&d, everyone, d.below(t.partitions))}
			c.to = c.from + d.between(0, 20*time.Second)
			if p.style != "isolation" || i == 0 {
				p.cuts = append(p.cuts, c)
			}
		}
	}
}

// beCalm removes what can hold up a template's messages.
func (t *templatePlan) beCalm() {
	t.calm, t.rate, t.maxPending, t.start, t.maxInFlight = true, 0, 0, 0, len(t.sends)
}

// isolate makes the first template's source fail while the others must not notice.
func (p *plan) isolate(d *dice) {
	for _, t := range p.templates[1:] {
		t.beCalm()
	}
	for range d.from(1, 3) {
		from := d.between(0, p.length/2)
		p.storms = append(p.storms, storm{from: from, to: from + d.between(20*time.Second, p.length/2), process: everyone, percent: pick(d, 30, 60, 100)})
	}
	if d.percent(40) {
		p.addMistake(d, 0)
	}
}

func (p *plan) addStorm(d *dice) {
	from := d.between(0, p.length*3/4)
	s := storm{from: from, to: from + d.between(5*time.Second, 40*time.Second), process: everyone, percent: pick(d, 5, 10, 20, 40, 80)}
	if d.percent(40) {
		s.process = d.below(p.replicas)
	}
	s.api, s.source = d.percent(75), nothing
	if !s.api || d.percent(50) {
		s.source = pick(d, everyone, d.below(len(p.templates)))
	}
	p.storms = append(p.storms, s)
}

func (p *plan) addMistake(d *dice, template int) {
	if template == everyone {
		template = d.below(len(p.templates))
	}
	from := d.between(0, p.length/2)
	p.mistakes = append(p.mistakes, mistake{
		from: from, to: from + d.between(5*time.Second, 45*time.Second), template: template,
		what: pick(d, "quota", "quota", "quota", "secret", "invalid", "paused", "lease", "limit", "foreign"),
	})
}

func (p *plan) addStall(d *dice) {
	from := d.between(0, p.length*3/4)
	s := stall{from: from, to: from + d.between(time.Second, 40*time.Second), process: d.below(p.replicas)}
	if d.percent(20) {
		s.to = from
	}
	s.broken = s.to == from || d.percent(40)
	s.expired = s.broken && d.percent(50)
	p.stalls = append(p.stalls, s)
}

// requests are the kinds that a mishap can wait for.
var requests = []string{
	"create jobs", "create jobs", "create jobs", "patch jobs", "update leases", "receive", "receive", "extend", "complete", "complete", "requeue", "poison", "",
}

func (p *plan) addMishap(d *dice) {
	m := &mishap{process: d.below(p.replicas), op: pick(d, requests...), before: d.percent(50)}
	m.what = pick(d, "crash", "crash", "crash", "stop", "pause")
	if p.style == "zombies" {
		m.what = pick(d, "pause", "pause", "usurped", "usurped", "crash")
	}
	switch m.op {
	case "":
		m.n = d.from(1, 300)
	case "poison", "requeue", "extend":
		m.n = d.from(1, 4)
	default:
		m.n = d.from(1, 12)
	}
	m.lasting = d.between(time.Second, 2*time.Second+pick(d, 10*time.Second, p.lock*2, 90*time.Second))
	p.mishaps = append(p.mishaps, m)
}
