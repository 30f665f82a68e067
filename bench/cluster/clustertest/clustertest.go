// Package clustertest gives Go tests a real cluster: one for all tests of a package, and a namespace for each.
//
//	func TestMain(m *testing.M) {
//		os.Exit(clustertest.Main(m, localcluster.Config{ProcessNodes: 1}))
//	}
//
//	func TestSomething(t *testing.T) {
//		client := clustertest.Client(t)
//		namespace := clustertest.Namespace(t)
//		…
//	}
//
// The cluster starts with the first test that asks for it: running one unit test of a package costs no cluster.
package clustertest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

// startTimeout leaves time for the first build of Kubernetes on a small machine.
const startTimeout = 40 * time.Minute

// shared is the package's cluster. Main writes start before any test runs.
var shared struct {
	start   func() (*localcluster.Cluster, error)
	mu      sync.Mutex
	cluster *localcluster.Cluster // guarded by mu
}

// Main runs a package's tests and then stops the cluster, if one was started. It returns the exit code. SIGINT and SIGTERM
// stop the cluster too.
func Main(m *testing.M, config localcluster.Config) int {
	if config.Progress == nil {
		config.Progress = os.Stderr
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	shared.start = sync.OnceValues(func() (*localcluster.Cluster, error) {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		c, err := localcluster.Start(ctx, config)
		shared.mu.Lock()
		defer shared.mu.Unlock()
		shared.cluster = c
		return c, err
	})
	// The tests themselves know nothing of the signal, so they are not waited for.
	unwatch := context.AfterFunc(ctx, func() {
		if err := stopShared(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the cluster:", err)
		}
		os.Exit(1)
	})
	code := m.Run()
	if !unwatch() {
		select {} // a signal came: the function above ends the process
	}
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the cluster:", err)
		return 1
	}
	return code
}

func stopShared() error {
	shared.mu.Lock()
	c := shared.cluster
	shared.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Stop(context.Background())
}

// Get returns the package's cluster, and starts it for the first test that asks.
func Get(t testing.TB) *localcluster.Cluster {
	t.Helper()
	if shared.start == nil {
		t.Fatal("this package has no cluster: call clustertest.Main in TestMain")
	}
	c, err := shared.start()
	if err != nil {
		t.Fatalf("starting the cluster: %v", err)
	}
	return c
}

// Client returns an administrator's client of the package's cluster, without a rate limit.
func Client(t testing.TB) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(Get(t).RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Namespace makes a namespace in which pods can be created at once. It is deleted after the test, which does not wait for that.
func Namespace(t testing.TB) string {
	t.Helper()
	client := Client(t)
	template := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	namespace, err := client.CoreV1().Namespaces().Create(t.Context(), template, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating a namespace: %v", err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("deleting namespace %s: %v", namespace.Name, err)
		}
	})
	Eventually(t, "namespace "+namespace.Name, func(ctx context.Context) (bool, error) {
		return localcluster.NamespaceReady(ctx, client, namespace.Name)
	})
	return namespace.Name
}

// Eventually asks until the answer is yes, for as long as half a minute. The last error is told when the test fails for it.
func Eventually(t testing.TB, what string, ask func(context.Context) (bool, error)) {
	t.Helper()
	var reason error
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, 30*time.Second, true,
		func(ctx context.Context) (bool, error) {
			var ok bool
			ok, reason = ask(ctx)
			return ok, nil
		})
	if err != nil {
		t.Fatalf("waiting for %s: %v; last: %v", what, err, reason)
	}
}
