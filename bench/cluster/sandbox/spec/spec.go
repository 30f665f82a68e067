// Package spec is what a process node tells the sandbox: how one container is to run.
//
// It travels as gob on the sandbox's standard input, since JSON would replace the bytes of a Secret that are no UTF-8.
package spec

// A Container is one process and the world that it sees.
type Container struct {
	// Root is an empty folder on which the container's file system is put together. Where it is empty the container runs
	// on the host's file system as it is, and Mounts must be empty.
	Root     string
	Mounts   []Mount
	Hostname string

	Args []string
	Env  []string
	Dir  string
}

// A Mount shows a file or folder of the host at another path in the container.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// Exit codes of a sandbox that did not start its container. The reason is on the report pipe, which is file
// descriptor 3: it stays empty and is closed when the container has started.
const (
	ExitSetup = 125 // the file system could not be put together
	ExitStart = 127 // the program could not be executed
)

// ReportFD is the number of the report pipe in the sandbox.
const ReportFD = 3
