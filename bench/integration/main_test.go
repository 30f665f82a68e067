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

// binary is the lighterman under test, built with the race detector.
var binary string

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
	binary = filepath.Join(dir, "lighterman")
	build := exec.CommandContext(context.Background(), "go", "build", "-race", "-o", binary, "./cmd/lighterman")
	build.Dir = "../.."
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building lighterman:", err)
		return 1
	}
	return clustertest.Main(m, localcluster.Config{ProcessNodes: 1, Progress: os.Stderr})
}
