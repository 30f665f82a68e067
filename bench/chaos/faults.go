package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

// A fault is one way to break something. inject breaks it, mends it, and returns when that is done.
type fault struct {
	kind   string
	inject func(*chaos, context.Context) (effect, error)
}

// An effect is what a fault hit, and what came of it.
type effect struct {
	target    string
	takeovers []time.Duration // one for each shard that changed hands and had messages
	missing   int             // shards of which no Job was created within takeoverPatience
	setBack   int             // checkpoints that lost what was written last
}

// faults are injected in this order, again and again.
var faults = []fault{
	{"kill -9 leader", (*chaos).killLeader},
	{"API server: delays", onAPIServer(delaying)},
	{"Event Hubs: restart", (*chaos).restartHubs},
	{"kill -9 redis-server", (*chaos).killRedis},
	{"Azure Storage: 503", onStorage(refusing)},
	{"SIGSTOP leader", (*chaos).pauseLeader},
	{"Event Hubs: drops", (*chaos).dropHubConnections},
	{"Redis: drops", onStreams(dropping)},
	{"kill -9 kube-apiserver", (*chaos).killAPIServer},
	{"Event Hubs: steal", (*chaos).stealPartitions},
	{"Azure Storage: drops", onStorage(dropping)},
	{"SIGTERM leader", (*chaos).stopLeader},
	{"Event Hubs: throttle", (*chaos).throttleHubs},
	{"API server: drops", onAPIServer(dropping)},
	{"kill -9 Azurite", (*chaos).killAzurite},
	{"Redis: delays", onStreams(delaying)},
	{kindLost, (*chaos).loseCheckpoints},
	{"leader cut off", (*chaos).cutOffLeader},
	{"Event Hubs: detach", (*chaos).detachReceivers},
	{"kill -9 etcd", (*chaos).killEtcd},
	{"API server: 503", onAPIServer(refusing)},
	{"Event Hubs: slow", (*chaos).slowHubs},
	{"Azure Storage: delays", onStorage(delaying)},
}

func onAPIServer(d disturbance) func(*chaos, context.Context) (effect, error) {
	return func(c *chaos, ctx context.Context) (effect, error) { return c.disturbAPIServer(ctx, d) }
}

// onStorage disturbs the queues and the checkpoints, as both are one account's.
func onStorage(d disturbance) func(*chaos, context.Context) (effect, error) {
	return func(c *chaos, ctx context.Context) (effect, error) {
		return c.disturb(ctx, d, c.queueProxy, c.blobProxy)
	}
}

func onStreams(d disturbance) func(*chaos, context.Context) (effect, error) {
	return func(c *chaos, ctx context.Context) (effect, error) { return c.disturb(ctx, d, c.streamProxy) }
}

// azuriteSaves is for how long Azurite may keep in memory what it has confirmed: it writes every five seconds. Azure itself loses
// nothing that it has confirmed, so Azurite is cut off for this long before it is killed. What it is like for checkpoints if it is not is a fault of its own.
const azuriteSaves = 6 * time.Second

// takeoverPatience is how long to wait for the Job that shows a takeover.
const takeoverPatience = 30 * time.Second

// pause waits; an end of the run cuts it short.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *chaos) pauseBetween(ctx context.Context, from, to time.Duration) error {
	return pause(ctx, c.dice.between(from, to))
}

// leader picks one of the processes that lead, and that create Jobs if any does: one that has nothing to do is no loss.
func (c *chaos) leader(ctx context.Context) (*replica, error) {
	const patience = 3 * time.Second
	busyUntil := time.Now().Add(patience)
	var found *replica
	err := poll(ctx, "a leader", takeoverPatience, func(ctx context.Context) (bool, error) {
		held, err := c.leaders(ctx)
		if err != nil || len(held) == 0 {
			return false, err
		}
		var busy []*replica
		for _, lock := range sortedKeys(held) {
			if r := held[lock]; time.Now().After(busyUntil) || len(c.watcher.termsOf(r.process(), time.Now().Add(-recent))) > 0 {
				busy = append(busy, r)
			}
		}
		if len(busy) == 0 {
			return false, errors.New("no leader creates Jobs")
		}
		found = busy[c.dice.below(len(busy))]
		return true, nil
	})
	return found, err
}

// takeover measures, from a moment on, when the next Job is created in each of the shards that a process has led, in a later term.
func (c *chaos) takeover(ctx context.Context, terms map[string]int, at time.Time, e *effect) error {
	waiting, cancel := context.WithDeadline(ctx, at.Add(takeoverPatience))
	defer cancel()
	for shard, term := range terms {
		next, err := c.watcher.next(waiting, at, func(n creation) bool { return n.shard == shard && n.term > term })
		switch {
		case err == nil:
			e.takeovers = append(e.takeovers, next.at.Sub(at))
		case ctx.Err() != nil:
			return context.Cause(ctx)
		default:
			e.missing++
		}
	}
	return nil
}

// recent is how long ago a process must have created a Job in a shard for messages of that shard to be waiting still.
const recent = 3 * time.Second

func (c *chaos) killLeader(ctx context.Context) (effect, error) {
	victim, err := c.leader(ctx)
	if err != nil {
		return effect{}, err
	}
	e, process := effect{target: victim.process()}, victim.process()
	at := time.Now()
	if err := victim.current.kill(); err != nil {
		return e, err
	}
	if err := c.pauseBetween(ctx, 500*time.Millisecond, 1500*time.Millisecond); err != nil {
		return e, err
	}
	if err := victim.start(ctx); err != nil {
		return e, err
	}
	return e, c.takeover(ctx, c.watcher.termsOf(process, at.Add(-recent)), at, &e)
}

func (c *chaos) stopLeader(ctx context.Context) (effect, error) {
	victim, err := c.leader(ctx)
	if err != nil {
		return effect{}, err
	}
	e, process := effect{target: victim.process()}, victim.process()
	at := time.Now()
	if err := victim.current.stop(); err != nil {
		c.complain(fmt.Errorf("stopping %s: %w; its log is %s", process, err, victim.current.log))
	}
	if err := c.takeover(ctx, c.watcher.termsOf(process, at.Add(-recent)), at, &e); err != nil {
		return e, err
	}
	return e, victim.start(ctx)
}

// pauseLeader makes a zombie: a leader that wakes up when others have taken over, its leases have ended and its messages have been
// delivered again, and that knows nothing of it.
func (c *chaos) pauseLeader(ctx context.Context) (effect, error) {
	victim, err := c.leader(ctx)
	if err != nil {
		return effect{}, err
	}
	e, process := effect{target: victim.process()}, victim.process()
	at := time.Now()
	if err := victim.current.signal(syscall.SIGSTOP); err != nil {
		return e, err
	}
	asleep := max(leaseDuration, lockDuration) + c.dice.between(2*time.Second, 4*time.Second)
	err = pause(ctx, asleep)
	err = errors.Join(err, victim.current.signal(syscall.SIGCONT))
	if err != nil {
		return e, err
	}
	return e, c.takeover(ctx, c.watcher.termsOf(process, at.Add(-recent)), at, &e)
}

// cutOffLeader keeps a leader from the API server, but not from the queues, until another must have taken over.
func (c *chaos) cutOffLeader(ctx context.Context) (effect, error) {
	victim, err := c.leader(ctx)
	if err != nil {
		return effect{}, err
	}
	e, process := effect{target: victim.process()}, victim.process()
	at := time.Now()
	victim.proxy.disturb(severed)
	err = pause(ctx, lockDuration+c.dice.between(2*time.Second, 3*time.Second))
	victim.proxy.disturb(quiet)
	if err != nil {
		return e, err
	}
	return e, c.takeover(ctx, c.watcher.termsOf(process, at.Add(-recent)), at, &e)
}

func (c *chaos) killAPIServer(ctx context.Context) (effect, error) {
	if err := c.cluster.Kill(localcluster.APIServer); err != nil {
		return effect{}, err
	}
	if err := c.pauseBetween(ctx, 200*time.Millisecond, 2*time.Second); err != nil {
		return effect{}, err
	}
	return effect{}, c.cluster.Restart(ctx, localcluster.APIServer)
}

func (c *chaos) killEtcd(ctx context.Context) (effect, error) {
	if err := c.cluster.Kill(localcluster.Etcd); err != nil {
		return effect{}, err
	}
	if err := c.pauseBetween(ctx, 200*time.Millisecond, 3*time.Second); err != nil {
		return effect{}, err
	}
	if err := c.cluster.Restart(ctx, localcluster.Etcd); err != nil {
		return effect{}, err
	}
	return effect{}, poll(ctx, "the API server", time.Minute, func(ctx context.Context) (bool, error) {
		err := ready(ctx, c.client)
		return err == nil, err
	})
}

func ready(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

func (c *chaos) killRedis(ctx context.Context) (effect, error) {
	c.streamFeed.server.Lock()
	defer c.streamFeed.server.Unlock()
	c.redis.Kill()
	if err := c.pauseBetween(ctx, 200*time.Millisecond, 3*time.Second); err != nil {
		return effect{}, err
	}
	return effect{}, c.redis.Restart(ctx)
}

func (c *chaos) killAzurite(ctx context.Context) (effect, error) {
	c.queueFeed.server.Lock()
	defer c.queueFeed.server.Unlock()
	for _, p := range []disturbable{c.queueProxy, c.blobProxy} {
		p.disturb(severed)
		defer p.disturb(quiet)
	}
	if err := pause(ctx, azuriteSaves); err != nil {
		return effect{}, err
	}
	c.azurite.Kill()
	if err := c.pauseBetween(ctx, 200*time.Millisecond, time.Second); err != nil {
		return effect{}, err
	}
	return effect{}, c.azurite.Restart(ctx)
}

// disturb disturbs what passes some proxies for a while.
func (c *chaos) disturb(ctx context.Context, d disturbance, proxies ...disturbable) (effect, error) {
	for _, p := range proxies {
		p.disturb(d)
	}
	err := c.pauseBetween(ctx, 2500*time.Millisecond, 4500*time.Millisecond)
	for _, p := range proxies {
		p.disturb(quiet)
	}
	return effect{}, err
}

// disturbAPIServer disturbs the way to the API server of the leader alone, which makes the others wonder, or of all.
func (c *chaos) disturbAPIServer(ctx context.Context, d disturbance) (effect, error) {
	if c.dice.chance(50) {
		proxies := make([]disturbable, len(c.replicas))
		for i, r := range c.replicas {
			proxies[i] = r.proxy
		}
		e, err := c.disturb(ctx, d, proxies...)
		e.target = "all"
		return e, err
	}
	victim, err := c.leader(ctx)
	if err != nil {
		return effect{}, err
	}
	e, err := c.disturb(ctx, d, victim.proxy)
	e.target = victim.process()
	return e, err
}
