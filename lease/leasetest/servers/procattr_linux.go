package servers

import "syscall"

// procAttr lets a server die with us, and keeps the terminal's Ctrl-C from reaching it before we stopped it ourselves.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
