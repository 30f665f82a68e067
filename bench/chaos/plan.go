package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
)

const (
	maxAttempts = 3
	// always is more failures than there are attempts.
	always = 99

	leaseDuration = 12 * time.Second
	lockDuration  = 8 * time.Second
)

const (
	queueCount     = 3 // queues, and as many streams
	hubCount       = 2 // event hubs
	partitionCount = 4 // of each event hub
)

// countOf is how many queues, streams or event hubs there are.
func countOf(kind string) int {
	if kind == eventKind {
		return hubCount
	}
	return queueCount
}

// special is what the templates of some queues, streams and event hubs say beyond what all say: the first of each kind uses packs, the second another
// way for the payload, but for event hubs, and the others are as most are.
var special = map[string]map[string]string{
	queueName(queueKind, 0):  {annotation.KeyTasksPerJob: fmt.Sprint(packSizes[0]), annotation.KeyBatchWait: "1s"},
	queueName(queueKind, 1):  {annotation.KeyPayload: "secret"},
	queueName(streamKind, 0): {annotation.KeyTasksPerJob: fmt.Sprint(packSizes[0]), annotation.KeyBatchWait: "1s"},
	queueName(streamKind, 1): {annotation.KeyPayload: "file"},
	queueName(eventKind, 0):  {annotation.KeyTasksPerJob: fmt.Sprint(packSizes[0]), annotation.KeyBatchWait: "1s"},
}

// packSizes is how many messages a pack has at most, by attempt (see docs/payload.md).
var packSizes = [maxAttempts]int{5, 3, 1}

// packed says whether the Jobs of a queue, stream or event hub are given packs.
func packed(queue string) bool { return special[queue][annotation.KeyTasksPerJob] != "" }

// A message is one task, and what is to become of it.
type message struct {
	id        string
	queue     string // name of the queue, stream or event hub
	partition int    // of an event hub
	fails     int    // how many attempts fail
	crash     bool   // an attempt fails by a failing Job, and so with all that are in the same pack; else the task names it
	sleep     int    // seconds
}

// share is how many of all messages a kind of source is given.
func share(kind string, all int) int {
	switch kind {
	case queueKind:
		return (all + 2) / 3
	case streamKind:
		return (all + 1) / 3
	}
	return all / 3
}

// payload is what is sent: what the task does in its first words, and after them what must arrive unchanged.
func (m message) payload() string {
	how := "tell"
	if m.crash {
		how = "crash"
	}
	return fmt.Sprintf(`%s %d %s %d "$(HOSTNAME) $$ %%s \n * Übung"`, m.id, m.fails, how, m.sleep)
}

// failsAt says whether an attempt fails by the message itself, whatever it is packed with.
func (m message) failsAt(attempt int) bool { return attempt <= m.fails }

// poisoned says whether the message ends in the poison queue.
func (m message) poisoned() bool { return m.fails >= maxAttempts }

// plan makes the messages of one kind of source, evenly over its queues: most are quick and succeed, some fail once or
// twice, some always, and some run for longer than a lease lasts. Of those that fail in packs, half make the whole pack fail.
func plan(seed uint64, kind string, count int) []message {
	random := random(seed, kind)
	messages := make([]message, count)
	for i := range messages {
		m := &messages[i]
		m.queue = queueName(kind, i%countOf(kind))
		if kind == eventKind {
			m.partition = random.IntN(partitionCount)
		}
		m.id = fmt.Sprintf("%s-%05d", m.queue, i)
		switch p := random.IntN(100); {
		case p < 3:
			m.fails = always
		case p < 7:
			m.fails = 1
		case p < 8:
			m.fails = 2
		case p < 11:
			m.sleep = int(leaseDuration/time.Second) + 3 + random.IntN(6)
		}
		m.crash = m.fails > 0 && (!packed(m.queue) || random.IntN(2) == 0)
	}
	return messages
}

func queueName(kind string, i int) string { return fmt.Sprintf("%s-%c", kind, 'a'+i) }

// random is a source of numbers that depends on the seed and on what it is for, and on nothing else.
func random(seed uint64, purpose string) *rand.Rand {
	var mixed uint64 = 14695981039346656037 // FNV-1a
	for _, b := range []byte(purpose) {
		mixed = (mixed ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, mixed)) //nolint:gosec // a test that can be repeated, no secret
}

// dice are thrown by several goroutines.
type dice struct {
	mu     sync.Mutex
	random *rand.Rand // guarded by mu
}

func newDice(seed uint64, purpose string) *dice { return &dice{random: random(seed, purpose)} }

// chance is true so many times of a hundred.
func (d *dice) chance(percent int) bool { return d.below(100) < percent }

func (d *dice) below(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.random.IntN(n)
}

// between is a time from one to the other.
func (d *dice) between(from, to time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return from + time.Duration(d.random.Int64N(int64(to-from)))
}
