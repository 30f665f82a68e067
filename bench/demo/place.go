package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

// A place is a cluster to run in.
type place struct {
	client     kubernetes.Interface
	kubeconfig string       // empty: whatever the environment says, for us as for lighterman
	failures   <-chan error // nil where nobody watches over the cluster
	logs       string       // where the cluster's logs are; empty: not here
	name       string
	local      *localcluster.Cluster
}

func openPlace(ctx context.Context, kind, dir string) (*place, error) {
	if kind == "current" {
		return openCurrent(ctx)
	}
	dir = filepath.Join(dir, "cluster")
	cluster, err := localcluster.Start(ctx, localcluster.Config{Dir: dir, ProcessNodes: 1})
	if err != nil {
		return nil, fmt.Errorf("starting the cluster: %w", err)
	}
	client, err := kubernetes.NewForConfig(cluster.RESTConfig())
	if err != nil {
		return nil, errors.Join(err, cluster.Stop(context.WithoutCancel(ctx)))
	}
	return &place{
		client: client, kubeconfig: cluster.Kubeconfig, failures: cluster.Failures(), logs: dir, name: "local cluster", local: cluster,
	}, nil
}

func openCurrent(ctx context.Context) (*place, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading your kubeconfig (set KUBECONFIG, or use -cluster local): %w", err)
	}
	config.QPS = -1
	config.Timeout = 30 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	if err := client.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error(); err != nil {
		return nil, fmt.Errorf("asking the API server %s for its version: %w", config.Host, err)
	}
	name := config.Host
	if raw, err := loader.RawConfig(); err == nil && raw.CurrentContext != "" {
		name = fmt.Sprintf("context %s, %s", raw.CurrentContext, config.Host)
	}
	// Informers wait for long on purpose.
	config.Timeout = 0
	client, err = kubernetes.NewForConfig(config)
	return &place{client: client, name: name}, err
}

// waitUntilUsable waits until pods can be created in the namespace.
func (p *place) waitUntilUsable(ctx context.Context, namespace string) error {
	var last error
	if err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		ready, err := localcluster.NamespaceReady(ctx, p.client, namespace)
		last = err
		return ready, nil
	}); err != nil {
		return fmt.Errorf("waiting for the service account of the namespace %s: %w (%w)", namespace, err, last)
	}
	return nil
}

// close stops the cluster if it is ours. Of its folder only the logs stay.
func (p *place) close() error {
	if p.local == nil {
		return nil
	}
	err := p.stopLocal()
	entries, readErr := os.ReadDir(p.local.Dir)
	err = errors.Join(err, readErr)
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".log" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(p.local.Dir, entry.Name())))
		}
	}
	return err
}

// stopLocal does not wait for ever: what is left of the cluster ends with this process, which is about to.
func (p *place) stopLocal() error {
	const patience = 30 * time.Second
	stopped := make(chan error, 1)
	go func() { stopped <- p.local.Stop(context.Background()) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-stopped:
		return err
	case <-timer.C:
		return fmt.Errorf("the cluster did not stop within %v, and was abandoned", patience)
	}
}

// A leftError names what could not be removed.
type leftError struct {
	what string
	err  error
}

func (e *leftError) Error() string { return fmt.Sprintf("%s is left behind: %v", e.what, e.err) }
func (e *leftError) Unwrap() error { return e.err }

// deleteNamespace returns when the namespace is gone, with all that was in it.
func deleteNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	err := poll(ctx, 200*time.Millisecond, func() (bool, error) {
		namespace, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if err == nil && namespace.DeletionTimestamp == nil {
			err = client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
		}
		last = err
		return apierrors.IsNotFound(err), nil
	})
	if err != nil {
		return &leftError{"the namespace " + name, errors.Join(err, last)}
	}
	return nil
}

// poll asks until it is done or fails, or ctx ends, whose cause is then the error.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
