package speed

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// process is a child whose processor time is measured.
type process struct {
	b    *testing.B
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how it ended
}

// start starts a child. What it writes to standard error is shown if the benchmark fails.
func start(b *testing.B, cmd *exec.Cmd) *process {
	b.Helper()
	p := &process{b: b, cmd: cmd, log: filepath.Join(b.TempDir(), "log"), done: make(chan struct{})}
	file := must(os.Create(p.log))(b)
	defer func() { _ = file.Close() }()
	cmd.Stderr = file
	// Not killed when the benchmark's context ends, which is before its cleanups.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := spawn.Start(cmd); err != nil {
		b.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	b.Cleanup(func() {
		p.stop()
		if b.Failed() {
			b.Logf("the end of the log of %s:\n%s", filepath.Base(cmd.Path), p.tail())
		}
	})
	return p
}

// lighterman runs lighterman for one namespace.
func (a *arena) lighterman(namespace string) *process {
	a.Helper()
	binary := must(build())(a.B)
	return start(a.B, exec.CommandContext(a.Context(), binary, "run", "--kubeconfig", a.kubeconfig, "--namespace", namespace,
		"--metrics-addr", "127.0.0.1:0"))
}

// kill ends the child as a crash would.
func (p *process) kill() {
	p.b.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.b.Fatal(err)
	}
	<-p.done
}

func (p *process) tail() []byte {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	return bytes.Join(lines[max(len(lines)-20, 0):], nil)
}

// stop ends the child as Kubernetes would.
func (p *process) stop() {
	p.b.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.b.Errorf("%s did not stop within 15 s of SIGTERM", p.cmd.Path)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// ticksPerSecond is the unit of the times in /proc/<pid>/stat; Linux has told no other to programs for decades.
const ticksPerSecond = 100

// cpu is the processor time that the child has used.
func (p *process) cpu() time.Duration {
	p.b.Helper()
	used, err := cpuOf(p.cmd.Process.Pid)
	if err != nil {
		p.b.Fatalf("%v; the end of the log:\n%s", err, p.tail())
	}
	return used
}

// cpuOf is the processor time that a process has used, in user and kernel mode.
func cpuOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The second field, the program's name in parentheses, may hold spaces; utime and stime are the 14th and 15th.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}
