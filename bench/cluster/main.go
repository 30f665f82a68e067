// Command cluster runs a Kubernetes cluster on this machine for a shell: `go run ./cluster up` from inside bench/.
//
// `up` stays in the foreground until Ctrl-C; `up --detach` returns when the cluster is ready, and `down` ends it. What a cluster
// consists of is described in package localcluster; this is only its command line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/lighterman-dev/lighterman/bench/cluster/build"
	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

const usage = `usage: go run ./cluster <command> [flags]

commands:
  up      build what is missing, start a cluster, and run it until Ctrl-C
  down    stop a cluster that was started with up --detach
  build   build everything, so that the next up starts at once

'<command> -h' lists the flags`

func main() {
	// The second signal kills: what is left of a cluster dies with this process.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command given; %s", usage)
	}
	switch args[0] {
	case "up":
		return up(ctx, args[1:])
	case "down":
		return down(ctx, args[1:])
	case "build":
		return buildAll(ctx)
	default:
		return fmt.Errorf("unknown command %q; %s", args[0], usage)
	}
}

func buildAll(ctx context.Context) error {
	_, kubernetes := build.Kubernetes(ctx, os.Stderr)
	_, kwok := build.Kwok(ctx, os.Stderr)
	_, sandbox := build.Sandbox(ctx, os.Stderr)
	return errors.Join(kubernetes, kwok, sandbox)
}

func up(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	var config localcluster.Config
	name := nameFlag(flags)
	flags.IntVar(&config.ProcessNodes, "process-nodes", 1, "nodes that run containers as local processes")
	flags.IntVar(&config.SimulatedNodes, "simulated-nodes", 0, "nodes that only claim to run containers (kwok)")
	flags.BoolVar(&config.Durable, "durable", false, "let etcd wait for the disk")
	detach := flags.Bool("detach", false, "return when the cluster is ready; end it with down")
	_ = flags.Parse(args) // exits by itself
	if flags.NArg() > 0 {
		return fmt.Errorf("up: unexpected argument %q; it takes flags only", flags.Arg(0))
	}
	s, err := openState(*name)
	if err != nil {
		return err
	}
	if *detach {
		return upDetached(ctx, s, args)
	}
	return upForeground(ctx, s, config)
}

func nameFlag(flags *flag.FlagSet) *string {
	return flags.String("name", "default", "name of the cluster, where there are several")
}

func upForeground(ctx context.Context, s state, config localcluster.Config) error {
	release, err := s.claim()
	if err != nil {
		return err
	}
	defer release()
	config.Dir, config.Progress = s.data(), os.Stderr
	c, err := localcluster.Start(ctx, config)
	if err != nil {
		return err
	}
	if err := s.ready(c.Kubeconfig); err != nil {
		return errors.Join(err, c.Stop(context.Background()))
	}
	fmt.Fprintf(os.Stderr, "kubeconfig: %s\nCtrl-C ends the cluster\n", c.Kubeconfig)
	fmt.Printf("export KUBECONFIG=%s\n", c.Kubeconfig)
	select {
	case <-ctx.Done():
	case err = <-c.Failures():
	}
	fmt.Fprintln(os.Stderr, "stopping the cluster")
	if stopErr := c.Stop(context.Background()); err != nil || stopErr != nil {
		return errors.Join(err, stopErr) // the data folder stays, for its logs
	}
	return os.RemoveAll(s.data())
}

func down(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("down", flag.ExitOnError)
	name := nameFlag(flags)
	_ = flags.Parse(args)
	s, err := openState(*name)
	if err != nil {
		return err
	}
	return s.stop(ctx)
}

func openState(name string) (state, error) {
	if name == "" || name != filepath.Base(name) || name[0] == '.' {
		return state{}, fmt.Errorf("--name %q cannot name a cluster; use letters, digits and dashes", name)
	}
	cache, err := build.CacheDir()
	if err != nil {
		return state{}, err
	}
	dir := filepath.Join(cache, "clusters", name)
	return state{name: name, dir: dir}, os.MkdirAll(dir, 0o700)
}
