package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// stopLimit is how long lighterman promises to take for an end by SIGTERM, and some more for a busy machine.
const stopLimit = 12 * time.Second

// A replica is one of the places that a lighterman runs in: as a pod of a Deployment, it is started anew when it ends. It has a way of its
// own to the API server.
type replica struct {
	name       string
	dir        string
	program    string
	kubeconfig string
	proxy      *httpProxy
	args       []string
	died       func(error) // told of an end that nobody asked for

	runs    atomic.Int64
	current *lighterman
}

// process names the process that runs now, among all that have run in this place.
func (r *replica) process() string { return fmt.Sprintf("%s-%d", r.name, r.runs.Load()) }

// A lighterman is one process.
type lighterman struct {
	cmd      *exec.Cmd
	log      string
	metrics  string // URL
	identity string // what it writes into a lock that it holds
	done     chan struct{}
	err      error // how it ended; written before done is closed

	mu    sync.Mutex
	asked bool // guarded by mu; its end is wanted
}

// start starts a new process, and returns when it has said who it is.
func (r *replica) start(ctx context.Context) error {
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	r.runs.Add(1)
	args := append([]string{"run", "--kubeconfig=" + r.kubeconfig, "--metrics-addr=" + address, "--log-format=json", "--log-level=debug"}, r.args...)
	l := &lighterman{
		cmd:     exec.Command(r.program, args...), //nolint:gosec,noctx // what we have just built; it is ended by us
		log:     filepath.Join(r.dir, r.process()+".log"),
		metrics: "http://" + address + "/metrics",
		done:    make(chan struct{}),
	}
	log, err := os.OpenFile(l.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	l.cmd.Stdout, l.cmd.Stderr = log, log
	if err := spawn.Start(l.cmd); err != nil {
		return fmt.Errorf("starting %s: %w", r.name, err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.done)
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.asked {
			r.died(fmt.Errorf("%s ended unasked (%w); its log is %s", r.name, orZero(l.err), l.log))
		}
	}()
	r.current = l
	return poll(ctx, "the first words of "+r.name, 15*time.Second, func(context.Context) (bool, error) {
		l.identity, err = identityIn(l.log)
		return l.identity != "", err
	})
}

func orZero(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// identityIn finds the identity that a process logs at its start; empty as long as it has not.
func identityIn(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // a log that we have opened
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var entry struct{ Msg, Identity string }
		if err := json.Unmarshal(lines.Bytes(), &entry); err == nil && entry.Msg == "starting" {
			return entry.Identity, nil
		}
	}
	return "", lines.Err()
}

func (l *lighterman) signal(s syscall.Signal) error {
	if err := l.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("sending %v to lighterman: %w", s, err)
	}
	return nil
}

func (l *lighterman) expectEnd() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = true
}

func (l *lighterman) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// kill ends the process as a crash would.
func (l *lighterman) kill() error {
	l.expectEnd()
	err := l.signal(syscall.SIGKILL)
	<-l.done
	return err
}

// stop ends the process as Kubernetes would. It must end well, and in time.
func (l *lighterman) stop() error {
	l.expectEnd()
	began := time.Now()
	if err := l.signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(2 * stopLimit)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
		return errors.Join(fmt.Errorf("it did not end within %v of SIGTERM", 2*stopLimit), l.kill())
	}
	if took := time.Since(began); took > stopLimit {
		return fmt.Errorf("it took %v to end after SIGTERM", took.Round(time.Millisecond))
	}
	if l.err != nil {
		return fmt.Errorf("SIGTERM ended it with %w", l.err)
	}
	return nil
}

// read reads its metrics.
func (l *lighterman) read(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.metrics, http.NoBody)
	if err != nil {
		return "", err
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	return string(text), err
}

// sumOf adds up all series of a metric.
func sumOf(metrics, name string) float64 {
	var sum float64
	for line := range strings.Lines(metrics) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err == nil {
			sum += value
		}
	}
	return sum
}

// templatesIn counts the templates in a state.
func templatesIn(metrics, state string) int {
	n := 0
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "lighterman_template_state{") && strings.Contains(line, `state="`+state+`"`) &&
			strings.HasSuffix(strings.TrimSpace(line), " 1") {
			n++
		}
	}
	return n
}

func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// poll asks until the answer is yes. The last error is told where it does not come in time.
func poll(ctx context.Context, what string, limit time.Duration, ask func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%v have passed", limit))
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := ask(ctx)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(context.Cause(ctx), err))
		case <-ticker.C:
		}
	}
}
