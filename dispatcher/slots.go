package dispatcher

import (
	"container/heap"
	"context"
	"sync"
)

// slots is how many tasks this dispatcher takes on at once, over all templates. While there are enough, who asks gets. When
// they are scarce, what becomes free goes to the highest priority that waits, and to the longest waiting among equals.
type slots struct {
	mu      sync.Mutex
	free    int // negative after take, when Jobs of a former leader are more than there are slots
	waiting waiters
	seq     uint64
}

type waiter struct {
	priority int
	seq      uint64
	want     int
	granted  chan int // capacity 1
	index    int      // position in the heap; -1 once granted
}

func newSlots(capacity int) *slots { return &slots{free: capacity} }

// acquire waits until there is at least one slot, and takes as many as there are, at most want.
func (s *slots) acquire(ctx context.Context, want, priority int) (int, error) {
	s.mu.Lock()
	if s.free > 0 && (len(s.waiting) == 0 || s.waiting[0].priority < priority) {
		n := min(want, s.free)
		s.free -= n
		s.mu.Unlock()
		return n, nil
	}
	s.seq++
	w := &waiter{priority: priority, seq: s.seq, want: want, granted: make(chan int, 1)}
	heap.Push(&s.waiting, w)
	s.mu.Unlock()

	select {
	case n := <-w.granted:
		return n, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	if w.index >= 0 {
		heap.Remove(&s.waiting, w.index)
		s.mu.Unlock()
		return 0, context.Cause(ctx)
	}
	s.mu.Unlock()
	s.release(<-w.granted) // granted at the same moment
	return 0, context.Cause(ctx)
}

// take takes n slots, whether or not they are free: the Jobs run already.
func (s *slots) take(n int) {
	s.mu.Lock()
	s.free -= n
	s.mu.Unlock()
}

func (s *slots) release(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free += n
	for s.free > 0 && len(s.waiting) > 0 {
		w := heap.Pop(&s.waiting).(*waiter)
		n := min(w.want, s.free)
		s.free -= n
		w.granted <- n
	}
}

// waiters is a heap of who waits, for container/heap.
type waiters []*waiter

func (w waiters) Len() int { return len(w) }

func (w waiters) Less(i, j int) bool {
	if w[i].priority != w[j].priority {
		return w[i].priority > w[j].priority
	}
	return w[i].seq < w[j].seq
}

func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].index, w[j].index = i, j
}

func (w *waiters) Push(x any) {
	item := x.(*waiter)
	item.index = len(*w)
	*w = append(*w, item)
}

func (w *waiters) Pop() any {
	old := *w
	last := len(old) - 1
	item := old[last]
	old[last] = nil
	*w = old[:last]
	item.index = -1
	return item
}
