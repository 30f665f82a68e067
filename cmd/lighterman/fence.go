package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
)

func newFenceCommand() *cobra.Command {
	var lockNamespace string
	cmd := &cobra.Command{
		Use:   "fence",
		Short: "Print the admission policy that keeps former leaders from creating Jobs",
		Long: `Fence prints a ValidatingAdmissionPolicy and its binding, for kubectl apply. Each Job says in which term of its leader lock it was created; with
the policy, the API server refuses a Job whose term is over: that of a process which was paused, or cut off, and does not know yet that another one
leads. Lighterman works without it too, and says in its log, when it starts to lead, whether it is fenced.

It needs Kubernetes 1.30 or later, and the rights of a cluster administrator to apply.`,
		Example: `  # The processes run in the namespace lighterman, and so are their locks:
  lighterman fence --lock-namespace lighterman | kubectl apply -f -

  # Each namespace has processes of its own ("lighterman run --namespace"), with their locks beside the Jobs:
  lighterman fence | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeYAML(cmd.OutOrStdout(), fence.Policy(), fence.Binding(lockNamespace))
		},
	}
	cmd.Flags().StringVar(&lockNamespace, "lock-namespace", "", `where the leader locks are, as in "lighterman run"; empty: in the namespace of each Job`)
	return cmd
}

// writeYAML writes objects as kubectl takes them, without what the API server fills in.
func writeYAML(w io.Writer, objects ...runtime.Object) error {
	for _, o := range objects {
		fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return fmt.Errorf("encoding %T: %w", o, err)
		}
		delete(fields, "status")
		text, err := yaml.Marshal(fields)
		if err != nil {
			return fmt.Errorf("encoding %T: %w", o, err)
		}
		if _, err := fmt.Fprintf(w, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}
