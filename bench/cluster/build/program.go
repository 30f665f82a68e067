package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program builds one package of any module into a folder and returns the program's path. Other than a set it changes with every
// line of its source, so it is go that decides whether there is anything to do: the last result is kept, and where it still
// is good, this takes a moment.
func Program(ctx context.Context, progress io.Writer, module, pkg, dir string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	name := filepath.Base(pkg)
	kept := filepath.Join(cache, "programs")
	if err := os.MkdirAll(kept, 0o750); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, progress, filepath.Join(kept, name+".lock"), name)
	if err != nil {
		return "", err
	}
	defer unlock()
	meter := startMeter(progress, name)
	err = (&builder{source: module, out: dir, meter: meter}).goBuild(ctx, "-o", filepath.Join(kept, name), pkg)
	meter.stop(err)
	if err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	// The next build replaces the kept one, maybe while ours runs.
	return filepath.Join(dir, name), copyProgram(filepath.Join(dir, name), filepath.Join(kept, name))
}

func copyProgram(to, from string) (err error) {
	source, err := os.Open(from) //nolint:gosec // what was just built
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o700) //nolint:gosec // a program must be executable
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// ModuleDir finds the sources of a module that the bench module uses, or of itself.
func ModuleDir(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module) //nolint:gosec // the callers name modules of this repository
	cmd.Env = goEnv()
	out, err := cmd.Output()
	if dir := strings.TrimSpace(string(out)); err == nil && dir != "" {
		return dir, nil
	}
	wd, _ := os.Getwd()
	return "", fmt.Errorf("the sources of %s cannot be found from %s; run from inside bench/ (%w)", module, wd, describe(err))
}
