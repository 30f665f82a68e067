package main

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Messages are sent in their order and each once, no more than are allowed, and never so many that too many are unsettled.
func TestFeeder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		messages := plan(1, queueKind, 2000)
		var sent []message
		settled, deepest := 0, 0
		f := &feeder{messages: messages, settled: func() int { return settled }}
		f.send = func(_ context.Context, some []message) error {
			sent = append(sent, some...)
			deepest = max(deepest, len(sent)-settled)
			return nil
		}
		forAMinute := func() {
			for range int(time.Minute / feedPause) {
				time.Sleep(feedPause)
				if err := f.sendSome(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		f.allow(0.1)
		forAMinute()
		if len(sent) != 200 {
			t.Errorf("%d messages are sent, 200 are allowed", len(sent))
		}
		settled = 200
		forAMinute()
		if got, want := len(sent), 200+few; got != want {
			t.Errorf("%d messages are sent when all before are settled, want %d: as many more as keep the lanes busy", got, want)
		}
		f.allow(1)
		for len(sent) < len(messages) {
			forAMinute()
			settled = len(sent)
		}
		if deepest != maxDepth {
			t.Errorf("%d messages were unsettled at once, want %d", deepest, maxDepth)
		}
		if !slices.Equal(sent, messages) {
			t.Error("what is sent is not what was planned")
		}
	})
}
