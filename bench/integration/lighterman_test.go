package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
)

// process is a running lighterman.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended

	mu    sync.Mutex
	log   []map[string]any
	raw   bytes.Buffer
	all   bytes.Buffer  // with what client-go logs
	grown chan struct{} // closed and replaced when the log grows
}

// runLighterman starts lighterman for one namespace. It ends with the test, by SIGTERM, and must then end well.
func runLighterman(t *testing.T, namespace string, args ...string) *process {
	t.Helper()
	p := &process{t: t, done: make(chan struct{}), grown: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), binary, append([]string{
		"run", "--kubeconfig", clustertest.Get(t).Kubeconfig, "--namespace", namespace, "--lock-namespace", namespace,
		"--metrics-addr", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug",
	}, args...)...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(out)
	}()
	go func() {
		defer close(p.done)
		<-read
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("lighterman's log:\n%s", p.text())
		}
	})
	return p
}

func (p *process) read(out io.Reader) {
	lines := bufio.NewReader(out)
	for ended := error(nil); ended == nil; {
		var line []byte
		line, ended = lines.ReadBytes('\n')
		var entry map[string]any
		err := json.Unmarshal(line, &entry)
		p.mu.Lock()
		p.all.Write(line)
		if err == nil && entry["component"] != "client-go" {
			p.log = append(p.log, entry)
		}
		if err != nil || entry["component"] != "client-go" {
			p.raw.Write(line)
		}
		close(p.grown)
		p.grown = make(chan struct{})
		p.mu.Unlock()
	}
}

// stop ends lighterman as Kubernetes would, and checks that it keeps its promise: a clean end within ten seconds.
func (p *process) stop() {
	p.t.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	began := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Errorf("stopping lighterman: %v", err)
	}
	select {
	case <-p.done:
		if p.err != nil {
			p.t.Errorf("lighterman ended with %v", p.err)
		}
		if took := time.Since(began); took > 10*time.Second {
			p.t.Errorf("lighterman took %v to stop, more than 10 s", took)
		}
	case <-time.After(20 * time.Second):
		p.t.Errorf("lighterman did not stop within 20 s of SIGTERM")
		p.kill()
	}
	if text := p.text(); strings.Contains(text, "DATA RACE") {
		p.t.Errorf("data race in lighterman:\n%s", text)
	}
}

// kill ends lighterman as a crash would.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Errorf("killing lighterman: %v", err)
	}
	<-p.done
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.raw.String()
}

// output is all that lighterman has written.
func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.String()
}

// logged is the log entries whose message contains text.
func (p *process) logged(text string) []map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []map[string]any
	for _, entry := range p.log {
		if msg, _ := entry["msg"].(string); strings.Contains(msg, text) {
			found = append(found, entry)
		}
	}
	return found
}

// waitForLog waits until a line with the text has been logged, and returns the first.
func (p *process) waitForLog(text string) map[string]any {
	p.t.Helper()
	limit := time.After(time.Minute)
	for {
		p.mu.Lock()
		grown := p.grown
		p.mu.Unlock()
		if found := p.logged(text); len(found) > 0 {
			return found[0]
		}
		select {
		case <-grown:
		case <-p.done:
			p.t.Fatalf("lighterman ended (%v) before it logged %q", p.err, text)
		case <-limit:
			p.t.Fatalf("lighterman did not log %q within a minute", text)
		}
	}
}

// get reads a page of lighterman's HTTP server.
func (p *process) get(path string) (status int, body string) {
	p.t.Helper()
	addr, _ := p.waitForLog("serving metrics and health")["addr"].(string)
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		p.t.Fatalf("reading %s: %v", path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("reading %s: %v", path, err)
	}
	return resp.StatusCode, string(text)
}

// metric is the value of the one series that starts with prefix; the labels stand in alphabetical order.
func (p *process) metric(format string, args ...any) string {
	p.t.Helper()
	prefix := fmt.Sprintf(format, args...) + " "
	_, body := p.get("/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
