// Package localcluster runs a Kubernetes cluster on this machine, from programs that it builds itself: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler as child processes, with nodes of two kinds.
//
// A process node (../processnode) runs the containers of its pods as local processes: for tests and demonstrations. Simulated
// nodes (kwok) only claim to run them: for throughput. The label NodeLabel tells them apart; neither has a taint,
// so where a cluster has both, pods need a nodeSelector.
//
// Neither root, Docker nor downloaded binaries are needed. A cluster listens on 127.0.0.1 only, on free ports, and keeps all
// its data in one folder, so any number can run side by side. Its processes die with the process that
// started them, however that ends.
//
//	c, err := localcluster.Start(ctx, localcluster.Config{ProcessNodes: 1, Progress: os.Stderr})
//	defer c.Stop(context.Background())
//	client := kubernetes.NewForConfigOrDie(c.RESTConfig())
package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/lighterman-dev/lighterman/bench/cluster/build"
)

// NodeLabel is on every node; its value is the kind of node.
const (
	NodeLabel     = "bench.lighterman.dev/node"
	ProcessNode   = "process"
	SimulatedNode = "simulated"
)

// LockNamespace is where leader locks may be other than beside the Jobs, for the fence to find them.
const LockNamespace = "lighterman"

// Config says what a cluster consists of. The zero Config is a cluster without nodes.
type Config struct {
	// Dir holds the cluster's data, logs and kubeconfig. It must be empty or missing. Without it a temporary folder is used,
	// which Stop removes.
	Dir string

	ProcessNodes   int // named process-0, process-1, …
	SimulatedNodes int // named simulated-0, simulated-1, …

	// Progress is told, in lines for people, what is being built and started, and which component has died. Default: nobody.
	Progress io.Writer

	// Durable lets etcd wait for the disk at each write, as a real cluster does. Without it a cluster is faster and
	// survives all but a crash of the machine.
	Durable bool

	// Unfenced leaves out the policy by which the API server refuses the Jobs of former leaders (see "lighterman fence").
	Unfenced bool

	// ExtraArgs are added to the command lines of components by name, and override what is there:
	// {"kube-apiserver": {"--audit-policy-file=…"}}.
	ExtraArgs map[string][]string
}

// A Cluster is running from Start until Stop.
type Cluster struct {
	Dir        string
	Kubeconfig string // path of an administrator's kubeconfig

	config     Config
	progress   io.Writer
	programs   programs
	temporary  bool
	rest       *rest.Config
	nodeRest   *rest.Config // as which nodes of both kinds connect
	components []*component // in the order of their start; stopped in reverse
	failures   chan error

	mu       sync.Mutex
	stopping bool // guarded by mu
}

// programs are the paths of what the cluster runs.
type programs struct {
	kubernetes string // folder
	kwok       string // folder; empty without simulated nodes
	sandbox    string
}

// Start builds what is missing and starts a cluster. It returns when the API server is ready, pods can be
// created in the default namespace, and every node is ready. The context bounds the start only.
func Start(ctx context.Context, config Config) (*Cluster, error) {
	if config.Progress == nil {
		config.Progress = io.Discard
	}
	built, err := findPrograms(ctx, config)
	if err != nil {
		return nil, err
	}
	const attempts = 5 // a free port may be taken by another process before we listen on it
	for attempt := 1; ; attempt++ {
		c, err := start(ctx, config, built)
		if !errors.Is(err, errPortTaken) || attempt == attempts {
			return c, err
		}
		_, _ = fmt.Fprintf(config.Progress, "starting again on other ports: %v\n", err)
	}
}

func findPrograms(ctx context.Context, config Config) (programs, error) {
	var p programs
	var err error
	if p.kubernetes, err = build.Kubernetes(ctx, config.Progress); err != nil {
		return p, err
	}
	if config.SimulatedNodes > 0 {
		if p.kwok, err = build.Kwok(ctx, config.Progress); err != nil {
			return p, err
		}
	}
	if config.ProcessNodes > 0 {
		p.sandbox, err = build.Sandbox(ctx, config.Progress)
	}
	return p, err
}

func start(ctx context.Context, config Config, built programs) (_ *Cluster, err error) {
	c := &Cluster{
		config: config, progress: config.Progress, programs: built, Dir: config.Dir, failures: make(chan error, 1),
	}
	if c.temporary = c.Dir == ""; c.temporary {
		c.Dir, err = os.MkdirTemp("", "lighterman-cluster-")
	} else {
		c.Dir, err = emptyDir(c.Dir)
	}
	if err != nil {
		return nil, err
	}
	began := time.Now()
	defer func() {
		if err != nil {
			// The context may be what ended the start, and the end must not depend on it.
			err = errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := c.startControlPlane(ctx); err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.waitUntilUsable(groupCtx) })
	group.Go(func() error { return c.startNodes(groupCtx) })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(c.progress, "cluster ready after %s\n", time.Since(began).Round(time.Second/10))
	return c, nil
}

// emptyDir makes sure of a folder that holds nothing: data of an earlier cluster has other ports and keys.
func emptyDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("the cluster's folder %s is not empty (%s …); remove it or name another", dir, entries[0].Name())
	}
	return dir, err
}

// RESTConfig returns an administrator's configuration without a client-side rate limit. It is the caller's to change.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.rest) }

// Failures tells of a component that has died unasked, with the end of its log. The cluster is then of no more use.
func (c *Cluster) Failures() <-chan error { return c.failures }

// Stop ends the nodes and their containers first, so that nothing is started any more, then the controllers, the API server
// and at last etcd. It returns when no process is left. Components that have not ended within
// some seconds, or when the context ends, are killed.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	c.stopping = true
	components := c.components
	c.mu.Unlock()
	for i := len(components) - 1; i >= 0; i-- {
		components[i].stop(ctx)
	}
	if c.temporary {
		return os.RemoveAll(c.Dir)
	}
	return nil
}
