package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A state is the folder of a named cluster: who runs it, and since when.
//
// The one who runs it holds a lock on the file "lock", which the kernel drops with the process. So a cluster whose lock is free
// is not running, whatever the other files say. They name the process, for down.
type state struct{ name, dir string }

// An owner is the process that runs a cluster. The time of its start tells it from a later process of the same number.
type owner struct {
	PID        int    `json:"pid"`
	Started    string `json:"started"`
	Kubeconfig string `json:"kubeconfig,omitempty"` // set when the cluster is ready
}

func (s state) data() string      { return filepath.Join(s.dir, "data") }
func (s state) lockFile() string  { return filepath.Join(s.dir, "lock") }
func (s state) ownerFile() string { return filepath.Join(s.dir, "owner.json") }
func (s state) outputFile() string {
	return filepath.Join(s.dir, "up.log")
}

// claim makes this process the one that runs the cluster, with an empty data folder.
func (s state) claim() (release func(), err error) {
	lock, err := os.OpenFile(s.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("cluster %q is running already; stop it with 'down --name %s', or choose another --name", s.name, s.name)
	}
	release = func() {
		_ = os.Remove(s.ownerFile())
		_ = lock.Close()
	}
	if err := errors.Join(os.RemoveAll(s.data()), s.writeOwner("")); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func (s state) ready(kubeconfig string) error { return s.writeOwner(kubeconfig) }

func (s state) writeOwner(kubeconfig string) error {
	started, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	text, err := json.Marshal(owner{os.Getpid(), started, kubeconfig})
	if err != nil {
		return err
	}
	temporary := s.ownerFile() + ".new"
	return errors.Join(os.WriteFile(temporary, text, 0o600), os.Rename(temporary, s.ownerFile()))
}

// readOwner returns who runs the cluster, or nil.
func (s state) readOwner() (*owner, error) {
	text, err := os.ReadFile(s.ownerFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var o owner
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it", s.ownerFile(), err)
	}
	if !o.runs() { // left by a process that was killed
		return nil, nil
	}
	return &o, nil
}

func (o *owner) runs() bool {
	started, err := startTime(o.PID)
	return err == nil && started == o.Started
}

// startTime is when a process began, in ticks since boot: field 22 of its stat line, whose second field may contain anything.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	line := string(text)
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	const afterName = 22 - 3
	if len(fields) <= afterName || fields[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[afterName], nil
}

// stop ends the cluster's process and waits until it is gone.
func (s state) stop(ctx context.Context) error {
	o, err := s.readOwner()
	if err != nil {
		return err
	}
	if o == nil {
		return fmt.Errorf("cluster %q is not running; 'up --name %s' starts it", s.name, s.name)
	}
	if err := syscall.Kill(o.PID, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping cluster %q (process %d): %w", s.name, o.PID, err)
	}
	return poll(ctx, func() (bool, error) { return !o.runs(), nil })
}

// upDetached runs `up` in a process of its own and waits until the cluster is ready.
func upDetached(ctx context.Context, s state, args []string) error {
	if o, err := s.readOwner(); err != nil || o != nil {
		return errors.Join(err, fmt.Errorf("cluster %q is running already; stop it with 'down --name %s'", s.name, s.name))
	}
	output, err := os.Create(s.outputFile())
	if err != nil {
		return err
	}
	defer func() { _ = output.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The last flag wins: the same command line again, but in the foreground of its own session.
	cmd := exec.Command(self, append(append([]string{"up"}, args...), "--detach=false")...) //nolint:gosec,noctx // this very program, which must outlive us
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	follow, err := os.Open(s.outputFile())
	if err != nil {
		return err
	}
	defer func() { _ = follow.Close() }()
	err = poll(ctx, func() (bool, error) {
		_, _ = follow.WriteTo(os.Stderr)
		select {
		case err := <-ended:
			return false, fmt.Errorf("the cluster did not start: %w", errors.Join(err, errors.New("see "+s.outputFile())))
		default:
		}
		o, err := s.readOwner()
		return o != nil && o.Kubeconfig != "", err
	})
	if err != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return err
	}
	_, _ = follow.WriteTo(os.Stderr)
	o, err := s.readOwner()
	if err != nil || o == nil {
		return errors.Join(err, errors.New("the cluster ended as soon as it was ready; see "+s.outputFile()))
	}
	fmt.Printf("export KUBECONFIG=%s\n", o.Kubeconfig)
	return nil
}

func poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
