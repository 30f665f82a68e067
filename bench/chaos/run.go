package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lighterman-dev/lighterman/bench/cluster/build"
)

// Waiting at the end is bounded; what is not as it should be by then is told.
const (
	drainPatience = 3 * time.Minute
	// markPatience is for the Jobs whose messages were settled although nobody could note it: they are marked when the lease and a
	// minute have passed.
	markPatience = leaseDuration + 90*time.Second
	restPatience = 90 * time.Second
)

// chaos is one run.
type chaos struct {
	*world
	out        io.Writer
	began      time.Time
	queueFeed  *feeder
	streamFeed *feeder
	eventFeed  *feeder
	events     []event
	goroutines [2]float64 // of all processes together, before and after

	mu         sync.Mutex
	complaints []string // guarded by mu; what went wrong by the way
}

// run is the whole way. The folder with the logs stays if anything is wrong.
func run(user context.Context, o options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "lighterman-chaos-")
	if err != nil {
		return err
	}
	defer func() {
		switch {
		case err != nil && user.Err() == nil:
			err = fmt.Errorf("%w\nall logs are in %s", err, dir)
		case o.keep:
			_, _ = fmt.Fprintln(out, "all logs are in", dir)
		default:
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	program, err := buildAll(user, dir, out)
	if err != nil {
		return err
	}
	// From here on, whatever breaks unasked ends all waiting at once, with its reason.
	ctx, fail := context.WithCancelCause(user)
	defer fail(nil)
	timer := time.AfterFunc(o.timeout, func() { fail(fmt.Errorf("the time limit of %v has passed (-timeout)", o.timeout)) })
	defer timer.Stop()

	c := &chaos{
		world: &world{options: o, dir: dir, watcher: newWatcher(), dice: newDice(o.seed, "schedule")},
		out:   out, began: time.Now(),
	}
	c.say("seed %d", o.seed)
	verdict, err := c.all(ctx, program, fail)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}
	_, err = io.WriteString(out, c.table(verdict))
	if len(verdict.wrong) > 0 {
		const enough = 40
		shown := verdict.wrong[:min(len(verdict.wrong), enough)]
		err = errors.Join(err, fmt.Errorf("%d things are wrong (seed %d):\n  %s", len(verdict.wrong), o.seed, strings.Join(shown, "\n  ")))
	}
	return err
}

func buildAll(ctx context.Context, dir string, out io.Writer) (string, error) {
	if _, err := build.Kubernetes(ctx, out); err != nil {
		return "", err
	}
	if _, err := build.Sandbox(ctx, out); err != nil {
		return "", err
	}
	module, err := build.ModuleDir(ctx, "github.com/lighterman-dev/lighterman")
	if err != nil {
		return "", err
	}
	return build.Program(ctx, out, module, "./cmd/lighterman", dir)
}

// say prints a line with the time since the start.
func (c *chaos) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, "%6.1fs  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// all starts everything, breaks and heals it, and stops it again, whatever happens.
func (c *chaos) all(ctx context.Context, program string, fail func(error)) (_ *verdict, err error) {
	watching, stopWatching := context.WithCancel(ctx)
	var background errgroup.Group
	defer func() {
		stopWatching()
		err = errors.Join(err, background.Wait(), c.close(), c.nothingLeft())
	}()
	if err := startWorld(ctx, c.world, c.out, fail); err != nil {
		return nil, err
	}
	background.Go(func() error { return c.watcher.run(watching, c.client, namespace) })
	c.closing(c.endAll)
	if err := c.startLightermen(ctx, program); err != nil {
		return nil, err
	}
	c.say("everything runs; %d goroutines in %d processes", int(c.goroutines[0]), len(c.replicas))
	e, err := c.work(ctx)
	if err != nil {
		return nil, err
	}
	return judge(e), nil
}

// startLightermen starts the processes, and waits until the templates are taken up.
func (c *chaos) startLightermen(ctx context.Context, program string) error {
	if err := c.addReplicas(ctx, program, c.complain); err != nil {
		return err
	}
	for _, r := range c.replicas {
		if err := r.start(ctx); err != nil {
			return err
		}
	}
	var templates []string
	for _, kind := range kinds {
		for i := range countOf(kind) {
			templates = append(templates, queueName(kind, i))
		}
	}
	err := poll(ctx, "the templates to be taken up", time.Minute, func(ctx context.Context) (bool, error) {
		running := 0
		for _, r := range c.replicas {
			metrics, err := r.current.read(ctx)
			if err != nil {
				return false, err
			}
			running += templatesIn(metrics, "running")
		}
		return running == len(templates), fmt.Errorf("%d of %d templates are running", running, len(templates))
	})
	if err != nil {
		return err
	}
	if err := c.checkFence(ctx); err != nil {
		return err
	}
	c.goroutines[0], err = c.countGoroutines(ctx)
	return err
}

func (c *chaos) countGoroutines(ctx context.Context) (float64, error) {
	var sum float64
	for _, r := range c.replicas {
		metrics, err := r.current.read(ctx)
		if err != nil {
			return 0, fmt.Errorf("reading the metrics of %s: %w", r.process(), err)
		}
		sum += sumOf(metrics, "go_goroutines")
	}
	return sum, nil
}

// complain takes note of something wrong. The run goes on, since what comes of it may explain it.
func (c *chaos) complain(err error) {
	c.say("%v", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.complaints = append(c.complaints, err.Error())
}

// work sends, breaks, waits, and looks at what has come of it.
func (c *chaos) work(ctx context.Context) (*evidence, error) {
	c.queueFeed = c.feederOf(queueKind, sendToQueues(c.queues))
	c.streamFeed = c.feederOf(streamKind, sendToStreams(c.streams))
	c.eventFeed = c.feederOf(eventKind, sendToHubs(c.broker))
	group, working := errgroup.WithContext(ctx)
	feeding, stop := context.WithCancel(working)
	defer stop()
	for _, f := range c.feeds() {
		group.Go(func() error { return f.run(feeding) })
	}
	group.Go(func() error { return c.tell(feeding) })
	group.Go(func() error {
		defer stop()
		if err := c.breakThings(working); err != nil {
			return err
		}
		c.say("no more faults; waiting for the rest")
		return c.drain(working)
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return c.gather(ctx)
}

func (c *chaos) feederOf(kind string, send func(context.Context, []message) error) *feeder {
	return &feeder{
		messages: plan(c.seed, kind, share(kind, c.messages)), send: send,
		settled: func() int { return c.watcher.settledCount(sourceOf[kind]) },
	}
}

func (c *chaos) feeds() []*feeder { return []*feeder{c.queueFeed, c.streamFeed, c.eventFeed} }

// tell says from time to time how far it is.
func (c *chaos) tell(ctx context.Context) error {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.say("%d messages sent, %d Jobs created, %d messages settled", c.sent(), c.watcher.createdCount(), c.settled())
		}
	}
}

// drain waits until no message is left in any queue. That some are is for the judge to say.
func (c *chaos) drain(ctx context.Context) error {
	err := poll(ctx, "empty queues", drainPatience, func(ctx context.Context) (bool, error) {
		if c.sent() < c.messages {
			return false, fmt.Errorf("%d of %d messages could be sent", c.sent(), c.messages)
		}
		left, err := c.leftIn(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("there are still messages: %v", left)
		}
		return err == nil, err
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		c.complain(err)
	}
	return nil
}

// gather waits until everything is at rest, ends the processes, and collects what is to be judged.
func (c *chaos) gather(ctx context.Context) (*evidence, error) {
	e := &evidence{}
	for _, f := range c.feeds() {
		e.sent = append(e.sent, f.messages[:f.sent.Load()]...)
	}
	c.say("waiting for the last Jobs to be marked")
	if err := c.untilMarked(ctx); err != nil {
		return nil, err
	}
	if err := c.compareGoroutines(ctx); err != nil {
		return nil, err
	}
	for _, r := range c.replicas {
		if err := r.current.stop(); err != nil {
			c.complain(fmt.Errorf("%s: %w", r.process(), err))
		}
	}
	e.sameNames = c.watcher.sameNames()
	var err error
	if e.left, err = c.leftIn(ctx); err != nil {
		return nil, err
	}
	if e.ends, err = c.partitionEnds(ctx); err != nil {
		return nil, err
	}
	e.eventIDs = c.eventIDs()
	if e.poison, err = c.readPoison(ctx); err != nil {
		return nil, err
	}
	if e.unsettled, e.overdue, err = c.jobsLeft(ctx); err != nil {
		return nil, err
	}
	if err := c.removeJobs(ctx, e); err != nil {
		return nil, err
	}
	e.runs, err = readRecord(c.record)
	c.mu.Lock()
	defer c.mu.Unlock()
	e.complaints = c.complaints
	return e, err
}

func (c *chaos) untilMarked(ctx context.Context) error {
	err := poll(ctx, "marks on all Jobs", markPatience, func(ctx context.Context) (bool, error) {
		unsettled, _, err := c.jobsLeft(ctx)
		return err == nil && len(unsettled) == 0, err
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	return nil // the judge looks again
}

// removeJobs deletes the Jobs that there are, and waits for the Secrets with their payloads to go as well.
func (c *chaos) removeJobs(ctx context.Context, e *evidence) error {
	provided, err := c.payloadSecrets(ctx)
	if err != nil {
		return err
	}
	e.provided = len(provided)
	if err := c.deleteJobs(ctx); err != nil {
		return err
	}
	err = poll(ctx, "the Secrets to go with their Jobs", restPatience, func(ctx context.Context) (bool, error) {
		var err error
		e.secrets, err = c.payloadSecrets(ctx)
		return err == nil && len(e.secrets) == 0, err
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	return nil // the judge has those that are left
}

// spareGoroutines is how many more there may be at the end than before the first message: two for each connection that is kept for
// a while. What leaks with each message or fault is far more.
const spareGoroutines = 60

func (c *chaos) compareGoroutines(ctx context.Context) error {
	limit := c.goroutines[0] + spareGoroutines
	err := poll(ctx, "goroutines to end", restPatience, func(ctx context.Context) (bool, error) {
		var err error
		c.goroutines[1], err = c.countGoroutines(ctx)
		return err == nil && c.goroutines[1] <= limit, err
	})
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		c.complain(fmt.Errorf("goroutines of all processes: %.0f at rest before, %.0f after", c.goroutines[0], c.goroutines[1]))
	}
	return nil
}

// endAll ends what still runs of lighterman.
func (c *chaos) endAll() error {
	var errs []error
	for _, r := range c.replicas {
		if r.current != nil && !r.current.ended() {
			errs = append(errs, r.current.kill())
		}
	}
	return errors.Join(errs...)
}

// nothingLeft looks for processes that have outlived us.
func (c *chaos) nothingLeft() error {
	left, err := processesOf(c.dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%d processes are left: %s", len(left), someOf(left))
	}
	return nil
}
