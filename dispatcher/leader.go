package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/klog/v2"
)

// contend dispatches for each shard whenever this process holds its lock, until ctx ends. Losing a lock is no failure: what is done for the
// shard stops, and the process stands by.
//
// A lock alone does not keep a former leader from acting: a process that was paused learns late that it lost. What does is, in this
// order: it looks at the clock before each Job that it creates (shardLock.valid); where the fence is installed, the API server
// refuses the Jobs of a term that is over; every Job's name is the same whoever creates it; and a lease is not trusted past its deadline.
func (d *Dispatcher) contend(ctx context.Context) error {
	var group errgroup.Group
	m := newMembers(&d.cfg.Lock, d.cfg.Log)
	group.Go(func() error { m.run(ctx); return nil })
	for shard := range d.cfg.Lock.Shards {
		d.cfg.Metrics.SetLeader(d.cfg.Lock.lockName(shard), false)
		group.Go(func() error {
			for ctx.Err() == nil {
				if err := d.term(ctx, shard, m); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// term is one turn at a shard: waiting for its lock, leading, and giving it up.
func (d *Dispatcher) term(ctx context.Context, shard int, m *members) error {
	lock := newShardLock(&d.cfg.Lock, m, shard)
	log := d.cfg.Log.With("lock", lock.Describe())
	// leading ends with ctx, when the shard should be another process's, and when the term turns out to be over.
	leading, stepDown := context.WithCancel(ctx)
	defer stepDown()
	// The lock is kept while the lanes wind up after that, and released when they have. The elector need not tell of each try.
	holding, release := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), klog.Logger{}))
	defer release()

	var mu sync.Mutex
	ended := false // no leading may begin any more
	led := make(chan struct{})
	begun := false
	windUp := func() {
		mu.Lock()
		ended = true
		wait := begun
		mu.Unlock()
		if wait {
			<-led
		}
	}

	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   d.cfg.Lock.LeaseDuration,
		RenewDeadline:   d.cfg.Lock.giveUpAfter(),
		RetryPeriod:     d.cfg.Lock.lookEvery(),
		ReleaseOnCancel: false, // it would release what it read last, whose ever that is, and before the lanes have ended
		Name:            lock.LeaseMeta.Name,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				mu.Lock()
				if ended {
					mu.Unlock()
					return
				}
				begun = true
				mu.Unlock()
				defer close(led)
				stop := context.AfterFunc(held, stepDown)
				defer stop()
				log.Info("leading", "fence", lock.fence())
				d.cfg.Metrics.SetLeader(lock.LeaseMeta.Name, true)
				defer d.cfg.Metrics.SetLeader(lock.LeaseMeta.Name, false)
				var watching sync.WaitGroup
				defer watching.Wait()
				watching.Go(func() {
					if m.awaitLoss(leading, shard) {
						log.Info("giving the shard up to another process")
						stepDown()
					}
				})
				d.lead(leading, shard, &leadership{shardLock: lock, log: log, stepDown: stepDown})
				stepDown()
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				if identity != d.cfg.Lock.Identity && identity != "" {
					log.Info("standing by", "leader", identity)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("leader lock %s: %w", lock.Describe(), err)
	}

	stop := context.AfterFunc(leading, func() {
		windUp()
		release()
	})
	defer stop()
	elector.Run(holding)
	if holding.Err() == nil {
		log.Warn("lost the leader lock; standing by")
	}
	stepDown()
	windUp()
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	if err := lock.release(leaving); err != nil {
		log.Warn("releasing the leader lock failed; another process takes over once it has expired", "err", err)
	}
	return nil
}

// leadership is a term that has begun, for those who act in it.
type leadership struct {
	*shardLock
	log      *slog.Logger
	stepDown context.CancelFunc
}

// fenced is told that the API server refused a Job because its term is over. It makes sure, since the API server's own view of the lock can be a moment
// old: then the term is only just beginning, and the Job is worth another try. It returns whether the term is over.
func (l *leadership) fenced(ctx context.Context) bool {
	lost, err := l.lost(ctx)
	if err != nil || !lost {
		return false
	}
	l.log.Warn("another process leads by now, and the API server refuses Jobs of this one's term; stepping down", "fence", l.fence())
	l.stepDown()
	return true
}
