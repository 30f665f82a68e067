// Command sandbox runs one container of a process node: a local process that sees the volumes of its pod.
//
// The node starts it in new user, mount, PID and host name namespaces, none of which needs root. Here it builds the
// container's file system (root.go), starts the program and stays beside it as process 1, as `docker run --init` does:
// it hands on signals, reaps orphans and ends with the program's exit code. A PID namespace dies with
// its process 1, so however this process ends, nothing that the container started is left.
//
// It is a program of its own, not the node started again, because it must be small: it starts in about a millisecond.
package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/lighterman-dev/lighterman/bench/cluster/sandbox/spec"
)

func main() {
	// Capabilities and the parent-death signal belong to a thread, so everything happens on this one.
	runtime.LockOSThread()
	syscall.CloseOnExec(spec.ReportFD)

	var c spec.Container
	if err := gob.NewDecoder(os.Stdin).Decode(&c); err != nil {
		fail(spec.ExitSetup, fmt.Errorf("reading the container: %w", err))
	}
	isolated := c.Root != ""
	if !isolated {
		adoptOrphans()
	} else if err := enterRoot(c); err != nil {
		fail(spec.ExitSetup, err)
	}
	// Signals that come before the program runs wait here, instead of ending the sandbox.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)

	pid, err := start(c, isolated)
	if err != nil {
		fail(spec.ExitStart, err)
	}
	_ = syscall.Close(spec.ReportFD)
	go forward(signals, pid, isolated)

	code := reap(pid)
	if !isolated { // no namespace ends with us
		endDescendants()
	}
	os.Exit(code)
}

func fail(code int, err error) {
	_, _ = syscall.Write(spec.ReportFD, []byte(err.Error()))
	os.Exit(code)
}

func start(c spec.Container, isolated bool) (int, error) {
	if err := os.Chdir(c.Dir); err != nil {
		return 0, fmt.Errorf("workingDir: %w", err)
	}
	for _, variable := range c.Env {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			_ = os.Setenv("PATH", path)
		}
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	attributes := &syscall.SysProcAttr{Setsid: true}
	if isolated {
		dropAmbientCapabilities()
	} else {
		attributes.Pdeathsig = syscall.SIGKILL
	}
	pid, err := syscall.ForkExec(path, c.Args, &syscall.ProcAttr{ //nolint:gosec // running what it is told is its purpose
		Env:   c.Env,
		Files: []uintptr{null.Fd(), 1, 2},
		Sys:   attributes,
	})
	if err != nil {
		return 0, fmt.Errorf("exec: %q: %w", c.Args[0], err)
	}
	return pid, nil
}

// dropAmbientCapabilities gives up, for the program, what a user other than root needed to mount.
func dropAmbientCapabilities() {
	const prCapAmbient, clearAll = 47, 4
	_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, prCapAmbient, clearAll, 0, 0, 0, 0)
}

// forward hands signals to the program alone, not to its children, as a container runtime does. SIGHUP is how the node
// asks for an end at once where no PID namespace makes SIGKILL do that.
func forward(signals <-chan os.Signal, pid int, isolated bool) {
	for s := range signals {
		if s == syscall.SIGHUP && !isolated {
			_ = syscall.Kill(pid, syscall.SIGKILL) // and endDescendants follows
			continue
		}
		_ = syscall.Kill(pid, s.(syscall.Signal))
	}
}

// adoptOrphans makes this process the parent of whatever the program leaves behind, as process 1 of a namespace is.
func adoptOrphans() {
	const prSetChildSubreaper = 36
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
}

// endDescendants ends what the program left behind: each generation becomes ours when the one before has ended.
func endDescendants() {
	for {
		files, _ := filepath.Glob("/proc/self/task/*/children")
		for _, file := range files {
			text, _ := os.ReadFile(file) //nolint:gosec // of /proc
			for _, field := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// reap waits for the program, and meanwhile for every orphan that became a child of process 1.
func reap(pid int) int {
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return spec.ExitSetup
		case ended != pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}
