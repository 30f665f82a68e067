package dispatcher

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// simulation is the world of one seed, while it runs.
type simulation struct {
	*plan
	t      *testing.T
	api    *apiServer
	begun  time.Time
	client *harness // creates objects as a person does

	// mu is held while anything takes effect, so that the oracle sees one effect after another.
	mu         sync.Mutex
	lines      []line
	times      map[string]int // how often something has come up, for the dice
	queues     []*simQueue
	jobs       map[string]*simJob // by name
	processes  []*simProcess      // by number, the present ones
	all        []*simProcess      // that ever were
	steps      map[string]int     // requests so far, by process number and kind
	created    int                // Jobs
	calls      int                // requests of all kinds
	frozen     bool               // nobody is answered any more
	over       chan struct{}      // closed when everybody was told to stop
	healed     bool               // nothing goes wrong any more
	closed     bool               // the actors rest
	hidden     object             // the Secret, while it is gone
	violations []violation
}

// simQueue is a template's source.
type simQueue struct {
	*templatePlan
	number   int
	memory   *leasetest.Memory      // nil where it is a log
	log      *simLog                // nil where it is a queue
	messages map[string]*simMessage // by id
	sent     int                    // how many of the planned
	broken   map[string]int         // the person's mistakes that last, by what they are
	refused  int                    // Jobs refused by the quota since it was too small

	mostInFlight int           // by any edit of the template
	leastLease   time.Duration // likewise
}

// tooLong is how long one seed may take in real time; it takes a tenth of a second.
const tooLong = 2 * time.Minute

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, seed uint64) (w *simulation) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil { // synctest's way to say that goroutines are left
			w.violate(8, nil, "%v\n%s", r, leftBehind())
		}
	}()
	watchdog := time.AfterFunc(tooLong, func() { // in real time: a loop that no request goes through keeps the virtual one from passing
		w.mu.Lock()
		defer w.mu.Unlock()
		w.violate(8, nil, "it takes more than %v of real time", tooLong)
		fmt.Print(w.report(seed))
		fmt.Println("the simulation hangs, and ends here")
		os.Exit(1)
	})
	defer watchdog.Stop()
	seedRuntime(seed)
	synctest.Test(t, func(t *testing.T) {
		w = newSimulation(t, newPlan(seed))
		w.run()
	})
	return w
}

// leftBehind is the stacks of the goroutines that have not ended with their bubble.
func leftBehind() string {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	var left []string
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "synctest bubble") {
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}

func newSimulation(t *testing.T, p *plan) *simulation {
	t.Helper()
	w := &simulation{
		plan: p, t: t, api: newAPIServer(), begun: time.Now(),
		over: make(chan struct{}), times: map[string]int{}, jobs: map[string]*simJob{}, steps: map[string]int{},
		processes: make([]*simProcess, p.replicas),
	}
	w.api.skew, w.api.fenced = p.skew, p.fenced
	w.client = &harness{t: t, api: w.api}
	w.client.admin = (&connection{server: w.api}).client(t)
	w.client.create(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "queue"},
		Data:       map[string][]byte{"connection": []byte("good")},
	})
	for i, tp := range p.templates {
		q := &simQueue{
			templatePlan: tp, number: i, messages: map[string]*simMessage{}, broken: map[string]int{},
			mostInFlight: tp.maxInFlight, leastLease: tp.lease,
		}
		if tp.partitions > 0 {
			q.log = newSimLog(tp)
		} else {
			q.memory = leasetest.NewMemory(leasetest.MemoryConfig{Name: tp.name, Traits: lease.Traits{Waits: tp.waits}, Wait: 5 * time.Second})
		}
		w.queues = append(w.queues, q)
		c := cronJob(tp.name, tp.annotations()...)
		pod := &c.Spec.JobTemplate.Spec.Template.Spec
		pod.InitContainers, pod.Containers = nil, pod.Containers[:1]
		if tp.ttl > 0 {
			ttl := int32(tp.ttl)
			c.Spec.JobTemplate.Spec.TTLSecondsAfterFinished = &ttl
		}
		w.client.create(c)
	}
	return w
}

// run is the life of the world: what was planned happens, all is healed, and the world must come to rest.
func (w *simulation) run() {
	for i := range w.processes {
		w.start(i)
	}
	for _, q := range w.queues {
		for i, m := range q.sends {
			w.after(m.at, func() { w.send(q, i) })
		}
	}
	for _, m := range w.mistakes {
		w.after(m.from, func() { w.mistake(m, true) })
		w.after(m.to, func() { w.mistake(m, false) })
	}
	for _, c := range w.cuts {
		w.after(c.from, func() { w.cut(c, true) })
		w.after(c.to, func() { w.cut(c, false) })
	}
	for _, s := range w.stalls {
		w.after(s.from, func() { w.stall(s, true) })
		w.after(s.to, func() { w.stall(s, false) })
	}
	w.sleep(w.length, func() bool { return w.violated() })
	w.heal()
	w.sleep(restWithin, func() bool { return w.violated() || w.unrest() == "" })
	w.sleep(2*time.Second, w.violated)
	if !w.violated() {
		w.checkRest()
	}
	w.wind()
}

// restWithin is how long the world may take to come to rest. A message whose Job could not be created for a while may be put off for ten
// minutes.
const restWithin = 15 * time.Minute

// sleep lets time pass until enough says so, at most for d.
func (w *simulation) sleep(d time.Duration, enough func() bool) {
	for until := time.Now().Add(d); time.Now().Before(until) && !enough(); {
		time.Sleep(min(time.Until(until), time.Second))
		synctest.Wait()
	}
}

func (w *simulation) violated() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violations) > 0
}

// after has something happen in a while, unless the world has come to its end by then.
func (w *simulation) after(d time.Duration, act func()) {
	time.AfterFunc(d, func() {
		w.mu.Lock()
		closed := w.closed
		w.mu.Unlock()
		if !closed {
			act()
		}
	})
}

// send puts a planned message into its queue.
func (w *simulation) send(q *simQueue, i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &simMessage{plan: &q.sends[i], queue: q, sentAt: time.Now(), attempts: map[int]*simAttempt{}}
	if q.log != nil {
		m.id = q.log.send(i, m.plan.body)
	} else {
		m.id = q.memory.Send(m.plan.body)[0]
	}
	m.name = q.name + "/" + m.id
	q.messages[m.id] = m
	q.sent++
	w.note("producer", "send", m.name, "failures: "+strconv.Itoa(m.plan.failures))
}

// heal ends all that goes wrong.
func (w *simulation) heal() {
	w.mu.Lock()
	w.healed = true
	w.note("world", "heal", "", "")
	w.mu.Unlock()
	for _, q := range w.queues {
		for _, what := range slices.Sorted(maps.Keys(q.broken)) {
			w.mend(q, what)
		}
	}
	for _, c := range w.cuts {
		w.cut(c, false)
	}
	for i, p := range w.processes {
		p.gate.set(func(s *gateState) { s.held = false })
		p.wakeUp()
		if p.gone() {
			w.start(i)
		}
	}
}

// wind stops everybody.
func (w *simulation) wind() {
	for _, p := range w.all {
		p.cancel()
	}
	close(w.over)
	for _, p := range w.all {
		<-p.done
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	if !w.violated() {
		w.checkStopped()
	}
	advance(time.Minute) // for what may linger, such as the sink of Events
}

// unrest says what is not at rest yet.
func (w *simulation) unrest() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range w.queues {
		if n := len(q.sends); q.sent < n || q.left() > 0 {
			return fmt.Sprintf("%d of %d messages of %s have been sent, and %d are left", q.sent, n, q.name, q.left())
		}
	}
	for name, j := range w.jobs {
		switch {
		case j.deleted:
		case !j.finished:
			return "Job " + name + " has not finished"
		case !j.marked:
			return "Job " + name + " is not marked as settled"
		}
	}
	for _, p := range w.processes {
		for _, l := range p.lanes() {
			if busy := l.inHand(); busy != "" {
				return p.actor + ": " + busy
			}
		}
	}
	return ""
}
