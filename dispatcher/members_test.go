package dispatcher

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAssign(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		members, holders, want []string
	}{
		"one takes all":                       {[]string{"a"}, []string{"", "", ""}, []string{"a", "a", "a"}},
		"nobody holds any":                    {[]string{"b", "a"}, []string{"", "", "", ""}, []string{"a", "a", "b", "b"}},
		"what is held stays":                  {[]string{"a", "b"}, []string{"b", "a", "b", "a"}, []string{"b", "a", "b", "a"}},
		"who joins is given some":             {[]string{"a", "b"}, []string{"a", "a", "a", "a"}, []string{"a", "a", "b", "b"}},
		"who joins takes from who has most":   {[]string{"a", "b", "c"}, []string{"a", "b", "b", "b"}, []string{"a", "b", "b", "c"}},
		"what the dead held goes to the rest": {[]string{"a", "b"}, []string{"a", "c", "b", "c"}, []string{"a", "a", "b", "b"}},
		"an odd one stays where it is":        {[]string{"a", "b"}, []string{"b", "b", "a"}, []string{"b", "b", "a"}},
		"more members than shards":            {[]string{"a", "b", "c"}, []string{"", "c"}, []string{"a", "c"}},
		"a member twice":                      {[]string{"a", "b", "a"}, []string{"", ""}, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, assign(c.members, c.holders)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestAssignIsFair: every shard is with a member, shares differ by one at most, and nobody who holds no more than a fair share gives any up.
func TestAssignIsFair(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		var members, holders []string
		for i := range 1 + random.IntN(20) {
			members = append(members, fmt.Sprint(i))
		}
		before, after := map[string]int{}, map[string]int{}
		for range 1 + random.IntN(64) {
			h := fmt.Sprint(random.IntN(25)) // some are no members
			holders = append(holders, h)
			before[h]++
		}
		got := assign(members, holders)
		for _, member := range got {
			after[member]++
		}
		low, high := len(holders)/len(members), (len(holders)+len(members)-1)/len(members)
		for _, member := range members {
			if n := after[member]; n < low || n > high {
				t.Errorf("%s has %d of %d shards, want %d to %d", member, n, len(holders), low, high)
			}
			if before[member] <= low && after[member] < before[member] {
				t.Errorf("%s has to give up shards although it holds %d", member, before[member])
			}
			delete(after, member)
		}
		if len(after) > 0 {
			t.Errorf("shards are with %v, who are no members", after)
		}
		for shard, h := range holders {
			if before[h] <= low && slices.Contains(members, h) && got[shard] != h {
				t.Errorf("shard %d moves from %s to %s", shard, h, got[shard])
			}
		}
		if t.Failed() {
			t.Fatalf("members %v, holders %v", members, holders)
		}
	}
}
