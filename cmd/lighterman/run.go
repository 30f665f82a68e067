package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lighterman-dev/lighterman/dispatcher"
	"github.com/lighterman-dev/lighterman/metrics"
)

// runOptions are the flags of the command run.
type runOptions struct {
	kubeconfig  string
	namespace   string
	metricsAddr string
	logFormat   string
	logLevel    string
	maxInFlight int
	lock        dispatcher.LockConfig
	tuning      dispatcher.Tuning
}

func newRunCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Dispatch messages to Jobs until told to stop",
		Long: `Run watches for annotated CronJobs and Jobs and dispatches their messages.

Any number of processes can run side by side: the one that holds the leader lock dispatches, the others stand by. With --shards, the templates
are divided by the queues they take from, and the processes share them fairly; all must be given the same number. On
SIGTERM, a process stops receiving, settles what is done, gives back the other messages and releases its locks, within ten
seconds. Jobs that run are left to run; the next leader finds them.

"lighterman fence" prints a policy for the API server that keeps former leaders from creating Jobs.`,
		Example: `  # With the cluster of your kubeconfig, and only one of its namespaces:
  lighterman run --kubeconfig ~/.kube/config --namespace batch

  # In a cluster:
  lighterman run --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "path of the kubeconfig; empty: the KUBECONFIG variable, else the service account of the pod")
	f.StringVar(&o.namespace, "namespace", "", "dispatch for templates of this namespace only; empty: all")
	f.StringVar(&o.metricsAddr, "metrics-addr", ":8080", "where to serve /metrics, /healthz and /readyz, as host:port; empty: nowhere")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.IntVar(&o.maxInFlight, "max-in-flight", 10_000, "the most tasks in flight over all templates; when they are scarce, the template with the highest priority goes first")
	f.DurationVar(&o.tuning.PollInterval, "poll-interval", 200*time.Millisecond, "the longest pause between two looks at an empty Azure Storage queue; each look is one transaction")
	f.IntVar(&o.tuning.LaunchConcurrency, "launch-concurrency", 32, "how many Jobs of a template to create at once")
	f.StringVar(&o.lock.Namespace, "lock-namespace", "", "namespace of the leader lock; empty: that of the pod, else --namespace, else default")
	f.StringVar(&o.lock.Name, "lock-name", "lighterman", "name of the leader lock, a Lease object; with several shards, -0, -1 and so on follow it")
	f.IntVar(&o.lock.Shards, "shards", 1, "how many leader locks to divide the templates among; the processes take fair shares of them")
	f.DurationVar(&o.lock.LeaseDuration, "lock-duration", 15*time.Second, "after how long without a sign of life of the leader another process takes over")
	return cmd
}

func (o *runOptions) run(ctx context.Context, cmd *cobra.Command) error {
	log, err := newLogger(cmd.ErrOrStderr(), o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	adoptKlog(log)
	if err := o.check(); err != nil {
		return err
	}
	config, err := o.restConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	o.lock.Client, err = kubernetes.NewForConfig(lockConfig(config))
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	o.lock.Namespace = o.lockNamespace()
	o.lock.Identity, err = identity()
	if err != nil {
		return err
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := metrics.New(registry)
	m.SetBuildInfo(versionString(), runtime.Version())
	d, err := dispatcher.New(dispatcher.Config{
		Client:      client,
		Namespace:   o.namespace,
		OpenSource:  openSource,
		Lock:        o.lock,
		MaxInFlight: o.maxInFlight,
		Tuning:      o.tuning,
		Metrics:     m,
		Log:         log,
	})
	if err != nil {
		return err
	}
	log.Info("starting", "version", versionString(), "namespace", o.namespace, "api_server", config.Host, "identity", o.lock.Identity)

	// The server outlives the dispatcher, so that the last numbers can still be read; whichever fails ends both.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group, dispatching := errgroup.WithContext(ctx)
	if o.metricsAddr != "" {
		server, err := metrics.NewServer(ctx, metrics.ServerConfig{
			Addr: o.metricsAddr, Gatherer: registry, Logger: log,
			Ready: []metrics.Check{{Name: "caches", Do: d.Ready}},
		})
		if err != nil {
			return fmt.Errorf("%w; choose another address with --metrics-addr", err)
		}
		log.Info("serving metrics and health", "addr", server.Addr())
		group.Go(func() error { return server.Run(serving) })
	}
	group.Go(func() error {
		defer stopServing()
		return d.Run(dispatching)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

func (o *runOptions) check() error {
	switch {
	case o.maxInFlight < 1:
		return fmt.Errorf("--max-in-flight=%d: must be at least 1", o.maxInFlight)
	case o.tuning.LaunchConcurrency < 1:
		return fmt.Errorf("--launch-concurrency=%d: must be at least 1", o.tuning.LaunchConcurrency)
	case o.tuning.PollInterval < time.Millisecond:
		return fmt.Errorf("--poll-interval=%v: must be at least 1ms", o.tuning.PollInterval)
	case o.lock.LeaseDuration < time.Second || o.lock.LeaseDuration%time.Second != 0:
		return fmt.Errorf("--lock-duration=%v: must be whole seconds, at least 1s", o.lock.LeaseDuration)
	case o.lock.Shards < 1:
		return fmt.Errorf("--shards=%d: must be at least 1", o.lock.Shards)
	}
	if problems := validation.IsDNS1123Label(o.lock.Name); len(problems) > 0 {
		return fmt.Errorf("--lock-name=%q: %s", o.lock.Name, strings.Join(problems, "; "))
	}
	return nil
}

// restConfig finds the API server. Nothing limits our requests but the server itself: a limit here, shared by all templates, would let
// one slow down the others.
func (o *runOptions) restConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the API server (give --kubeconfig, set KUBECONFIG, or run in a pod): %w", err)
	}
	config.QPS = -1
	config.UserAgent = "lighterman/" + versionString()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return config, nil
}

// lockConfig is for the leader lock's own client: with a connection of its own, and impatient, since a renewal that hangs is worth
// less than another try.
func lockConfig(config *rest.Config) *rest.Config {
	own := rest.CopyConfig(config)
	own.Timeout = 5 * time.Second
	// client-go shares connections between clients of one configuration, but for those with a dialer of their own.
	own.Dial = (&net.Dialer{Timeout: own.Timeout, KeepAlive: 30 * time.Second}).DialContext
	return own
}

// namespaceFile is where a pod finds its own namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

func (o *runOptions) lockNamespace() string {
	if o.lock.Namespace != "" {
		return o.lock.Namespace
	}
	if own, err := os.ReadFile(namespaceFile); err == nil && len(own) > 0 {
		return strings.TrimSpace(string(own))
	}
	if o.namespace != "" {
		return o.namespace
	}
	return "default"
}
