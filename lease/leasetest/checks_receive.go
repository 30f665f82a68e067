package leasetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
)

func checkIdentity(t T, h Harness) {
	q, other := h.NewQueue(t), h.NewQueue(t)
	a, b := q.Source(t, h.Lease), q.Source(t, 2*h.Lease)
	if a.Identity() == "" || a.Identity() != b.Identity() {
		t.Errorf("two sources on one queue: Identity() = %q and %q, want the same", a.Identity(), b.Identity())
	}
	if c := other.Source(t, h.Lease); c.Identity() == a.Identity() {
		t.Errorf("two queues: both have Identity() = %q", c.Identity())
	}
	if err := a.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	before := a.Identity()
	q.Send(t, "x")
	succeed(t, "Complete", a.Complete(t.Context(), receive(t, a, 1, patience)))
	if a.Identity() != before {
		t.Errorf("Identity() = %q after use, %q before", a.Identity(), before)
	}
}

func checkMissingQueue(t T, h Harness) {
	s := h.Missing(t)
	if s.Traits().CreatesMissing {
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("Check: %v, want the queue to be made", err)
		}
		nothing(t, s, h.Lease/4)
		gone(t, s)
		return
	}
	_, receiveErr := s.Receive(t.Context(), 1)
	_, backlogErr := s.Backlog(t.Context())
	for what, err := range map[string]error{"Check": s.Check(t.Context()), "Receive": receiveErr, "Backlog": backlogErr} {
		if !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("%s of a queue that does not exist: %v, want lease.ErrNotFound", what, err)
		}
	}
}

func checkWrongCredentials(t T, h Harness) {
	s, secret := h.WrongCredentials(t)
	_, receiveErr := s.Receive(t.Context(), 1)
	_, backlogErr := s.Backlog(t.Context())
	for what, err := range map[string]error{"Check": s.Check(t.Context()), "Receive": receiveErr, "Backlog": backlogErr} {
		if !errors.Is(err, lease.ErrUnauthorized) {
			t.Errorf("%s with wrong credentials: %v, want lease.ErrUnauthorized", what, err)
			continue
		}
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
			t.Errorf("%s tells the secret in its error", what)
		}
	}
	if strings.Contains(s.Identity(), secret) {
		t.Errorf("Identity() tells the secret")
	}
}

func checkEmptyQueue(t T, h Harness) {
	s := h.NewQueue(t).Source(t, h.Lease)
	for range 3 {
		start := time.Now()
		got, err := s.Receive(t.Context(), 10)
		if err != nil || len(got) != 0 {
			t.Fatalf("Receive = %d messages, %v; want none, and no error", len(got), err)
		}
		if took := time.Since(start); took > patience {
			t.Errorf("Receive took %s on an empty queue", took)
		}
	}
	for _, op := range operations() {
		succeed(t, op.name+" of nothing", op.do(t.Context(), s, nil))
	}
	gone(t, s)
}

func checkBatchSize(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 10*h.Lease)
	const sent = 75
	var want []string
	for i := range sent {
		want = append(want, fmt.Sprintf("body %02d", i))
	}
	q.Send(t, want...)
	if got, err := s.Receive(t.Context(), 0); len(got) != 0 || err != nil {
		t.Fatalf("Receive(0) = %d messages, %v; want none, and no error", len(got), err)
	}
	var got []*lease.Lease
	for i, deadline := 0, time.Now().Add(patience); len(got) < sent; i++ {
		limit := []int{1, 7, 33, 40}[i%4]
		batch, err := s.Receive(t.Context(), limit)
		if err != nil {
			t.Fatalf("Receive: %v", err)
		}
		if len(batch) > limit {
			t.Fatalf("Receive(%d) handed out %d messages", limit, len(batch))
		}
		if most := s.Traits().MaxBatch; most > 0 && len(batch) > most {
			t.Fatalf("Receive(%d) handed out %d messages, more than Traits.MaxBatch = %d", limit, len(batch), most)
		}
		got = append(got, batch...)
		if time.Now().After(deadline) {
			t.Fatalf("received %d messages within %s, want %d", len(got), patience, sent)
		}
	}
	for _, l := range got {
		if l.Deliveries != 1 {
			t.Errorf("message %s: Deliveries = %d, want 1", l.ID, l.Deliveries)
		}
		if !l.Valid() {
			t.Errorf("message %s: the lease is not valid", l.ID)
		}
	}
	texts := bodies(got)
	if slices.Sort(texts); !slices.Equal(texts, want) {
		t.Errorf("received %d messages, but not each that was sent, once", len(texts))
	}
	succeed(t, "Complete", s.Complete(t.Context(), got))
	gone(t, s)
}

// awkwardBodies are what queues, XML, JSON and shells have been seen to break.
func awkwardBodies(h Harness) []string {
	list := []string{
		"plain",
		"",
		" leading and trailing ",
		"\n",
		"\r\n and \r",
		"two\nlines\nand a tab\t.",
		`{"quotes": "\"", "backslash": "\\", "apostrophe": "'"}`,
		"<xml attr=\"&amp;\">&#65; ]]> <![CDATA[x]]></xml>",
		"$(SECRET) $$(SECRET) ${SECRET} `id` %PATH%",
		"äöü ßÆ 漢字 עברית 🚢 e\u0301",
		"\u2028\u2029\ufeff",
		"Zm9v", // base64
		strings.Repeat("0123456789abcde\n", 3*1024),
	}
	if h.Binary {
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		list = append(list, string(every), "\x00", "a\r\nb\r", strings.Repeat("\xff", 200*1024))
	}
	if h.MaxBody > 0 {
		list = append(list, strings.Repeat("x", h.MaxBody))
	}
	return list
}

func checkBodyRoundTrip(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 10*h.Lease)
	for _, body := range awkwardBodies(h) {
		q.Send(t, body)
		l := receive(t, s, 1, patience)[0]
		if l.Unreadable != nil {
			t.Errorf("%s: %v", brief(body), l.Unreadable)
		} else if !bytes.Equal(l.Body, []byte(body)) {
			t.Errorf("sent %s, received %s", brief(body), brief(string(l.Body)))
		}
		// Once more by the way of redelivery, which can be another one in the source.
		succeed(t, "Requeue", s.Requeue(t.Context(), returns([]*lease.Lease{l})))
		l = receive(t, s, 1, patience)[0]
		if !bytes.Equal(l.Body, []byte(body)) {
			t.Errorf("sent %s, received %s after Requeue", brief(body), brief(string(l.Body)))
		}
		succeed(t, "Complete", s.Complete(t.Context(), []*lease.Lease{l}))
	}
}

func checkUnreadable(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 10*h.Lease)
	q.Send(t, "before")
	q.SendUnreadable(t)
	q.Send(t, "after")
	var bad *lease.Lease
	var good []*lease.Lease
	for _, l := range receive(t, s, 3, patience) {
		if l.Unreadable == nil {
			good = append(good, l)
			continue
		}
		bad = l
	}
	if bad == nil || len(good) != 2 {
		t.Fatalf("%d of 3 messages are readable, want 2", len(good))
	}
	if !errors.Is(bad.Unreadable, lease.ErrUnreadable) || bad.Body != nil {
		t.Errorf("Unreadable = %v with a body of %d bytes; want lease.ErrUnreadable and none", bad.Unreadable, len(bad.Body))
	}
	succeed(t, "Extend", s.Extend(t.Context(), []*lease.Lease{bad}))
	succeed(t, "Poison", s.Poison(t.Context(), poisons([]*lease.Lease{bad})))
	succeed(t, "Complete", s.Complete(t.Context(), good))
	if got := len(q.Poisoned(t)); got != 1 {
		t.Errorf("the poison queue holds %d messages, want 1", got)
	}
	gone(t, s)
}

func checkCancellation(t T, h Harness) {
	q := h.NewQueue(t)
	s := q.Source(t, 20*h.Lease)

	// On an empty queue, where a source may wait.
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	for ctx.Err() == nil {
		if got, err := s.Receive(ctx, 10); len(got) > 0 || (err != nil && ctx.Err() == nil) {
			t.Fatalf("Receive = %d messages, %v", len(got), err)
		}
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Receive returned %s after its context ended, want at once or nearly so", took)
	}
	if got, err := s.Receive(ctx, 10); len(got) > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("Receive with an ended context = %d messages, %v; want context.Canceled", len(got), err)
	}

	// Cancelled at any moment, with messages coming in: what was leased by then must be handed out, or the message is
	// nobody's until its lease expires, which is long after this check has given up.
	var want []string
	var got []*lease.Lease
	for i := range 40 {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Duration(i)*250*time.Microsecond, cancel)
		body := fmt.Sprintf("body %02d", i)
		want = append(want, body)
		q.Send(t, body)
		batch, err := s.Receive(ctx, 10)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("Receive: %v, want a result or context.Canceled", err)
		}
		got = append(got, batch...)
		cancel()
	}
	if rest := len(want) - len(got); rest > 0 {
		got = append(got, receive(t, s, rest, min(patience, 10*h.Lease))...)
	}
	texts := bodies(got)
	if slices.Sort(texts); !slices.Equal(texts, want) {
		t.Errorf("received %d messages, but not each that was sent, once", len(texts))
	}
}
