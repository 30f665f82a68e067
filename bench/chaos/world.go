package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/redis/go-redis/v9"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/dispatcher/fence"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const (
	namespace = "chaos"

	// inFlight is how many Jobs of a template may run at once: enough that all templates together keep two cores busy.
	inFlight = 20

	queueKind, streamKind, eventKind = "queue", "stream", "event"
)

var kinds = []string{queueKind, streamKind, eventKind}

// sourceOf is what lighterman calls each kind of source, and what the identity of one begins with.
var sourceOf = map[string]string{
	queueKind:  annotation.SourceAzureStorageQueue,
	streamKind: annotation.SourceRedisStreams,
	eventKind:  annotation.SourceAzureEventHubs,
}

// A world is all that runs.
type world struct {
	options
	dir    string
	record string // the file in which tasks note that they run

	cluster *localcluster.Cluster
	rest    *rest.Config
	client  kubernetes.Interface // straight to the API server
	azurite *servers.Azurite
	redis   *servers.Redis
	queues  *azqueue.ServiceClient // straight to Azurite
	streams *redis.Client          // straight to redis-server
	broker  *eventhub.Broker

	checkpoints *container.Client // straight to Azurite

	queueProxy  *httpProxy
	blobProxy   *httpProxy
	streamProxy *redisProxy
	replicas    []*replica
	watcher     *watcher
	dice        *dice

	closers []func() error // called in reverse
}

// startWorld starts everything but the processes of lighterman. What it has started by the time of an error is the caller's to close.
func startWorld(ctx context.Context, w *world, out io.Writer, fail func(error)) error {
	w.record = filepath.Join(w.dir, "record")
	for _, start := range []func(context.Context) error{w.startQueues, w.startStreams, w.startHubs} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	if err := w.startCluster(ctx, out, fail); err != nil {
		return err
	}
	return w.createTemplates(ctx)
}

func (w *world) closing(f func() error) { w.closers = append(w.closers, f) }

func (w *world) close() error {
	var errs []error
	for _, f := range slices.Backward(w.closers) {
		errs = append(errs, f())
	}
	w.closers = nil
	return errors.Join(errs...)
}

func (w *world) startQueues(ctx context.Context) error {
	dir := filepath.Join(w.dir, "azurite")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	if w.azurite, err = servers.StartAzurite(ctx, servers.AzuriteOptions{Dir: dir, Blob: true}); err != nil {
		return err
	}
	w.closing(func() error { w.azurite.Close(); return nil })
	if w.queues, err = openQueues(w.azurite.ConnectionString()); err != nil {
		return err
	}
	for i := range queueCount {
		if _, err := w.queues.CreateQueue(ctx, queueName(queueKind, i), nil); err != nil {
			return fmt.Errorf("creating a queue: %w", err)
		}
	}
	if w.queueProxy, err = w.startStorageProxy(ctx, w.azurite.QueueEndpoint(), "queue proxy"); err != nil {
		return err
	}
	w.blobProxy, err = w.startStorageProxy(ctx, w.azurite.BlobEndpoint(), "blob proxy")
	return err
}

// startStorageProxy starts a proxy before one of the services of Azurite.
func (w *world) startStorageProxy(ctx context.Context, endpoint, name string) (*httpProxy, error) {
	upstream, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	upstream.Path = "" // the account is part of what is asked for
	p, err := startHTTPProxy(ctx, upstream, nil, nil, newDice(w.seed, name), refuseAsAzure, func(*http.Response) error { return nil })
	if err != nil {
		return nil, err
	}
	w.closing(p.close)
	return p, nil
}

// storage is the connection string of Azurite by way of the proxies.
func (w *world) storage() (string, error) {
	connection := w.azurite.ConnectionString()
	for endpoint, p := range map[string]*httpProxy{w.azurite.QueueEndpoint(): w.queueProxy, w.azurite.BlobEndpoint(): w.blobProxy} {
		direct, err := url.Parse(endpoint)
		if err != nil {
			return "", err
		}
		connection = strings.ReplaceAll(connection, direct.Host, p.address)
	}
	return connection, nil
}

func refuseAsAzure(rw http.ResponseWriter) {
	rw.Header().Set("x-ms-error-code", "ServerBusy")
	rw.Header().Set("Content-Type", "application/xml")
	rw.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(rw, `<?xml version="1.0" encoding="utf-8"?><Error><Code>ServerBusy</Code><Message>The server is busy.</Message></Error>`)
}

func (w *world) startStreams(ctx context.Context) error {
	dir := filepath.Join(w.dir, "redis")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	if w.redis, err = servers.StartRedis(ctx, servers.RedisOptions{Dir: dir, AppendOnly: true}); err != nil {
		return err
	}
	w.closing(func() error { w.redis.Close(); return nil })
	w.streams = openStreams(w.redis.Addr())
	w.closing(w.streams.Close)
	w.streamProxy, err = startRedisProxy(ctx, w.redis.Addr(), newDice(w.seed, "stream proxy"))
	if err != nil {
		return err
	}
	w.closing(w.streamProxy.close)
	return nil
}

func (w *world) startCluster(ctx context.Context, out io.Writer, fail func(error)) error {
	cluster, err := localcluster.Start(ctx, localcluster.Config{
		Dir: filepath.Join(w.dir, "cluster"), ProcessNodes: 2,
		// What etcd has confirmed must survive its kill.
		Durable:  true,
		Unfenced: !w.fence,
	})
	if err != nil {
		return fmt.Errorf("starting the cluster: %w", err)
	}
	w.cluster = cluster
	w.closing(func() error { return stopCluster(cluster) })
	w.rest = cluster.RESTConfig()
	protobuf := cluster.RESTConfig()
	protobuf.ContentType = runtime.ContentTypeProtobuf
	protobuf.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if w.client, err = kubernetes.NewForConfig(protobuf); err != nil {
		return err
	}
	stopped := make(chan struct{})
	w.closing(func() error { close(stopped); return nil })
	go func() {
		select {
		case err := <-cluster.Failures():
			fail(fmt.Errorf("the cluster has failed: %w", err))
		case <-stopped:
		}
	}()
	_, _ = fmt.Fprintln(out, "cluster ready")
	return nil
}

// stopCluster does not wait for ever: what is left of the cluster ends with this process, which is about to.
func stopCluster(cluster *localcluster.Cluster) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- cluster.Stop(ctx) }()
	select {
	case err := <-stopped:
		return err
	case <-time.After(40 * time.Second):
		return errors.New("the cluster did not stop")
	}
}

// createTemplates creates the namespace, the Secrets with the addresses of the proxies and the broker, and a template for each queue, stream and event
// hub.
func (w *world) createTemplates(ctx context.Context) error {
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if _, err := w.client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the namespace: %w", err)
	}
	err := poll(ctx, "the namespace", 30*time.Second, func(ctx context.Context) (bool, error) {
		return localcluster.NamespaceReady(ctx, w.client, namespace)
	})
	if err != nil {
		return err
	}
	storage, err := w.storage()
	if err != nil {
		return err
	}
	for kind, data := range map[string]map[string]string{
		queueKind:  {"connection": storage},
		streamKind: {"connection": "redis://" + w.streamProxy.address + "/0"},
		eventKind:  {"connection": w.broker.ConnectionString(), "checkpoints": storage},
	} {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: kind}, StringData: data}
		if _, err := w.client.CoreV1().Secrets(namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating the Secret %s: %w", kind, err)
		}
		for i := range countOf(kind) {
			template := w.template(kind, queueName(kind, i))
			if _, err := w.client.BatchV1().CronJobs(namespace).Create(ctx, template, metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("creating the template %s: %w", template.Name, err)
			}
		}
	}
	return nil
}

// script is the task, in whatever form the payload comes. It notes that it runs before all else, by one write to the end of a file, with a line for each
// message of a pack. The payload says how long it takes, and whether it fails: with the whole Job, or, in a pack, by being named. Of the JSON of a pack it
// understands as much as there is here.
const script = `newline='
'
case ${KEDA_TASK_DATA_FILE-} in
*/tasks.jsonl) tasks=$(sed -E 's/^\{"id":"([^"]*)","attempt":([0-9]*),.*"data":"(.*)"\}/\1 \2 \3/' "$KEDA_TASK_DATA_FILE") ;;
*/payload) tasks="$LIGHTERMAN_MESSAGE_ID $LIGHTERMAN_ATTEMPT $(cat "$KEDA_TASK_DATA_FILE")" ;;
*) tasks="$LIGHTERMAN_MESSAGE_ID $LIGHTERMAN_ATTEMPT $KEDA_TASK_DATA" ;;
esac
lines= named= crash=0 longest=0
while read -r message attempt id fails how sleep rest; do
  lines="$lines$id $attempt $JOB $JOB_UID $HOSTNAME $message$newline"
  [ "$sleep" -le "$longest" ] || longest=$sleep
  [ "$attempt" -le "$fails" ] || continue
  [ "$how" = tell ] && named="$named, \"$message\"" || crash=1
done <<END
$tasks
END
printf %s "$lines" >> "$RECORD"
[ "$longest" = 0 ] || sleep "$longest"
[ -z "$named" ] || printf '{"failed": [%s]}' "${named#, }" > /dev/termination-log
exit "$crash"`

func (w *world) template(kind, queue string) *batchv1.CronJob {
	annotations := map[string]string{
		annotation.KeySource:           sourceOf[kind],
		annotation.KeyConnectionSecret: kind + "/connection",
		annotation.KeyMaxInFlight:      fmt.Sprint(inFlight),
		annotation.KeyLeaseDuration:    leaseDuration.String(),
		annotation.KeyMaxAttempts:      fmt.Sprint(maxAttempts),
		annotation.KeyRetryBackoff:     "1s..3s",
	}
	switch kind {
	case queueKind:
		annotations[annotation.KeyQueue] = queue
	case streamKind:
		annotations[annotation.KeyStream] = queue
	case eventKind:
		annotations[annotation.KeyEventHub] = queue
		annotations[annotation.KeyCheckpointSecret] = kind + "/checkpoints"
	}
	maps.Copy(annotations, special[queue])
	full := make(map[string]string, len(annotations))
	for key, value := range annotations {
		full[annotation.Prefix+"/"+key] = value
	}
	suspend, no, never := true, false, int32(0)
	label := func(name string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + name + "']"}}
	}
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: queue, Annotations: full},
		Spec: batchv1.CronJobSpec{
			Suspend: &suspend, Schedule: "0 0 31 2 *",
			JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
				// Kubernetes starts no second pod, or what runs twice would not tell by whose doing.
				BackoffLimit: &never,
				Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
					RestartPolicy:                corev1.RestartPolicyNever,
					AutomountServiceAccountToken: &no,
					Containers: []corev1.Container{{
						Name: "task", Image: "none", Command: []string{"/bin/sh", "-c", script},
						Env: []corev1.EnvVar{
							{Name: "RECORD", Value: w.record},
							{Name: "JOB", ValueFrom: label(batchv1.JobNameLabel)},
							{Name: "JOB_UID", ValueFrom: label(batchv1.ControllerUidLabel)},
						},
					}},
				}},
			}},
		},
	}
}

// replicaCount is how many processes share the work.
const replicaCount = 3

// addReplicas makes the places of the processes, each with a proxy of its own before the API server.
func (w *world) addReplicas(ctx context.Context, program string, died func(error)) error {
	upstream, err := url.Parse(w.rest.Host)
	if err != nil {
		return err
	}
	dial, err := rest.TLSConfigFor(w.rest)
	if err != nil {
		return err
	}
	certificate, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(certificate) {
		return errors.New("the certificate that was made for the proxies cannot be read")
	}
	for i := range replicaCount {
		r := &replica{name: fmt.Sprintf("lighterman-%d", i+1), dir: w.dir, program: program, died: died}
		serve := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		r.proxy, err = startHTTPProxy(ctx, upstream, serve, dial.Clone(), newDice(w.seed, r.name), refuseAsKubernetes,
			func(answer *http.Response) error { return w.watcher.answered(r.process(), answer) })
		if err != nil {
			return err
		}
		w.closing(r.proxy.close)
		r.kubeconfig = filepath.Join(w.dir, r.name+".kubeconfig")
		if err := clientcmd.WriteToFile(w.kubeconfig(r.proxy.address, certificate), r.kubeconfig); err != nil {
			return err
		}
		r.args = []string{
			"--namespace=" + namespace, "--lock-namespace=" + namespace, "--lock-duration=" + lockDuration.String(),
			fmt.Sprintf("--shards=%d", w.shards),
		}
		w.replicas = append(w.replicas, r)
	}
	return nil
}

func (w *world) kubeconfig(address string, certificate []byte) clientcmdapi.Config {
	const name = "chaos"
	return clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: "https://" + address, CertificateAuthorityData: certificate}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: w.rest.BearerToken}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}
}

func refuseAsKubernetes(rw http.ResponseWriter) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(rw, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"ServiceUnavailable","code":503,`+
		`"message":"the server is currently unable to handle the request"}`)
}

// leaders is who holds which lock.
func (w *world) leaders(ctx context.Context) (map[string]*replica, error) {
	locks, err := w.client.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{LabelSelector: fence.LabelLock})
	if err != nil {
		return nil, fmt.Errorf("listing the leader locks: %w", err)
	}
	held := make(map[string]*replica)
	for i := range locks.Items {
		lock := &locks.Items[i]
		if lock.Spec.HolderIdentity == nil {
			continue
		}
		for _, r := range w.replicas {
			if r.current.identity == *lock.Spec.HolderIdentity && !r.current.ended() {
				held[lock.Name] = r
			}
		}
	}
	return held, nil
}
