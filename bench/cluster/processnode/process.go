package processnode

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lighterman-dev/lighterman/bench/cluster/sandbox/spec"
	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// A process is one run of a container.
type process struct {
	cmd      *exec.Cmd
	isolated bool
	done     chan struct{}
}

type launchSpec struct {
	args, env     []string
	dir, hostname string
	mounts        []spec.Mount
	scratch       string // a folder for the sandbox alone
	log           *os.File
	user          identity
}

// An identity is who a container's program sees itself as. On the host it is the user who runs the node.
type identity struct{ uid, gid int }

func runAs(pod *corev1.Pod, c *corev1.Container) identity {
	var id identity
	take := func(uid, gid *int64) {
		if uid != nil {
			id.uid = int(*uid)
		}
		if gid != nil {
			id.gid = int(*gid)
		}
	}
	if s := pod.Spec.SecurityContext; s != nil {
		take(s.RunAsUser, s.RunAsGroup)
	}
	if s := c.SecurityContext; s != nil {
		take(s.RunAsUser, s.RunAsGroup)
	}
	return id
}

// A startError says that the program could not be executed: the container has ended with it.
type startError struct{ message string }

func (e *startError) Error() string { return e.message }

func (n *Node) isolated() bool { return n.isolationErr == nil }

// probeIsolation tries the sandbox on itself: it says why containers cannot have namespaces.
func (n *Node) probeIsolation() error {
	if n.HostFilesystem {
		return errors.New("this node was told to run containers on the host's file system; unset HostFilesystem")
	}
	scratch := filepath.Join(n.Dir, "probe")
	p, err := n.launch(launchSpec{args: []string{n.Sandbox}, dir: "/", hostname: "probe", scratch: scratch})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoIsolation, err)
	}
	<-p.done
	return nil
}

// launch starts a container's program and returns once it runs.
func (n *Node) launch(l launchSpec) (*process, error) {
	c := spec.Container{Args: l.args, Env: l.env, Dir: l.dir, Hostname: l.hostname, Mounts: l.mounts}
	if c.Dir == "" {
		c.Dir = "/"
	}
	cmd := exec.Command(n.Sandbox) //nolint:gosec,noctx // our own program; it is ended with its container
	cmd.Args[0] = "sandbox"
	cmd.Env = []string{"GOMAXPROCS=1"} // of the sandbox, not of the container
	if l.log != nil {
		cmd.Stdout, cmd.Stderr = l.log, l.log
	}
	p := &process{cmd: cmd, isolated: n.isolated(), done: make(chan struct{})}
	if p.isolated {
		if err := os.MkdirAll(l.scratch, 0o750); err != nil {
			return nil, err
		}
		c.Root = l.scratch
		cmd.SysProcAttr = isolation(l.user)
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGHUP} // upon which the sandbox ends its process group
	}
	var input bytes.Buffer
	if err := gob.NewEncoder(&input).Encode(c); err != nil {
		return nil, err
	}
	cmd.Stdin = &input
	report, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = report.Close() }()
	cmd.ExtraFiles = []*os.File{write} // file descriptor spec.ReportFD
	err = spawn.Start(cmd)
	_ = write.Close()
	if err != nil {
		return nil, &waitError{[]string{"CreateContainerError"}, fmt.Errorf("starting the sandbox: %w", err)}
	}
	message, _ := io.ReadAll(report) // ends when the program runs, or the sandbox has given up
	if len(message) == 0 {
		go func() {
			_ = cmd.Wait() // the exit code is in ProcessState
			close(p.done)
		}()
		return p, nil
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() == spec.ExitStart {
		return nil, &startError{string(message)}
	}
	return nil, &waitError{[]string{"CreateContainerError"}, errors.New(string(message))}
}

// isolation makes namespaces that need no privilege. In its own user namespace the container is who it wants to be.
// CAP_SYS_ADMIN, which holds only in there, lets the sandbox mount when that is not root.
func isolation(user identity) *syscall.SysProcAttr {
	const capSysAdmin = 21
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: user.uid, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: user.gid, HostID: os.Getgid(), Size: 1}},
		AmbientCaps: []uintptr{capSysAdmin},
	}
}

// wait returns the exit code. A stop is a SIGTERM and, after the grace period, the end; the context's end is the end at once.
func (p *process) wait(ctx context.Context, stop *stopper) int32 {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
	case <-stop.ch:
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		grace := time.NewTimer(stop.grace)
		defer grace.Stop()
		select {
		case <-p.done:
		case <-ctx.Done():
			p.kill()
		case <-grace.C:
			p.kill()
		}
	}
	<-p.done
	state := p.cmd.ProcessState
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int32(status.Signal()) //nolint:gosec // there are 64 signals
	}
	return int32(state.ExitCode()) //nolint:gosec // the kernel keeps 8 bits
}

// kill ends the program and all that it started.
func (p *process) kill() {
	if p.isolated {
		_ = p.cmd.Process.Kill()
	} else {
		_ = p.cmd.Process.Signal(syscall.SIGHUP)
	}
}
