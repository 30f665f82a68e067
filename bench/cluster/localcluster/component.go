package localcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// stopTimeout is how long a component may take to end before it is killed. Nothing in it is worth a longer wait.
const stopTimeout = 5 * time.Second

var errPortTaken = errors.New("a port was taken by another process")

// A component is one supervised part of the cluster: a child process, or a process node in this process.
type component struct {
	name string
	log  string                  // path; shown when it dies
	run  func() (*run, error)    // starts it, once more after each end
	fail func(*component, error) // told of an end that nobody asked for

	mu      sync.Mutex
	current *run // guarded by mu; nil while it is stopped on purpose
}

// A run is one life of a component.
type run struct {
	ask, kill func()        // to end, and at once
	done      chan struct{} // closed when it has ended
	err       error         // why; written before done is closed
}

func (c *component) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil {
		return fmt.Errorf("%s runs already; kill it first", c.name)
	}
	r, err := c.run()
	if err != nil {
		return fmt.Errorf("starting %s: %w", c.name, err)
	}
	c.current = r
	go func() {
		<-r.done
		c.mu.Lock()
		unasked := c.current == r
		c.mu.Unlock()
		if unasked {
			c.fail(c, r.err)
		}
	}()
	return nil
}

// take makes the end of the current run one that was asked for.
func (c *component) take() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.current
	c.current = nil
	return r
}

func (c *component) stop(ctx context.Context) {
	r := c.take()
	if r == nil {
		return
	}
	r.ask()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-r.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	r.kill()
	<-r.done
}

// child is a component that is a process of its own.
func (c *Cluster) child(name, program string, args []string) *component {
	log := filepath.Join(c.Dir, name+".log")
	args = append(args, c.config.ExtraArgs[name]...)
	return &component{name: name, log: log, fail: c.componentDied, run: func() (*run, error) {
		file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // below the cluster's folder
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		cmd := exec.Command(program, args...) //nolint:gosec,noctx // what we have built; it lives until it is stopped
		cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, file, file
		if err := spawn.Start(cmd); err != nil {
			return nil, err
		}
		r := &run{
			ask:  func() { _ = cmd.Process.Signal(syscall.SIGTERM) },
			kill: func() { _ = cmd.Process.Kill() },
			done: make(chan struct{}),
		}
		go func() {
			r.err = cmd.Wait()
			close(r.done)
		}()
		return r, nil
	}}
}

// add starts a component and remembers it for Stop.
func (c *Cluster) add(component *component) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return errors.New("the cluster is being stopped")
	}
	c.components = append(c.components, component)
	return component.start()
}

func (c *Cluster) componentDied(dead *component, err error) {
	if err == nil {
		err = errors.New("exit status 0")
	}
	tail := logTail(dead.log)
	if strings.Contains(tail, "address already in use") {
		err = fmt.Errorf("%w: %w", errPortTaken, err)
	}
	err = fmt.Errorf("%s died: %w; the end of its log %s:\n%s", dead.name, err, dead.log, tail)
	_, _ = fmt.Fprintln(c.progress, err)
	select {
	case c.failures <- err:
	default: // the first failure is the one that explains the others
	}
}

func logTail(path string) string {
	const lines = 12
	text, err := os.ReadFile(path) //nolint:gosec // a log that we have opened
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// Names of components, for Kill and Restart. Process nodes are components by the names of their Node objects.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kwok              = "kwok"
)

// Kill ends one component at once, as a crash would, and returns when it is gone.
func (c *Cluster) Kill(name string) error {
	component, err := c.component(name)
	if err != nil {
		return err
	}
	if r := component.take(); r != nil {
		r.kill()
		<-r.done
	}
	return nil
}

// Restart starts a component that was killed, on the same ports and data. It does not wait until the component is ready,
// except for the API server.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	component, err := c.component(name)
	if err != nil {
		return err
	}
	if err := component.start(); err != nil {
		return err
	}
	if name == APIServer {
		return c.waitForAPIServer(ctx)
	}
	return nil
}

func (c *Cluster) component(name string) (*component, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, component := range c.components {
		if component.name == name {
			return component, nil
		}
		names = append(names, component.name)
	}
	return nil, fmt.Errorf("the cluster has no component %q; it has %s", name, strings.Join(names, ", "))
}
