// Package build compiles what a local cluster runs, from Go modules, into a cache folder.
//
// The programs' versions are pinned in modules of their own (../tools/kubernetes and ../tools/kwok), apart from the
// module of the benchmarks: a new dependency there must not cost ten minutes of compiling Kubernetes again.
// A set of programs is built once for each content of its go.mod and go.sum and each Go release. It appears under its
// final name only when it is complete, so an interrupted build leaves nothing that looks finished, and several
// processes that need the same set wait for one build.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const benchModule = "github.com/lighterman-dev/lighterman/bench"

// CacheVariable names the environment variable that overrides the cache folder.
const CacheVariable = "LIGHTERMAN_CACHE"

// CacheDir returns the folder that holds built programs and the data of named clusters.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for built programs: %w; set %s", err, CacheVariable)
	}
	return filepath.Join(dir, "lighterman"), nil
}

// Kubernetes builds etcd, kube-apiserver, kube-controller-manager and kube-scheduler where they are missing, and
// returns the folder that holds them.
func Kubernetes(ctx context.Context, progress io.Writer) (string, error) {
	return ensure(ctx, progress, set{
		title:  "Kubernetes and etcd",
		folder: "cluster/tools/kubernetes",
		key:    []string{"go.mod", "go.sum"},
		make:   makeKubernetes,
	})
}

// Kwok builds kwok where it is missing, and returns the folder that holds it and, in "stages", the simulated
// behaviour of nodes and pods that it is started with.
func Kwok(ctx context.Context, progress io.Writer) (string, error) {
	return ensure(ctx, progress, set{
		title:  "kwok",
		folder: "cluster/tools/kwok",
		key:    []string{"go.mod", "go.sum"},
		make:   makeKwok,
	})
}

// Sandbox builds the program that a process node starts its containers with, and returns its path.
func Sandbox(ctx context.Context, progress io.Writer) (string, error) {
	dir, err := ensure(ctx, progress, set{
		title:  "the container sandbox",
		folder: "cluster/sandbox",
		key:    []string{"*.go", "spec/*.go"},
		make: func(ctx context.Context, b *builder) error {
			return b.goBuild(ctx, "-ldflags", "-s -w", "-o", filepath.Join(b.out, "sandbox"), ".")
		},
	})
	return filepath.Join(dir, "sandbox"), err
}

func makeKubernetes(ctx context.Context, b *builder) error {
	const module = "k8s.io/kubernetes"
	version, err := b.goOutput(ctx, "list", "-m", "-f", "{{.Version}}", module)
	if err != nil {
		return err
	}
	// Without these the API server calls itself v0.0.0, and clients that ask for its version go astray.
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	flags := "-s -w"
	for name, value := range map[string]string{"gitVersion": version, "gitMajor": parts[0], "gitMinor": parts[1]} {
		flags += fmt.Sprintf(" -X k8s.io/component-base/version.%s=%s", name, value)
	}
	err = b.goBuild(ctx, "-ldflags", flags, "-o", b.out+"/",
		"go.etcd.io/etcd/server/v3",
		module+"/cmd/kube-apiserver", module+"/cmd/kube-controller-manager", module+"/cmd/kube-scheduler")
	if err != nil {
		return err
	}
	return os.Rename(filepath.Join(b.out, "server"), filepath.Join(b.out, "etcd"))
}

func makeKwok(ctx context.Context, b *builder) error {
	const module = "sigs.k8s.io/kwok"
	if err := b.goBuild(ctx, "-ldflags", "-s -w", "-o", filepath.Join(b.out, "kwok"), module+"/cmd/kwok"); err != nil {
		return err
	}
	// Only now is the module sure to have been downloaded: go tells no folder of one that is not there.
	dir, err := b.goOutput(ctx, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	for _, stage := range []string{
		"node/fast/node-initialize.yaml", "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
		"pod/fast/pod-ready.yaml", "pod/fast/pod-complete.yaml", "pod/fast/pod-delete.yaml",
	} {
		text, err := os.ReadFile(filepath.Join(dir, "kustomize/stage", stage)) //nolint:gosec // of a pinned module
		if err != nil {
			return fmt.Errorf("reading a stage of %s: %w", module, err)
		}
		target := filepath.Join(b.out, "stages", filepath.Base(stage))
		if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(target, text, 0o600); err != nil { //nolint:gosec // below the folder of this build
			return err
		}
	}
	return nil
}

// A set is what one build makes.
type set struct {
	title  string
	folder string   // of the module or package, below the bench module
	key    []string // files, relative to the folder, whose content decides whether a build is still good
	make   func(context.Context, *builder) error
}

func ensure(ctx context.Context, progress io.Writer, s set) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	bench, err := ModuleDir(ctx, benchModule)
	if err != nil {
		return "", err
	}
	source := filepath.Join(bench, s.folder)
	key, err := s.hash(source)
	if err != nil {
		return "", err
	}
	done := filepath.Join(cache, "bin", filepath.Base(s.folder)+"-"+key)
	if exists(done) {
		return done, nil
	}
	if err := os.MkdirAll(filepath.Dir(done), 0o750); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, progress, done+".lock", s.title)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(done) { // another process built it while we waited
		return done, nil
	}
	out, err := os.MkdirTemp(filepath.Dir(done), ".building-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(out) }() // gone already, by its new name, after a success
	meter := startMeter(progress, s.title)
	err = s.make(ctx, &builder{source: source, out: out, meter: meter})
	meter.stop(err)
	if err != nil {
		return "", fmt.Errorf("building %s: %w", s.title, err)
	}
	return done, errors.Join(os.Rename(out, done))
}

func (s set) hash(source string) (string, error) {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, pattern := range s.key {
		files, err := fs.Glob(os.DirFS(source), pattern)
		if err != nil {
			return "", err
		}
		for _, file := range files {
			text, err := os.ReadFile(filepath.Join(source, file)) //nolint:gosec // of this repository
			if err != nil {
				return "", err
			}
			_, _ = fmt.Fprintf(h, "%s %d\n", file, len(text))
			h.Write(text)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// goEnv keeps the user's flags and workspace out of the build: they would change what is built under the same key.
func goEnv() []string {
	return append(os.Environ(), "GOFLAGS=", "GOWORK=off")
}

func describe(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lock takes a lock on a file that the kernel drops when this process ends, however it ends.
func lock(ctx context.Context, progress io.Writer, path, title string) (func(), error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // below the cache folder
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = file.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if !told {
			_, _ = fmt.Fprintf(progress, "waiting for another process that builds %s\n", title)
			told = true
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
