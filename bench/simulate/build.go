package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// repository is the root of the product's module, above the bench module that we run in.
func repository(ctx context.Context) (string, error) {
	env, err := goEnv(ctx, "GOMOD")
	if err != nil {
		return "", err
	}
	return filepath.Dir(filepath.Dir(env[0])), nil
}

// testBinary builds the tests of the dispatcher into dir, with the runtime that replays and with the edits of the product, and returns the
// file.
func testBinary(ctx context.Context, root, dir string, edits ...edit) (string, error) {
	env, err := goEnv(ctx, "GOROOT", "GOVERSION")
	if err != nil {
		return "", err
	}
	o := overlay{}
	if err := deterministicRuntime(o, env[0], env[1]); err != nil {
		return "", err
	}
	if err := o.apply(root, edits); err != nil {
		return "", err
	}
	file, err := o.write(dir)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "dispatcher.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", file, "-tags", "deterministic", "-vet=off", //nolint:gosec // own arguments
		"-ldflags=-s -w", "-o", binary, "./dispatcher")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the simulation: %w\n%s", err, out)
	}
	return binary, nil
}

// goEnv asks the go command for its settings.
func goEnv(ctx context.Context, names ...string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", append([]string{"env"}, names...)...).Output() //nolint:gosec // own arguments
	if err != nil {
		return nil, fmt.Errorf("asking the go command for %s: %w", strings.Join(names, ", "), err)
	}
	values := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(values) != len(names) {
		return nil, fmt.Errorf("go env %s answers %q", strings.Join(names, " "), out)
	}
	return values, nil
}
