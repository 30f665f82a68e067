package dispatcher

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LockConfig is the leader lock: a Kubernetes Lease object.
type LockConfig struct {
	// Client is the lock's own, so that a busy dispatcher cannot starve its renewals.
	Client kubernetes.Interface
	// Namespace and Name are the Lease object's. Processes with the same lock stand in for each other.
	Namespace, Name string
	// Identity names this process; unique among those that contend.
	Identity string
	// LeaseDuration is after how long without renewal another process takes over. Default 15 s.
	LeaseDuration time.Duration
	// RenewDeadline is after how long without renewal the holder itself gives up. It must be shorter than LeaseDuration.
	// Default two thirds of it.
	RenewDeadline time.Duration
	// RetryPeriod is how often the holder renews and the others look. Default 2/15 of LeaseDuration.
	RetryPeriod time.Duration
}

func (c *LockConfig) setDefaults() {
	if c.LeaseDuration == 0 {
		c.LeaseDuration = 15 * time.Second
	}
	if c.RenewDeadline == 0 {
		c.RenewDeadline = c.LeaseDuration * 2 / 3
	}
	if c.RetryPeriod == 0 {
		c.RetryPeriod = c.LeaseDuration * 2 / 15
	}
}

// contend dispatches whenever this process holds the lock, until ctx ends. Losing the lock is no failure: it stops what it does, and
// stands by.
//
// The lock alone does not keep a former leader from acting: a process that was paused learns late that it lost. What does is that
// every Job's name is the same whoever creates it, and that a lease is not trusted past its deadline.
func (d *Dispatcher) contend(ctx context.Context) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: d.cfg.Lock.Namespace, Name: d.cfg.Lock.Name},
		Client:     d.cfg.Lock.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: d.cfg.Lock.Identity},
	}
	d.cfg.Metrics.SetLeader(d.cfg.Lock.Name, false)
	for ctx.Err() == nil {
		if err := d.term(ctx, lock); err != nil {
			return err
		}
	}
	return nil
}

// term is one turn: waiting for the lock, leading, and giving it up.
func (d *Dispatcher) term(ctx context.Context, lock resourcelock.Interface) error {
	log := d.cfg.Log.With("lock", d.cfg.Lock.Namespace+"/"+d.cfg.Lock.Name)
	// The lock is kept while the lanes wind up after ctx has ended, and released when they have.
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()

	var mu sync.Mutex
	ended := ctx.Err() != nil // no leading may begin any more
	led := make(chan struct{})
	begun := false

	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   d.cfg.Lock.LeaseDuration,
		RenewDeadline:   d.cfg.Lock.RenewDeadline,
		RetryPeriod:     d.cfg.Lock.RetryPeriod,
		ReleaseOnCancel: true,
		Name:            d.cfg.Lock.Name,
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
				// Ends with ctx, and when the lock is lost.
				leading, cancel := context.WithCancel(held)
				defer cancel()
				stop := context.AfterFunc(ctx, cancel)
				defer stop()
				log.Info("leading")
				d.cfg.Metrics.SetLeader(d.cfg.Lock.Name, true)
				defer d.cfg.Metrics.SetLeader(d.cfg.Lock.Name, false)
				d.lead(leading)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				if identity != d.cfg.Lock.Identity {
					log.Info("standing by", "leader", identity)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("leader lock %s: %w", lock.Describe(), err)
	}

	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		ended = true
		wait := begun
		mu.Unlock()
		if wait {
			<-led
		}
		release()
	})
	defer stop()
	elector.Run(holding)

	mu.Lock()
	ended = true
	wait := begun
	mu.Unlock()
	if wait {
		<-led
	}
	if ctx.Err() == nil {
		log.Warn("lost the leader lock; standing by")
	}
	return nil
}
