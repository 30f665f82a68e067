// Package clustertest gives the tests of a package one cluster, and each test a namespace of its own.
package clustertest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

// shared is the cluster of the package under test. Main writes it before any test runs.
var shared *localcluster.Cluster

// Main starts the package's cluster, runs its tests, and stops the cluster. TestMain calls it and exits with what it returns.
func Main(m *testing.M, config localcluster.Config) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cluster, err := localcluster.Start(ctx, config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting the cluster:", err)
		return 1
	}
	shared = cluster
	code := m.Run()
	if err := cluster.Stop(context.WithoutCancel(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the cluster:", err)
		return 1
	}
	return code
}

// Get returns the package's cluster.
func Get(t testing.TB) *localcluster.Cluster {
	t.Helper()
	if shared == nil {
		t.Fatal("no cluster: TestMain must call clustertest.Main")
	}
	return shared
}

// Namespace makes a namespace for the test, in which pods can be created, and has it deleted when the test ends.
func Namespace(t testing.TB) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(Get(t).RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	namespace, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix(t.Name())},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		if err := client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("deleting the namespace: %v", err)
		}
	})
	err = wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		return localcluster.NamespaceReady(ctx, client, namespace.Name)
	})
	if err != nil {
		t.Fatalf("waiting for namespace %s: %v", namespace.Name, err)
	}
	return namespace.Name
}

// prefix makes the beginning of a namespace's name of a test's, so that a person knows whose it is.
func prefix(test string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, test)
	return strings.Trim(name[:min(len(name), 40)], "-") + "-"
}
