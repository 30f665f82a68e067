package main

import (
	"bytes"
	"context"
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
	"syscall"
	"time"

	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// A lighterman is the real program, as a child process.
type lighterman struct {
	cmd     *exec.Cmd
	log     string
	metrics string        // URL
	done    chan struct{} // closed when it has ended
	err     error         // why; written before done is closed
}

func startLighterman(ctx context.Context, program, dir, kubeconfig, namespace string) (*lighterman, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	args := []string{"run", "--namespace=" + namespace, "--metrics-addr=" + address}
	if kubeconfig != "" {
		args = append(args, "--kubeconfig="+kubeconfig)
	}
	l := &lighterman{
		cmd:     exec.Command(program, args...), //nolint:gosec,noctx // what we have just built; stop ends it
		log:     filepath.Join(dir, "lighterman.log"),
		metrics: "http://" + address + "/metrics", done: make(chan struct{}),
	}
	log, err := os.OpenFile(l.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	l.cmd.Stdout, l.cmd.Stderr = log, log
	if err := spawn.Start(l.cmd); err != nil {
		return nil, fmt.Errorf("starting lighterman: %w", err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.done)
	}()
	return l, nil
}

// died says what a lighterman that has ended unasked left behind.
func (l *lighterman) died() error {
	err := l.err
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("lighterman has ended: %w; the end of its log:\n%s", err, tail(l.log))
}

// stop asks it to end in good order, which it does within ten seconds; more than that is a failure.
func (l *lighterman) stop() error {
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	const patience = 15 * time.Second
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-l.done:
		return l.err
	case <-timer.C:
		_ = l.cmd.Process.Kill()
		<-l.done
		return fmt.Errorf("lighterman did not stop within %v; the end of its log:\n%s", patience, tail(l.log))
	}
}

func (l *lighterman) kill() { _ = l.cmd.Process.Kill() }

// state is what lighterman says in its metrics of the only template that it sees: running, misconfigured, …; empty as long as
// it says nothing.
func (l *lighterman) state(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.metrics, nil)
	if err != nil {
		return "", err
	}
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", nil // it does not listen yet
	}
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return "", nil
	}
	return templateState(string(text)), nil
}

func templateState(metrics string) string {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "lighterman_template_state{") && strings.HasSuffix(strings.TrimSpace(line), "} 1") {
			_, state, _ := strings.Cut(line, `state="`)
			state, _, _ = strings.Cut(state, `"`)
			return state
		}
	}
	return ""
}

func tail(path string) string {
	const lines = 12
	text, err := os.ReadFile(path) //nolint:gosec // our own log
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// freePort is one that nobody listens on right now. Should somebody take it before lighterman does, lighterman says so.
func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
