package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lighterman-dev/lighterman/bench/cluster/processnode"
)

// kwokAnnotation marks the nodes that kwok may simulate; it leaves all others alone.
const kwokAnnotation, kwokValue = "kwok.x-k8s.io/node", "fake"

func (c *Cluster) startNodes(ctx context.Context) error {
	for i := range c.config.ProcessNodes {
		if err := c.addProcessNode(fmt.Sprintf("process-%d", i)); err != nil {
			return err
		}
	}
	if c.config.SimulatedNodes == 0 {
		return nil
	}
	if err := c.createSimulatedNodes(ctx); err != nil {
		return err
	}
	return c.addKwok()
}

// addProcessNode runs a process node in this process. Killing the component kills all its containers.
func (c *Cluster) addProcessNode(name string) error {
	client, err := c.nodeClient(name)
	if err != nil {
		return err
	}
	server, err := url.Parse(c.rest.Host)
	if err != nil {
		return err
	}
	log := filepath.Join(c.Dir, name+".log")
	return c.add(&component{name: name, log: log, fail: c.componentDied, run: func() (*run, error) {
		file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // below the cluster's folder
		if err != nil {
			return nil, err
		}
		node := processnode.New(processnode.Config{
			Name: name, Client: client, Dir: c.Dir, Sandbox: c.programs.sandbox,
			Log:           slog.New(slog.NewTextHandler(file, nil)),
			Labels:        map[string]string{NodeLabel: ProcessNode},
			APIServerHost: server.Hostname(), APIServerPort: server.Port(),
		})
		ctx, cancel := context.WithCancel(context.Background())
		r := &run{ask: cancel, kill: cancel, done: make(chan struct{})}
		go func() {
			defer close(r.done)
			defer func() { _ = file.Close() }()
			r.err = node.Run(ctx)
			writeError(file, r.err)
		}()
		return r, nil
	}})
}

func writeError(out io.Writer, err error) {
	if err != nil {
		_, _ = fmt.Fprintln(out, err)
	}
}

func (c *Cluster) nodeClient(name string) (kubernetes.Interface, error) {
	config := rest.CopyConfig(c.nodeRest)
	config.ContentType = runtime.ContentTypeProtobuf
	config.UserAgent = "process-node/" + name
	return kubernetes.NewForConfig(config)
}

func (c *Cluster) createSimulatedNodes(ctx context.Context) error {
	client, err := c.nodeClient("simulated")
	if err != nil {
		return err
	}
	resources := corev1.ResourceList{
		corev1.ResourcePods:   resource.MustParse("10000"),
		corev1.ResourceCPU:    resource.MustParse("10000"),
		corev1.ResourceMemory: resource.MustParse("10Ti"),
	}
	for i := range c.config.SimulatedNodes {
		name := fmt.Sprintf("simulated-%d", i)
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{
				Name:        name,
				Labels:      map[string]string{NodeLabel: SimulatedNode, corev1.LabelHostname: name},
				Annotations: map[string]string{kwokAnnotation: kwokValue},
			},
			Status: corev1.NodeStatus{Capacity: resources, Allocatable: resources},
		}
		if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating node %s: %w", name, err)
		}
	}
	return nil
}

func (c *Cluster) addKwok() error {
	stages, err := filepath.Glob(filepath.Join(c.programs.kwok, "stages", "*.yaml"))
	if err != nil || len(stages) == 0 {
		return errors.Join(err, fmt.Errorf("kwok's stages are missing from %s; remove that folder", c.programs.kwok))
	}
	args := []string{
		"--kubeconfig=" + c.path(nodesFile), "--server-address=",
		"--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=" + kwokAnnotation + "=" + kwokValue,
	}
	for _, stage := range stages {
		args = append(args, "--config="+stage)
	}
	return c.add(c.child(Kwok, filepath.Join(c.programs.kwok, "kwok"), args))
}
