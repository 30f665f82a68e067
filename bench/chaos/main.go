// Command chaos shows that nothing is lost and nothing run twice while everything breaks: `make chaos`, or `go run ./chaos` from
// inside bench/.
//
// It starts a Kubernetes cluster, a redis-server, Azurite, a broker of event hubs and three `lighterman run`, puts thousands of messages
// into queues, streams and event hubs, and meanwhile kills, pauses and disturbs all of them by a fixed schedule. Each task notes in one
// file that it runs. At the end that file, the queues, the checkpoints, the Jobs and the processes must be as if nothing had happened.
// run.go is the whole way at a glance:
//
//	run.go        start, load, break, heal, wait, check, sum up
//	world.go      what is started; replica.go: the three lightermen
//	plan.go       which messages there are, and what becomes of each; feed.go sends them
//	httpproxy.go, redisproxy.go   what stands between lighterman and the servers, and breaks on demand
//	faults.go     what is broken and how; schedule.go: when, and how long until work goes on
//	hubs.go       the event hubs, their checkpoints, and what is broken of both
//	fence.go      the admission policy that keeps former leaders out
//	watch.go      which Jobs are created, when and by whom
//	evidence.go   what is found at the end; judge.go: what must hold of it; report.go: the table
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

const usage = `Usage: make chaos [SEED=n] [ARGS="-messages 100 -rounds 1"]
   or: cd bench && go run ./chaos [flags]

Breaks a local cluster, its queues and Lighterman itself in every way it knows, while messages are dispatched, and then checks that
each was done exactly once. It needs what 'make deps' looks for.

  -seed n          times and targets of the faults, and what becomes of which message; default: another one each time
  -messages 4000   how many: a third each in Azure Storage queues, in Redis streams and in event hubs
  -rounds 2        how often each fault is injected at least; they go on until the messages are through
  -shards 3        into how many shards the templates are spread over the three processes
  -fence=false     without the admission policy by which the API server refuses the Jobs of former leaders
  -timeout 12m     the longest that all of it may take; building does not count
  -keep            keep the folder with all logs even if nothing is wrong

The exit status is 0 if nothing was lost, nothing run twice and nothing left behind. Otherwise the folder with all logs stays.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A second signal ends this process at once. All that it has started dies with it.
	context.AfterFunc(ctx, stop)
	// What client-go complains of while its server is down is what we wanted; what matters comes as an error.
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
		_, _ = fmt.Fprintf(out, "chaos: %v\n'-help' explains.\n", err)
		return 2
	}
	err = run(ctx, o, out)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		_, _ = fmt.Fprintln(out, "chaos: interrupted")
		return 130
	}
	_, _ = fmt.Fprintln(out, "chaos:", err)
	return 1
}

type options struct {
	seed     uint64
	messages int
	rounds   int
	shards   int
	fence    bool
	timeout  time.Duration
	keep     bool
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano())%1_000_000, "")
	flags.IntVar(&o.messages, "messages", 4000, "")
	flags.IntVar(&o.rounds, "rounds", 2, "")
	flags.IntVar(&o.shards, "shards", 3, "")
	flags.BoolVar(&o.fence, "fence", true, "")
	flags.DurationVar(&o.timeout, "timeout", 12*time.Minute, "")
	flags.BoolVar(&o.keep, "keep", false, "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = fmt.Fprint(out, usage)
		}
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; there are flags only", flags.Arg(0))
	case o.messages < 1 || o.messages > 100_000:
		return o, fmt.Errorf("-messages %d: must be from 1 to 100000", o.messages)
	case o.rounds < 1:
		return o, fmt.Errorf("-rounds %d: must be at least 1", o.rounds)
	case o.shards < 1:
		return o, fmt.Errorf("-shards %d: must be at least 1", o.shards)
	case o.timeout <= 0:
		return o, fmt.Errorf("-timeout %v: must be above 0", o.timeout)
	}
	return o, nil
}
