package localcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	loopback     = "127.0.0.1"
	pollInterval = 50 * time.Millisecond
)

// controllers are those that Jobs, workloads, namespaces and access rights need. There is none that watches over nodes: they
// never leave the cluster by accident.
var controllers = strings.Join([]string{
	"clusterrole-aggregation-controller", "cronjob-controller", "deployment-controller", "garbage-collector-controller",
	"job-controller", "namespace-controller", "pod-garbage-collector-controller", "replicaset-controller", "resourcequota-controller",
	"root-ca-certificate-publisher-controller", "serviceaccount-controller", "statefulset-controller",
	"ttl-after-finished-controller", "validatingadmissionpolicy-status-controller",
}, ",")

func (c *Cluster) startControlPlane(ctx context.Context) error {
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return err
	}
	identities, err := writeCredentials(c.Dir)
	if err != nil {
		return fmt.Errorf("writing credentials to %s: %w", c.Dir, err)
	}
	// etcd and the API server start together: the latter waits for the former by itself.
	if err := c.add(c.etcd(ports[0], ports[1])); err != nil {
		return err
	}
	if err := c.add(c.apiServer(ports[2], ports[0])); err != nil {
		return err
	}
	if err := c.writeKubeconfigs(ctx, ports[2], identities); err != nil {
		return err
	}
	if err := c.waitForAPIServer(ctx); err != nil {
		return err
	}
	if err := errors.Join(c.grantRights(ctx), c.installFence(ctx)); err != nil {
		return err
	}
	if err := c.add(c.controllerManager()); err != nil {
		return err
	}
	return c.add(c.scheduler())
}

func (c *Cluster) path(name string) string { return filepath.Join(c.Dir, name) }

func (c *Cluster) program(name string) string { return filepath.Join(c.programs.kubernetes, name) }

func (c *Cluster) etcd(client, peer int) *component {
	args := []string{
		"--name=local", "--data-dir=" + c.path("etcd"), "--log-level=warn",
		"--listen-client-urls=" + plain(client), "--advertise-client-urls=" + plain(client),
		"--listen-peer-urls=" + plain(peer), "--initial-advertise-peer-urls=" + plain(peer), "--initial-cluster=local=" + plain(peer),
	}
	if !c.config.Durable {
		args = append(args, "--unsafe-no-fsync")
	}
	return c.child(Etcd, c.program("etcd"), args)
}

func (c *Cluster) apiServer(port, etcdPort int) *component {
	return c.child(APIServer, c.program(APIServer), []string{
		"--etcd-servers=" + plain(etcdPort),
		"--bind-address=" + loopback, "--secure-port=" + strconv.Itoa(port), "--cert-dir=" + c.path("certificates"),
		"--token-auth-file=" + c.path(tokensFile), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.path(keyFile), "--service-account-signing-key-file=" + c.path(keyFile),
		"--service-cluster-ip-range=10.0.0.0/24",
		// A loopback address cannot be an endpoint of the Service "kubernetes".
		"--endpoint-reconciler-type=none",
		// New nodes would be tainted as not ready until a controller, which we do not run, has seen them.
		"--disable-admission-plugins=TaintNodesByCondition",
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged",
	})
}

func (c *Cluster) controllerManager() *component {
	return c.child(ControllerManager, c.program(ControllerManager), []string{
		"--kubeconfig=" + c.path(ControllerManager+".kubeconfig"), "--leader-elect=false", "--secure-port=0",
		"--controllers=" + controllers, "--root-ca-file=" + c.certificate(),
		// At the defaults the client's rate limit, not the cluster, would decide all measurements.
		"--kube-api-qps=1000", "--kube-api-burst=2000",
	})
}

func (c *Cluster) scheduler() *component {
	return c.child(Scheduler, c.program(Scheduler), []string{
		"--kubeconfig=" + c.path(Scheduler+".kubeconfig"), "--leader-elect=false", "--secure-port=0",
		"--kube-api-qps=1000", "--kube-api-burst=2000",
	})
}

// certificate is the API server's own, self-signed at its start; the kubeconfigs trust it alone.
func (c *Cluster) certificate() string { return c.path("certificates/apiserver.crt") }

// writeKubeconfigs waits for the API server's certificate, since every kubeconfig carries it.
func (c *Cluster) writeKubeconfigs(ctx context.Context, port int, identities []identity) error {
	var certificate []byte
	err := c.poll(ctx, "the API server's certificate", func(context.Context) (bool, error) {
		var err error
		certificate, err = os.ReadFile(c.certificate())
		return err == nil && strings.Contains(string(certificate), "END CERTIFICATE"), err
	})
	if err != nil {
		return err
	}
	server := "https://" + net.JoinHostPort(loopback, strconv.Itoa(port))
	for _, id := range identities {
		path := c.path(id.file)
		if err := clientcmd.WriteToFile(kubeconfig(server, certificate, id), path); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	c.Kubeconfig = c.path(adminFile)
	if c.rest, err = loadUnlimited(c.Kubeconfig); err != nil {
		return err
	}
	c.nodeRest, err = loadUnlimited(c.path(nodesFile))
	return err
}

func loadUnlimited(path string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	return config, nil
}

func (c *Cluster) waitForAPIServer(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.rest)
	if err != nil {
		return err
	}
	return c.poll(ctx, "the API server", func(ctx context.Context) (bool, error) {
		err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		return err == nil, err
	})
}

// grantRights lets the components do their work. They are no members of system:masters, which API Priority and Fairness
// does not limit: they shall compete for the API server as they do in a real cluster.
func (c *Cluster) grantRights(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.rest)
	if err != nil {
		return err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "bench.lighterman.dev:components"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "system:kube-controller-manager"},
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:nodes"},
		},
	}
	_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("granting rights to the components: %w", err)
	}
	return nil
}

// waitUntilUsable waits for what a pod in the default namespace needs, and for all nodes.
func (c *Cluster) waitUntilUsable(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.rest)
	if err != nil {
		return err
	}
	err = c.poll(ctx, "the default service account", func(ctx context.Context) (bool, error) {
		return NamespaceReady(ctx, client, corev1.NamespaceDefault)
	})
	if err != nil {
		return err
	}
	return c.poll(ctx, "the nodes", func(ctx context.Context) (bool, error) {
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: NodeLabel})
		if err != nil {
			return false, err
		}
		ready := 0
		for i := range nodes.Items {
			for _, condition := range nodes.Items[i].Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		wanted := c.config.ProcessNodes + c.config.SimulatedNodes
		return ready == wanted, fmt.Errorf("%d of %d nodes are ready", ready, wanted)
	})
}

// NamespaceReady says whether pods can be created and started in a namespace: the controllers have made its service account and
// the certificate that each pod mounts.
func NamespaceReady(ctx context.Context, client kubernetes.Interface, namespace string) (bool, error) {
	_, err := client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
	if err == nil {
		_, err = client.CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	}
	return err == nil, ignoreNotFound(err)
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// poll waits for something; an error of the question is not the end of it, but is told if there is none.
func (c *Cluster) poll(ctx context.Context, what string, ask func(context.Context) (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ok, reason := ask(ctx)
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; last: %w; logs are in %s", what, context.Cause(ctx), reason, c.Dir)
		case err := <-c.failures:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-ticker.C:
		}
	}
}

func plain(port int) string { return "http://" + net.JoinHostPort(loopback, strconv.Itoa(port)) }

// freePorts picks ports that nobody listens on. Somebody may before we do; then the cluster is started again.
func freePorts(ctx context.Context, count int) ([]int, error) {
	var ports []int
	var listen net.ListenConfig
	for range count {
		listener, err := listen.Listen(ctx, "tcp", net.JoinHostPort(loopback, "0"))
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer func() { _ = listener.Close() }() // only when all are picked, so that they differ
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
