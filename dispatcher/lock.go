package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
)

// LockConfig is how processes agree on who dispatches what: by leader locks, which are Kubernetes Lease objects, one for each shard.
type LockConfig struct {
	// Client is the locks' own, so that a busy dispatcher cannot starve their renewals.
	Client kubernetes.Interface
	// Namespace and Name are the Lease object's; with several shards, -0, -1 and so on follow the name. Processes with the same locks stand in
	// for each other.
	Namespace, Name string
	// Identity names this process; unique among those that contend.
	Identity string
	// Shards is how many parts the templates are divided into, each with a lock of its own. All processes must agree on it. Default 1.
	Shards int
	// LeaseDuration is after how long without renewal another process takes over. Whole seconds, since that is how the Lease object
	// has it. Default 15 s.
	LeaseDuration time.Duration
}

func (c *LockConfig) setDefaults() {
	if c.LeaseDuration == 0 {
		c.LeaseDuration = 15 * time.Second
	}
	if c.Shards == 0 {
		c.Shards = 1
	}
}

// renewEvery is how often a holder renews: often enough that some renewals can fail.
func (c *LockConfig) renewEvery() time.Duration { return c.LeaseDuration * 2 / 15 }

// giveUpAfter is after how long without a renewal the holder itself gives up. With what renewEvery adds, that is before others may take over.
func (c *LockConfig) giveUpAfter() time.Duration { return c.LeaseDuration * 2 / 3 }

// lookEvery is how often the others look, which decides how soon after LeaseDuration one of them takes over: client-go waits up to 2.2 times
// as long, before it sees the last renewal and again after its end.
func (c *LockConfig) lookEvery() time.Duration {
	return min(c.LeaseDuration/40, 375*time.Millisecond)
}

// lockName is the name of a shard's lock.
func (c *LockConfig) lockName(shard int) string {
	if c.Shards == 1 {
		return c.Name
	}
	return fmt.Sprintf("%s-%d", c.Name, shard)
}

// shardOf is the shard that a key belongs to, the same in all processes for ever.
func (c *LockConfig) shardOf(key ...string) int {
	h := fnv.New64a()
	for _, part := range key {
		_, _ = h.Write([]byte(part)) // never fails
		_, _ = h.Write([]byte{0})
	}
	return int(h.Sum64() % uint64(c.Shards)) //nolint:gosec // there is at least one shard
}

// shardLock is a shard's leader lock, for one turn of leader election. Beyond client-go's it knows its term, for the fence, and does not write
// more often than it must.
//
// The elector calls it from one goroutine; the mutex is for those who ask meanwhile.
type shardLock struct {
	*resourcelock.LeaseLock
	cfg     *LockConfig
	members *members
	shard   int
	log     *slog.Logger
	// complained is when a failure was last told of.
	complained time.Time
	// seen is the record as last read or written.
	seen resourcelock.LeaderElectionRecord

	mu sync.Mutex
	// sent is when the last renewal that succeeded was sent; zero before the lock is ours.
	sent time.Time
	term int
}

func newShardLock(cfg *LockConfig, m *members, shard int) *shardLock {
	return &shardLock{
		LeaseLock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: cfg.Namespace, Name: cfg.lockName(shard)},
			Client:     cfg.Client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.Identity},
			Labels:     map[string]string{fence.LabelLock: cfg.Name, labelElection: cfg.Name},
		},
		cfg: cfg, members: m, shard: shard, log: m.log,
	}
}

var (
	errNotOurTurn   = errors.New("the shard is another process's to take")
	errChangedHands = errors.New("the lock has changed hands since")
)

// firstTerm makes the terms of a lock that somebody deleted go on above the old ones: seconds since 2026, of which 31 bits last until 2094.
var firstTerm = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Get implements resourcelock.Interface. As long as the lock is another's to take, what all locks are listed for anyway will do.
func (l *shardLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	if held, _ := l.holding(); !held && !l.members.mayTake(l.shard) {
		return l.members.record(l.Describe(), l.LeaseMeta.Name)
	}
	record, raw, err := l.LeaseLock.Get(ctx)
	if err == nil {
		l.seen = *record
	} else if !apierrors.IsNotFound(err) {
		l.complain(ctx, "reading", err)
	}
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *shardLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if !l.members.mayTake(l.shard) {
		return errNotOurTurn
	}
	if held, _ := l.holding(); held {
		return errChangedHands // somebody deleted it: what is made anew is another term
	}
	record.LeaderTransitions = int(max(time.Since(firstTerm), 0) / time.Second)
	sent := time.Now()
	if err := l.LeaseLock.Create(ctx, record); err != nil {
		l.complain(ctx, "creating", err)
		return err
	}
	l.written(record, sent)
	return nil
}

// Update implements resourcelock.Interface.
func (l *shardLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	held, sent := l.holding()
	switch {
	case record.HolderIdentity == "":
		if l.seen.HolderIdentity != l.cfg.Identity {
			return nil // it is another's by now
		}
	case held:
		if l.seen.HolderIdentity != l.cfg.Identity || l.seen.LeaderTransitions != l.term {
			return errChangedHands
		}
		if time.Since(sent) < l.cfg.renewEvery() {
			return nil // the elector asks as often as those look who wait for the lock
		}
		record.LeaderTransitions = l.term // client-go does not know what Create made of it
	case !l.members.mayTake(l.shard):
		return errNotOurTurn
	case l.seen.HolderIdentity == l.cfg.Identity:
		// Ours from an earlier turn, whose release went astray. client-go takes that for the same term; a request of it may be under way still.
		record.LeaderTransitions = l.seen.LeaderTransitions + 1
	}
	now := time.Now()
	if err := l.LeaseLock.Update(ctx, record); err != nil {
		l.complain(ctx, "writing", err)
		return err
	}
	l.written(record, now)
	return nil
}

// complainEvery is how often a failure that lasts is told again.
const complainEvery = time.Minute

// complain tells of a failure, since the elector only tries again. That somebody else was faster is none.
func (l *shardLock) complain(ctx context.Context, doing string, err error) {
	if ctx.Err() == context.Canceled || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || time.Since(l.complained) < complainEvery {
		return
	}
	l.complained = time.Now()
	l.log.Warn(doing+" the leader lock failed, and is tried again; without it, nothing is dispatched", "lock", l.Describe(), "err", err)
}

func (l *shardLock) written(record resourcelock.LeaderElectionRecord, sent time.Time) {
	l.seen = record
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent, l.term = sent, record.LeaderTransitions
	if record.HolderIdentity == "" {
		l.sent = time.Time{}
	}
}

// holding reports whether the lock was won in this turn, and when the last renewal was sent.
func (l *shardLock) holding() (held bool, sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.sent.IsZero(), l.sent
}

// release gives the lock up, if it is ours.
func (l *shardLock) release(ctx context.Context) error {
	if held, _ := l.holding(); !held {
		return nil
	}
	return persist(ctx, l.cfg.renewEvery(), l.tryRelease)
}

func (l *shardLock) tryRelease(ctx context.Context) error {
	record, _, err := l.Get(ctx)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.Update(ctx, resourcelock.LeaderElectionRecord{LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1})
}

// valid reports whether nobody else can have taken the lock yet. A process that was paused finds out by it before its elector does.
func (l *shardLock) valid() bool {
	held, sent := l.holding()
	// The monotonic clock stands still while a machine is suspended.
	passed := max(time.Since(sent), time.Now().Round(0).Sub(sent.Round(0)))
	return held && passed < l.cfg.LeaseDuration
}

// fence is what the Jobs of this term carry.
func (l *shardLock) fence() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fence.Value(l.cfg.Namespace, l.LeaseMeta.Name, l.term)
}

// level is what those who take part in something are told apart by: those of a later term have a higher one.
func (l *shardLock) level() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.term) + 1
}

// noTerm is a fence that no term has.
func (l *shardLock) noTerm() string { return fence.Value(l.cfg.Namespace, l.LeaseMeta.Name, -1) }

// lost asks the API server whether the lock is in another term by now.
func (l *shardLock) lost(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.LeaseDuration)
	defer cancel()
	current, err := l.Client.Leases(l.LeaseMeta.Namespace).Get(ctx, l.LeaseMeta.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the leader lock %s: %w", l.Describe(), err)
	}
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&current.Spec)
	l.mu.Lock()
	defer l.mu.Unlock()
	return record.HolderIdentity != l.cfg.Identity || record.LeaderTransitions != l.term, nil
}
