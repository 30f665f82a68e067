// Package spawn starts child processes that cannot outlive this process.
//
// Linux can signal a child when its parent dies (PR_SET_PDEATHSIG), which holds even for a parent killed with SIGKILL.
// But "parent" means the operating system thread that forked, and Go retires threads at will. So every child
// is forked on one thread that is locked to one goroutine and lives as long as the process.
//
// Children get a process group of their own: Ctrl-C in a terminal reaches only us, and we stop them in our order.
package spawn

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

type request struct {
	cmd  *exec.Cmd
	done chan error
}

var forker = sync.OnceValue(func() chan<- request {
	requests := make(chan request)
	go func() {
		runtime.LockOSThread()
		for r := range requests {
			r.done <- r.cmd.Start()
		}
	}()
	return requests
})

// Start is cmd.Start for a child that is killed when this process ends, however it ends.
// SysProcAttr may hold further attributes; a Pdeathsig that is set already is kept.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	r := request{cmd: cmd, done: make(chan error, 1)}
	forker() <- r
	return <-r.done
}
