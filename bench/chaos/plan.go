package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	maxAttempts = 3
	// always is more failures than there are attempts.
	always = 99

	leaseDuration = 12 * time.Second
	lockDuration  = 8 * time.Second
)

// queueCount is how many queues there are, and how many streams.
const queueCount = 3

// A message is one task, and what is to become of it.
type message struct {
	id    string
	queue string // name of the queue or stream
	fails int    // how many attempts fail
	sleep int    // seconds
}

// payload is what is sent: what the task does in its first words, and after them what must arrive unchanged.
func (m message) payload() string {
	return fmt.Sprintf(`%s %d %d "$(HOSTNAME) $$ %%s \n * Übung"`, m.id, m.fails, m.sleep)
}

// attempts is how many Jobs the message takes.
func (m message) attempts() int { return min(m.fails+1, maxAttempts) }

// poisoned says whether the message ends in the poison queue.
func (m message) poisoned() bool { return m.fails >= maxAttempts }

// plan makes the messages of one kind of source, evenly over its queues: most are quick and succeed, some fail once or
// twice, some always, and some run for longer than a lease lasts.
func plan(seed uint64, kind string, count int) []message {
	random := random(seed, kind)
	messages := make([]message, count)
	for i := range messages {
		m := &messages[i]
		m.queue = queueName(kind, i%queueCount)
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
