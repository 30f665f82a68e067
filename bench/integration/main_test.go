// Package integration runs lighterman itself, as a process, on a real cluster with real queues: etcd, kube-apiserver, the Job
// controller and the scheduler of Kubernetes, a node that runs containers as processes, Azurite and redis-server.
package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

var (
	// binary is the lighterman under test, built with the race detector.
	binary string
	// reader is examples/payload/go.
	reader string
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lighterman-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	binary, reader = filepath.Join(dir, "lighterman"), filepath.Join(dir, "read_task")
	for _, args := range [][]string{{"-race", "-o", binary, "./cmd/lighterman"}, {"-o", reader, "./examples/payload/go"}} {
		build := exec.CommandContext(context.Background(), "go", append([]string{"build"}, args...)...)
		build.Dir = "../.."
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n", build, err)
			return 1
		}
	}
	return clustertest.Main(m, localcluster.Config{ProcessNodes: 1, Progress: os.Stderr})
}
