//go:build !linux

package servers

import "syscall"

// procAttr: only Linux can tie a child's life to ours; elsewhere a killed test may leave its servers behind.
func procAttr() *syscall.SysProcAttr { return nil }
