package dispatcher

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/ptr"
)

const (
	// labelElection is on the leader locks and on the memberships of the processes that contend for them.
	labelElection = "lighterman.dev/leader-election"
	// labelMember is on memberships only. Its value is not used.
	labelMember = "lighterman.dev/member"
)

// members decides which shards are this process's to take, so that all processes have a fair share. Each tells that it is there by a Lease object of its
// own, its membership, and comes to its decision by itself, from the same objects by the same rule; where two do not see the same for a
// moment, the locks prevail.
//
// With one shard there is nothing to share, and nobody lists or writes anything: all contend for the one lock.
type members struct {
	cfg *LockConfig
	log *slog.Logger
	own string // the name of our membership

	mu      sync.Mutex
	locks   map[string]coordinationv1.Lease // as last listed, by name
	seen    map[string]sighting             // of memberships, by name
	mine    []bool                          // by shard
	changed chan struct{}                   // closed and replaced when mine changes
}

// sighting is a membership and when we first saw it renewed like that: their clock does not count, only ours.
type sighting struct {
	identity string
	renewed  time.Time
	at       time.Time
}

func newMembers(cfg *LockConfig, log *slog.Logger) *members {
	return &members{
		cfg: cfg, log: log, own: cfg.Name + "-member-" + objectName(cfg.Identity),
		seen: make(map[string]sighting), mine: make([]bool, cfg.Shards), changed: make(chan struct{}),
	}
}

// objectName makes a part of an object's name of an identity (RFC 1123).
func objectName(identity string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return '-'
		}
		return r
	}, strings.ToLower(identity)), "-")
}

// mayTake reports whether a shard is ours to take, or to keep.
func (m *members) mayTake(shard int) bool {
	if m.cfg.Shards == 1 {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mine[shard]
}

// awaitLoss waits until a shard is another process's to take. It returns false when ctx ends first.
func (m *members) awaitLoss(ctx context.Context, shard int) bool {
	for {
		m.mu.Lock()
		mine, changed := m.cfg.Shards == 1 || m.mine[shard], m.changed
		m.mu.Unlock()
		if !mine {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// record is a lock as it was last listed, as resourcelock.Interface has it.
func (m *members) record(describe, name string) (*resourcelock.LeaderElectionRecord, []byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lock, ok := m.locks[name]
	if m.locks == nil {
		return nil, nil, fmt.Errorf("the locks have not been listed yet: %s", describe)
	}
	if !ok {
		return nil, nil, apierrors.NewNotFound(schema.GroupResource{Group: coordinationv1.GroupName, Resource: "leases"}, name)
	}
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&lock.Spec)
	raw, err := json.Marshal(record)
	return record, raw, err
}

// run tells that we are there, and sees who else is, until ctx ends. Then it takes our membership back, so that the others need not wait for it to
// expire.
func (m *members) run(ctx context.Context) {
	if m.cfg.Shards == 1 {
		return
	}
	var renewed time.Time
	for {
		if time.Since(renewed) >= m.cfg.renewEvery() {
			began := time.Now()
			if err := m.renew(ctx); err == nil {
				renewed = began
			} else if ctx.Err() == nil {
				m.log.Warn("telling the other processes that this one is there failed, and is tried again", "err", err)
			}
		}
		if err := m.look(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("listing the leader locks failed, and is tried again", "err", err)
		}
		if !sleep(ctx, spread(m.cfg.lookEvery())) {
			break
		}
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	if err := m.leave(leaving); err != nil {
		m.log.Warn("taking back the membership failed; the other processes take over once it has expired", "lease", m.own, "err", err)
	}
}

// leaveTime is how long a process that stops tries to tell the others so, by its membership and its locks: they would wait for longer.
const leaveTime = 3 * time.Second

func (m *members) leave(ctx context.Context) error {
	return persist(ctx, m.cfg.renewEvery(), func(ctx context.Context) error {
		err := m.leases().Delete(ctx, m.own, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

func (m *members) leases() coordinationclient.LeaseInterface {
	return m.cfg.Client.CoordinationV1().Leases(m.cfg.Namespace)
}

// renew writes our membership.
func (m *members) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.renewEvery())
	defer cancel()
	now := ptr.To(metav1.NowMicro())
	existing, err := m.leases().Get(ctx, m.own, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = m.leases().Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: m.cfg.Namespace, Name: m.own,
				Labels: map[string]string{labelElection: m.cfg.Name, labelMember: "true"},
			},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: &m.cfg.Identity, AcquireTime: now, RenewTime: now,
				LeaseDurationSeconds: ptr.To(int32(m.cfg.LeaseDuration / time.Second)), //nolint:gosec // a lock of 68 years would have other problems
			},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	if now.Sub(ptr.Deref(existing.Spec.RenewTime, metav1.MicroTime{}).Time) > m.cfg.LeaseDuration {
		// We were paused, or cut off, and may still be winding up what we led: to have it back at once would leave it to nobody for as long.
		existing.Spec.AcquireTime = now
	}
	existing.Spec.RenewTime = now
	_, err = m.leases().Update(ctx, existing, metav1.UpdateOptions{})
	return err
}

// look lists the locks and the memberships, decides what is ours, and removes the memberships of processes that ended without doing so themselves.
func (m *members) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.renewEvery())
	defer cancel()
	list, err := m.leases().List(ctx, metav1.ListOptions{LabelSelector: labelElection + "=" + m.cfg.Name})
	if err != nil {
		return err
	}
	for _, name := range m.take(list.Items, time.Now()) {
		if err := m.leases().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("removing the membership of a process that is gone: %w", err)
		}
	}
	return nil
}

// forgetAfter is how many lease durations after its last renewal a membership is removed.
const forgetAfter = 20

// take draws the conclusions of what was listed. It returns the memberships to remove.
func (m *members) take(listed []coordinationv1.Lease, now time.Time) (gone []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.seen
	m.locks, m.seen = make(map[string]coordinationv1.Lease), make(map[string]sighting)
	alive, settledIn := []string{m.cfg.Identity}, []string(nil)
	for _, l := range listed {
		if l.Labels[labelMember] == "" {
			m.locks[l.Name] = l
			continue
		}
		s := sighting{identity: ptr.Deref(l.Spec.HolderIdentity, ""), renewed: ptr.Deref(l.Spec.RenewTime, metav1.MicroTime{}).Time, at: now}
		if last, ok := before[l.Name]; ok && last.renewed.Equal(s.renewed) {
			s.at = last.at
		}
		m.seen[l.Name] = s
		switch silent := now.Sub(s.at); {
		case silent < m.cfg.LeaseDuration || l.Name == m.own:
			alive = append(alive, s.identity)
			// Both times are by the member's own clock.
			if since := ptr.Deref(l.Spec.AcquireTime, metav1.MicroTime{}).Time; s.renewed.Sub(since) >= m.cfg.LeaseDuration {
				settledIn = append(settledIn, s.identity)
			}
		case silent > forgetAfter*m.cfg.LeaseDuration:
			gone = append(gone, l.Name)
		}
	}
	if len(settledIn) > 0 {
		// Who has just come can take a dead process's lock only after watching it for LeaseDuration itself; those who have watched it all along can
		// by then. So a process that is started in the place of one that crashed must not be given the shard before they had it.
		alive = settledIn
	}
	holders := make([]string, m.cfg.Shards)
	for shard := range holders {
		holders[shard] = ptr.Deref(m.locks[m.cfg.lockName(shard)].Spec.HolderIdentity, "")
	}
	mine := make([]bool, m.cfg.Shards)
	for shard, identity := range assign(alive, holders) {
		mine[shard] = identity == m.cfg.Identity
	}
	if !slices.Equal(mine, m.mine) {
		m.mine = mine
		close(m.changed)
		m.changed = make(chan struct{})
	}
	return gone
}

// assign says which member each shard should be with. Everyone keeps what they hold, up to a fair share; the rest goes to those who have less.
// All who see the same come to the same result.
func assign(members []string, holders []string) []string {
	members = slices.Clone(members)
	slices.Sort(members)
	members = slices.Compact(members)
	held := make(map[string]int)
	for _, h := range holders {
		held[h]++
	}
	// Where the shards cannot be divided evenly, those who hold most keep one more.
	slices.SortStableFunc(members, func(a, b string) int { return cmp.Compare(held[b], held[a]) })
	share := make(map[string]int)
	for i, member := range members {
		share[member] = len(holders) / len(members)
		if i < len(holders)%len(members) {
			share[member]++
		}
	}
	assigned := make([]string, len(holders))
	for shard, h := range holders {
		if share[h] > 0 {
			assigned[shard] = h
			share[h]--
		}
	}
	next := 0
	for shard := range assigned {
		if assigned[shard] != "" {
			continue
		}
		for share[members[next]] == 0 {
			next++
		}
		assigned[shard] = members[next]
		share[members[next]]--
	}
	return assigned
}
