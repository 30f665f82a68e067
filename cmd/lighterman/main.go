// Lighterman turns queue messages into Kubernetes Jobs. This is its command.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: whoever sends it does not want to wait.
	context.AfterFunc(ctx, stop)
	err := newCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lighterman:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "lighterman",
		Short: "Turn queue messages into Kubernetes Jobs",
		Long: `Lighterman leases messages from queues and streams, runs one Kubernetes Job for each, with the payload in
KEDA_TASK_DATA, and deletes a message when its Job has succeeded.

What is dispatched where is said by annotations on suspended CronJobs and Jobs:

  metadata:
    annotations:
      lighterman.dev/source: redis-streams
      lighterman.dev/stream: thumbnails
      lighterman.dev/connection-secret: redis/url
`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newRunCommand(), newFenceCommand(), newVersionCommand())
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "lighterman %s (%s, %s/%s)\n", versionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

func versionString() string {
	info, _ := debug.ReadBuildInfo()
	return buildVersion(version, info)
}
