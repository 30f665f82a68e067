// Command demo shows Lighterman at work, from a queue to Jobs to an empty queue: `make demo`, or `go run ./demo` from inside
// bench/.
//
// On a machine that has nothing but Go it builds a Kubernetes cluster and runs it, with a queue beside it, applies the
// template that is embedded here (redis.yaml, azure-storage-queue.yaml, azure-event-hubs.yaml), puts messages into the queue, runs the
// real `lighterman run`, and checks what comes of it: one Job a message, the right answer from each, and nothing left to do. demo.go
// is the whole way at a glance.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

const usage = `Usage: make demo [CLUSTER=local|current] [SOURCE=redis|azure-storage-queue|azure-event-hubs] [ARGS="-tasks 500"]
   or: cd bench && go run ./demo [flags]

Puts messages into a queue, lets Lighterman run one Kubernetes Job for each, and ends when all are done. Without
flags it needs no cluster, no root and no account anywhere: it builds and starts all of it here, on 127.0.0.1, and stops it
afterwards. The first run compiles Kubernetes, which takes some minutes; later ones start at once.

  -cluster local      a cluster of its own, whose one node runs containers as local processes (the default)
  -cluster current    the cluster of your kubeconfig: the demo makes a namespace lighterman-demo-…, and deletes it
                      at the end; lighterman itself and the queue stay on this machine
  -source redis       an embedded Redis (the default)
  -source azure-storage-queue
                      Azurite, the emulator of Azure Storage; 'make deps' installs it
  -source azure-event-hubs
                      an embedded broker that speaks as Event Hubs does, with checkpoints in Azurite
  -tasks 100          how many messages
  -timeout 10m        the longest that all of it may take; building does not count

What is applied is in bench/demo/redis.yaml, azure-storage-queue.yaml and azure-event-hubs.yaml: start from there for templates of
your own.

The exit status is 0 if every message was done by exactly one Job, every answer is right and nothing is left in the queue, or, in
an event hub, behind its checkpoints. Ctrl-C stops and removes everything; a second one does not wait for that.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal ends this process at once. All that it has started dies with it.
	context.AfterFunc(ctx, stop)
	// What client-go complains of while it is stopped would only confuse; what matters comes as an error.
	klog.SetLogger(logr.Discard())
	os.Exit(command(ctx, os.Args[1:], os.Stdout))
}

// command is main, but for what only a process can do.
func command(ctx context.Context, args []string, out io.Writer) (status int) {
	o, err := parse(args, out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(out, "demo: %v\n'-help' explains.\n", err)
		return 2
	}
	err = run(ctx, o, newScreen(out))
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		// What went wrong after that is of interest only if something was left behind.
		_, _ = fmt.Fprintln(out, "demo: interrupted")
		if left, ok := errors.AsType[*leftError](err); ok {
			_, _ = fmt.Fprintln(out, "demo:", left)
		}
		return 130
	}
	_, _ = fmt.Fprintln(out, "demo:", err)
	return 1
}

// sources are the queues that this demo knows; each has a manifest of that name.
var sources = []string{"redis", "azure-storage-queue", "azure-event-hubs"}

type options struct {
	cluster string
	source  string
	tasks   int
	timeout time.Duration
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.cluster, "cluster", "local", "")
	flags.StringVar(&o.source, "source", "redis", "")
	flags.IntVar(&o.tasks, "tasks", 100, "")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Minute, "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = fmt.Fprint(out, usage)
		}
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; there are flags only", flags.Arg(0))
	case o.cluster != "local" && o.cluster != "current":
		return o, fmt.Errorf("-cluster %s: use local or current", o.cluster)
	case !slices.Contains(sources, o.source):
		return o, fmt.Errorf("-source %s: this demo knows redis, azure-storage-queue and azure-event-hubs", o.source)
	case o.tasks < 1 || o.tasks > 100_000:
		return o, fmt.Errorf("-tasks %d: must be from 1 to 100000", o.tasks)
	case o.timeout <= 0:
		return o, fmt.Errorf("-timeout %v: must be above 0", o.timeout)
	}
	return o, nil
}
