package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/lighterman-dev/lighterman/bench/cluster/build"
	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
)

// run is the whole way: build, start the queue and the cluster, apply the template, start lighterman, send messages, follow
// their Jobs, check, sum up. What is started is stopped in reverse order, whatever happens. The folder with the logs stays if
// anything fails, other than by the user's wish.
func run(user context.Context, o options, out *screen) (err error) {
	dir, err := os.MkdirTemp("", "lighterman-demo-")
	if err != nil {
		return err
	}
	defer func() {
		out.clear()
		if err != nil && user.Err() == nil {
			err = withLogs(err, dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	binary, err := buildAll(user, o, dir, out)
	if err != nil {
		return err
	}

	// From here on, whatever breaks ends all waiting at once, with its reason.
	ctx, fail := context.WithCancelCause(user)
	defer fail(nil)
	timer := time.AfterFunc(o.timeout, func() { fail(fmt.Errorf("the time limit of %v has passed (-timeout)", o.timeout)) })
	defer timer.Stop()
	defer func() {
		// An error that only says "canceled" says less than what cancelled it. What we have left behind is told in any case.
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	}()

	queue, err := startQueue(ctx, o.source, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, queue.close()) }()

	d := demo{options: o, dir: dir, binary: binary, queue: queue, out: out, fail: fail}
	return d.inCluster(ctx)
}

// errCluster means that nothing can be asked of the cluster any more.
var errCluster = errors.New("the cluster has failed")

// A demo is what the stages share.
type demo struct {
	options
	dir, binary string
	queue       queue
	out         *screen
	fail        context.CancelCauseFunc

	place    *place
	manifest *manifest
}

func buildAll(ctx context.Context, o options, dir string, out *screen) (string, error) {
	if o.cluster == "local" {
		if _, err := build.Kubernetes(ctx, out.Writer); err != nil {
			return "", err
		}
		if _, err := build.Sandbox(ctx, out.Writer); err != nil {
			return "", err
		}
	}
	module, err := build.ModuleDir(ctx, "github.com/lighterman-dev/lighterman")
	if err != nil {
		return "", err
	}
	return build.Program(ctx, out.Writer, module, "./cmd/lighterman", dir)
}

func (d *demo) inCluster(ctx context.Context) (err error) {
	began := time.Now()
	if d.cluster == "local" {
		d.out.line("starting a cluster")
	}
	if d.place, err = openPlace(ctx, d.cluster, d.dir); err != nil {
		return err
	}
	defer func() {
		if d.cluster == "local" {
			d.out.line("stopping the cluster")
		}
		err = errors.Join(err, d.place.close())
	}()
	d.out.line("cluster ready after %s: %s", short(time.Since(began)), d.place.name)
	go func() {
		select {
		case err := <-d.place.failures:
			d.fail(fmt.Errorf("%w: %w", errCluster, err))
		case <-ctx.Done():
		}
	}()
	if d.manifest, err = readManifest(d.source); err != nil {
		return err
	}
	d.manifest.adapt("lighterman-demo-"+rand.String(5), d.queue.secret())
	remove, err := d.manifest.createNamespace(ctx, d.place.client)
	if err != nil {
		return err
	}
	if d.cluster == "current" { // the local one goes as a whole
		defer func() {
			d.out.line("deleting the namespace %s", d.namespace())
			err = errors.Join(err, remove())
		}()
	}
	return d.inNamespace(ctx)
}

func (d *demo) namespace() string { return d.manifest.namespace.Name }

func (d *demo) inNamespace(ctx context.Context) (err error) {
	if err := d.place.waitUntilUsable(ctx, d.namespace()); err != nil {
		return err
	}
	if err := d.manifest.apply(ctx, d.place.client); err != nil {
		return err
	}
	d.out.line("applied the template: bench/demo/%s.yaml, in namespace %s", d.source, d.namespace())

	l, err := startLighterman(ctx, d.binary, d.dir, d.place.kubeconfig, d.namespace())
	if err != nil {
		return err
	}
	stopping := make(chan struct{})
	go func() {
		select {
		case <-stopping:
		case <-l.done:
			d.fail(l.died())
		}
	}()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		close(stopping)
		return l.stop()
	}
	defer func() {
		if cause := context.Cause(ctx); cause != nil {
			reason, _, _ := strings.Cut(cause.Error(), "\n")
			d.out.line("%s; stopping lighterman", reason)
			if errors.Is(cause, errCluster) {
				l.kill() // it could only wait for answers
			}
		}
		if stopErr := stop(); err == nil { // else it may be what failed, and is known
			err = stopErr
		}
	}()
	if err := d.waitForTemplate(ctx, l); err != nil {
		return err
	}
	tasks, err := d.sendAndFollow(ctx)
	if err != nil {
		return err
	}
	// Asked before lighterman stops, since at its end it gives back what it holds; and what it still did is seen after it.
	remains, err := d.queue.left(ctx)
	if err != nil {
		return err
	}
	if err := stop(); err != nil {
		return fmt.Errorf("stopping lighterman: %w", err)
	}
	return d.judge(ctx, tasks, remains)
}

// waitForTemplate returns when lighterman has checked the template and takes messages.
func (d *demo) waitForTemplate(ctx context.Context, l *lighterman) error {
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		state, err := l.state(ctx)
		if state == "misconfigured" {
			err = fmt.Errorf("lighterman refuses the template:%s", templateWarnings(ctx, d.place.client, d.namespace(), d.manifest.template.Name))
		}
		return state == "running", err
	})
	if err != nil {
		return fmt.Errorf("waiting for lighterman to take the template up: %w", err)
	}
	d.out.line("lighterman runs")
	return nil
}

// sendAndFollow returns what became of each message once nothing is under way any more.
func (d *demo) sendAndFollow(ctx context.Context) (map[string]*task, error) {
	watching, stopWatching := context.WithCancel(ctx)
	f, err := startFollower(watching, d.place.client, d.namespace(), d.tasks)
	if err != nil {
		stopWatching()
		return nil, err
	}
	defer f.factory.Shutdown()
	defer stopWatching()
	payloads := make([]string, d.tasks)
	for i := range payloads {
		payloads[i] = payload(i)
	}
	d.out.line("sending %d messages, as:\n  %s", d.tasks, payloads[0])
	began := time.Now()
	err = d.queue.send(ctx, payloads, func(i int, id string, at time.Time) { f.sent(id, payloads[i], at) })
	if err != nil {
		return nil, err
	}
	if err := d.follow(ctx, f, began); err != nil {
		return nil, err
	}
	return f.snapshot()
}

// follow shows the progress until every message is done or has failed. When nothing moves for long, it says why.
func (d *demo) follow(ctx context.Context, f *follower, began time.Time) error {
	const long = 15 * time.Second
	ticker := time.NewTicker(d.out.every())
	defer ticker.Stop()
	last, moved := counts{}, time.Now()
	for {
		now := f.counts()
		if now != last {
			last, moved = now, time.Now()
		}
		d.out.progress(now, time.Since(began), now.finished())
		if now.finished() {
			return nil
		}
		if time.Since(moved) > long {
			moved = time.Now()
			d.note(ctx, f)
		}
		select {
		case <-ctx.Done():
			return d.unfinished(ctx, f, now)
		case <-f.changed:
		case <-ticker.C:
		}
	}
}

// note tells what may be in the way.
func (d *demo) note(ctx context.Context, f *follower) {
	if why := whyWaiting(ctx, d.place.client, d.namespace(), f.waiting()); why != "" {
		d.out.line("%s", why)
	}
	if warnings := templateWarnings(ctx, d.place.client, d.namespace(), d.manifest.template.Name); warnings != "" {
		d.out.line("lighterman says of the template:%s", warnings)
	}
}

// unfinished says what is missing at an early end.
func (d *demo) unfinished(ctx context.Context, f *follower, c counts) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, errCluster) {
		d.note(context.WithoutCancel(ctx), f)
	}
	return fmt.Errorf("%w; %d of %d messages are done, %d failed, %d are still queued and %d under way",
		context.Cause(ctx), c.done, d.tasks, c.failed, c.queued, c.running)
}

// judge decides whether all is as it should be, and sums up.
func (d *demo) judge(ctx context.Context, tasks map[string]*task, remains left) error {
	var wrong []error
	failed := 0
	for _, t := range tasks {
		if t.failed {
			failed++
		}
	}
	if failed > 0 {
		warnings := templateWarnings(ctx, d.place.client, d.namespace(), d.manifest.template.Name)
		wrong = append(wrong, fmt.Errorf("the Jobs of %d of %d messages failed%s", failed, d.tasks, warnings))
	}
	if len(tasks) != d.tasks {
		wrong = append(wrong, fmt.Errorf("%d messages were sent, and there are Jobs for %d", d.tasks, len(tasks)))
	}
	wrong = append(wrong, verify(ctx, d.place.client, d.namespace(), tasks))
	if remains.messages != 0 || remains.poisoned != 0 {
		wrong = append(wrong, fmt.Errorf("something is left: %s", remains.words))
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	maxInFlight := d.manifest.template.Annotations[annotation.Prefix+"/"+annotation.KeyMaxInFlight]
	d.out.line("")
	_, err := io.WriteString(d.out, summarise(tasks, remains.words, maxInFlight).String())
	d.out.line("")
	return err
}

// withLogs says where to look further.
func withLogs(err error, dir string) error {
	err = errors.Join(err, os.RemoveAll(filepath.Join(dir, "lighterman")))
	var logs []string
	for _, pattern := range []string{"*.log", "cluster/*.log"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern))
		logs = append(logs, names...)
	}
	if len(logs) == 0 {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return fmt.Errorf("%w\nlogs:\n  %s", err, strings.Join(logs, "\n  "))
}
