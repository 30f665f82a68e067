// Package processnode is a Kubernetes node without a container runtime: the containers of its pods run as local processes.
//
// It stands in for a kubelet where tests and demonstrations need containers that really run, without root, Docker or
// images. What a program inside a pod can observe is meant to be the same: its environment, with $(X) expanded by
// the kubelet's own code; its volumes, at their mount paths; its exit code, signals and termination message; restarts,
// init containers and sidecars; the end at deletion. What the API shows is meant to be the same too: phases,
// conditions, reasons and container states, so that controllers cannot tell the difference.
//
// How it works, in the order of the files:
//
//	node.go       registers the Node, watches its pods, gives each pod a worker
//	pod.go        the worker: one pod from its first sight to its removal
//	container.go  one container: configuration, start, exit, restart with back-off
//	environment.go, volumes.go, objects.go   what a container is given
//	process.go    one process, started in namespaces by ../sandbox
//	status.go     from what is known of the containers to a PodStatus; pure functions
//	report.go     writes the status, newest first, through API server outages
//	logs.go       serves `kubectl logs`
//
// What is different from a kubelet: there are no images, so a container must name its command, and it
// sees the host's file system (with its own volumes, /dev and /proc). An image below invalid.test/ cannot be pulled, for
// tests of that. Containers share the host's network, and 127.0.0.1 is every pod's address. Probes and lifecycle hooks
// do not run: a running container is ready. Resources are not limited. Mounted Secrets and ConfigMaps keep the content
// that they had when the pod started. Back-offs are shorter.
package processnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Config says what a Node is. Fields down to Log are required.
type Config struct {
	Name    string
	Client  kubernetes.Interface
	Dir     string // volumes and logs of the pods: <Dir>/pods/<namespace>_<pod>_<uid>/<container>/<restarts>.log
	Sandbox string // the program that starts containers, see build.Sandbox
	Log     *slog.Logger

	Labels map[string]string

	// APIServerHost and APIServerPort are given to containers as KUBERNETES_SERVICE_HOST and _PORT.
	APIServerHost, APIServerPort string

	// Backoff is the first delay before a failed container is restarted; it doubles up to thirty times that. Default 1 s.
	Backoff time.Duration

	// Unschedulable keeps the scheduler off: the node takes only pods that name it in spec.nodeName.
	Unschedulable bool

	// HostFilesystem runs containers without namespaces. They then have no volumes and no termination message.
	// Where the host forbids unprivileged user namespaces this is chosen by itself.
	HostFilesystem bool
}

// Address is the address of every process node and of all their pods.
const Address = "127.0.0.1"

// A Node runs the pods that are bound to it.
type Node struct {
	Config
	isolationErr error // why containers run without namespaces; set before pods are seen, never after
	tokens       tokenCache

	mu   sync.Mutex
	pods map[types.UID]*podWorker // guarded by mu
	wg   sync.WaitGroup
}

// New returns a Node that does nothing until Run.
func New(c Config) *Node {
	if c.Backoff == 0 {
		c.Backoff = time.Second
	}
	return &Node{Config: c, pods: map[types.UID]*podWorker{}}
}

// Run registers the node and runs its pods until the context ends. When it returns, no process of a pod is left.
func (n *Node) Run(ctx context.Context) error {
	n.isolationErr = n.probeIsolation()
	if n.isolationErr != nil {
		n.Log.Warn("containers run without namespaces: no volumes, no termination messages", "err", n.isolationErr)
	}
	logs, err := n.serveLogs()
	if err != nil {
		return fmt.Errorf("node %s: serving logs: %w", n.Name, err)
	}
	// However the watch ends, the workers get the same end: the parent of all of them.
	ctx, cancel := context.WithCancel(ctx)
	defer n.wg.Wait()
	defer func() { _ = logs.server.Close() }()
	defer cancel()

	watch := cache.NewListWatchFromClient(n.Client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", n.Name))
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: watch,
		ObjectType:    &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { n.deliver(ctx, obj.(*corev1.Pod)) },
			UpdateFunc: func(_, obj any) { n.deliver(ctx, obj.(*corev1.Pod)) },
			DeleteFunc: n.remove,
		},
	})
	n.wg.Go(func() { informer.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil
	}
	if err := n.register(ctx, logs.port); err != nil && ctx.Err() == nil {
		return fmt.Errorf("registering node %s: %w", n.Name, err)
	}
	<-ctx.Done()
	return nil
}

// register makes the Node object. Nothing marks the node as lost if it stays silent, since the cluster runs no
// node-lifecycle-controller: so no heartbeats are sent, which would only disturb measurements.
func (n *Node) register(ctx context.Context, logPort int32) error {
	labels := map[string]string{corev1.LabelHostname: n.Name, corev1.LabelOSStable: "linux"}
	for key, value := range n.Labels {
		labels[key] = value
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels}, Spec: corev1.NodeSpec{Unschedulable: n.Unschedulable}}
	nodes := n.Client.CoreV1().Nodes()
	if err := nodes.Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil && !isNotFound(err) {
		return err
	}
	node, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	node.Status = nodeStatus(n.Name, logPort)
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

func nodeStatus(name string, logPort int32) corev1.NodeStatus {
	now := metav1.Now()
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, Reason: reason, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	return corev1.NodeStatus{
		Capacity:    capacity(),
		Allocatable: capacity(),
		Conditions: []corev1.NodeCondition{
			condition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady"),
			condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory"),
			condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure"),
			condition(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID"),
		},
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: Address},
			{Type: corev1.NodeHostName, Address: name},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: logPort}},
		NodeInfo:        corev1.NodeSystemInfo{OperatingSystem: "linux", ContainerRuntimeVersion: "process://1"},
	}
}

// capacity is generous: what limits a process node is the number of pods, as on any node.
func capacity() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourcePods:             resource.MustParse("500"),
		corev1.ResourceCPU:              resource.MustParse("1000"),
		corev1.ResourceMemory:           resource.MustParse("1Ti"),
		corev1.ResourceEphemeralStorage: resource.MustParse("10Ti"),
	}
}

// deliver hands a pod's newest version to its worker. Only the informer's goroutine calls it and remove.
func (n *Node) deliver(ctx context.Context, pod *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if worker, ok := n.pods[pod.UID]; ok {
		worker.update(pod)
		return
	}
	worker := newPodWorker(n, pod)
	n.pods[pod.UID] = worker
	n.wg.Go(func() { worker.run(ctx) })
}

func (n *Node) remove(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if worker, ok := n.pods[pod.UID]; ok {
		close(worker.gone)
		delete(n.pods, pod.UID)
	}
}

func (n *Node) podDir(pod *corev1.Pod) string {
	return filepath.Join(n.Dir, "pods", pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// sleep waits, and says whether it was not cut short.
func sleep(ctx context.Context, stop <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-stop:
	case <-timer.C:
		return true
	}
	return false
}

var errNoIsolation = errors.New("unprivileged user namespaces are not permitted here; allow them " +
	"(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces>0), " +
	"or run outside of the container that forbids them")
