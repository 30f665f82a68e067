package dispatcher

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// A process that is started at once in the place of one that crashed must wait for LeaseDuration from its own start before it can take the lock,
// and so must not be the one that is to take it: those who have watched the lock all along can sooner.
func TestNewcomerIsNotGivenTheShardOfTheDead(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	cfg := &LockConfig{Name: "lock", Identity: "old", Shards: 2, LeaseDuration: 10 * time.Second}
	m := newMembers(cfg, slog.New(slog.DiscardHandler))
	lock := func(shard int, holder string) coordinationv1.Lease {
		return coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: cfg.lockName(shard)}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}
	}
	member := func(identity string, since, renewed time.Time) coordinationv1.Lease {
		return coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "lock-member-" + identity, Labels: map[string]string{labelMember: "true"}},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: &identity, AcquireTime: &metav1.MicroTime{Time: since}, RenewTime: &metav1.MicroTime{Time: renewed},
			},
		}
	}
	locks := []coordinationv1.Lease{lock(0, "old"), lock(1, "dead")}
	crash := start.Add(time.Minute)
	m.take(append(locks, member("old", start, crash), member("dead", start, crash)), crash)
	// The dead one's replacement has started a second later.
	joined := crash.Add(time.Second)
	expired := crash.Add(cfg.LeaseDuration)
	m.take(append(locks, member("old", start, expired), member("dead", start, crash), member("new", joined, expired)), expired)
	if !m.mayTake(1) {
		t.Error("the dead process's shard is left to the newcomer")
	}
	// Once it has been there for as long, it gets its share.
	later := joined.Add(cfg.LeaseDuration)
	locks[1] = lock(1, "old")
	m.take(append(locks, member("old", start, later), member("new", joined, later)), later)
	if m.mayTake(1) {
		t.Error("the newcomer gets no share")
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
