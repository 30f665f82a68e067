package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
)

// errExited says that a server ended before it was ready, often since somebody else took its port in between.
var errExited = errors.New("the server ended before it was ready")

// process is one run of a server's program.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *tail
	done   chan struct{} // closed once the process was waited for
}

// launch starts a program and waits until ready answers nil. What it prints goes to the tail for error messages.
func launch(ctx context.Context, name, dir string, stdin io.Reader, ready func(context.Context) error, path string, args ...string) (*process, error) {
	p := &process{name: name, output: &tail{}, done: make(chan struct{})}
	// The program must outlive the context that its start is bound to, so it is not an exec.CommandContext.
	p.cmd = exec.Command(path, args...) //nolint:gosec,noctx // a test's own server, stopped by Stop, Kill or our death
	p.cmd.Dir = dir                     // whatever a server leaves in its working folder, it leaves there
	p.cmd.Stdin = stdin
	p.cmd.Stdout = p.output
	p.cmd.Stderr = p.output
	p.cmd.SysProcAttr = procAttr()

	started := make(chan error, 1)
	go func() {
		// Linux sends the parent-death signal when the *thread* that started a child ends. So this thread stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			// Whoever answered must be our own process, not a stranger on the same port.
			select {
			case <-p.done:
				return nil, fmt.Errorf("starting %s: %w: %s", name, errExited, p.output)
			default:
				return p, nil
			}
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("starting %s: %w: %s", name, errExited, p.output)
		case <-ctx.Done():
			p.signal(syscall.SIGKILL)
			return nil, fmt.Errorf("starting %s: not ready: %w (%w): %s", name, err, ctx.Err(), p.output)
		case <-tick.C:
		}
	}
}

// stop asks the process to end, and kills it if it does not.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		p.signal(syscall.SIGKILL)
		return fmt.Errorf("%s did not stop within %s: %s", p.name, stopTimeout, p.output)
	}
}

// kill ends the process without a chance to save anything.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.signal(syscall.SIGKILL)
}

// signal sends the signal; a fatal one is waited for.
func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(s)
	if s == syscall.SIGKILL {
		<-p.done
	}
}

// freePort finds a port that nobody listens on at the moment.
func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("finding a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// onFreePorts calls start with n free ports, and again with others if the server found one of them taken.
func onFreePorts(ctx context.Context, n int, start func(ports []int) error) error {
	var err error
	for range 3 {
		ports := make([]int, n)
		for i := range ports {
			if ports[i], err = freePort(ctx); err != nil {
				return err
			}
		}
		if err = start(ports); !errors.Is(err, errExited) {
			return err
		}
	}
	return err
}

// workFolder returns dir, or a new temporary folder where dir is empty, and what removes it again.
func workFolder(dir, pattern string) (string, func(), error) {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, fmt.Errorf("making the data folder: %w", err)
		}
		return dir, func() {}, nil
	}
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		return "", nil, fmt.Errorf("making a data folder: %w", err)
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

// tail keeps the last few kilobytes that a server printed.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - 4096; over > 0 {
		t.buf = bytes.Clone(t.buf[over:])
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := strings.TrimSpace(string(t.buf)); s != "" {
		return s
	}
	return "it printed nothing"
}

// TB is what the Run helpers need of a test.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Fatalf(format string, args ...any)
}
