package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/lighterman-dev/lighterman/bench/cluster/spawn"
)

// A builder runs the go command for one set.
type builder struct {
	source string // where go runs
	out    string // where the results go
	meter  *meter
}

func (b *builder) goOutput(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the arguments are this package's own
	cmd.Dir, cmd.Env = b.source, goEnv()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), describe(err))
	}
	return strings.TrimSpace(string(out)), nil
}

// goBuild runs go build. With -v it names each package that it compiles, which is what drives the progress line; any
// other output is a compiler's or a downloader's message and is kept for the error.
func (b *builder) goBuild(ctx context.Context, args ...string) error {
	// A go command that is killed leaves its working folder behind; this one goes with what it was to build.
	work, err := os.MkdirTemp(b.out, ".work-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	cmd := exec.Command("go", append([]string{"build", "-v"}, args...)...) //nolint:gosec,noctx // own arguments; the whole group is killed below
	cmd.Dir, cmd.Env = b.source, append(goEnv(), "GOTMPDIR="+work)
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	cmd.Stdout, cmd.Stderr = write, write
	err = spawn.Start(cmd)
	_ = write.Close()
	if err != nil {
		return fmt.Errorf("starting the go command: %w; install Go and put it on the PATH", err)
	}
	// The compilers are in go's process group: a cancelled build must not leave them running.
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()

	var messages []string
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		if line := lines.Text(); strings.ContainsAny(line, " \t:") {
			if !strings.HasPrefix(line, "go: downloading") {
				messages = append(messages, line)
			}
			b.meter.note(line)
		} else {
			b.meter.compiled()
		}
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("go build: %w", errors.Join(err, errors.New(strings.Join(messages, "\n"))))
	}
	return nil
}
