package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
)

// What is printed is what the tests on a real API server install, and nothing that kubectl would stumble over.
func TestFenceCommandPrintsTheFence(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"fence"}, {"fence", "--lock-namespace", "ops"}} {
		cmd := newCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		documents := strings.Split(strings.TrimPrefix(out.String(), "---\n"), "---\n")
		if len(documents) != 2 {
			t.Fatalf("%d documents, want 2:\n%s", len(documents), out.String())
		}
		var policy admissionv1.ValidatingAdmissionPolicy
		var binding admissionv1.ValidatingAdmissionPolicyBinding
		for i, into := range []any{&policy, &binding} {
			if err := yaml.UnmarshalStrict([]byte(documents[i]), into); err != nil {
				t.Fatal(err)
			}
		}
		namespace := ""
		if len(args) > 1 {
			namespace = args[2]
		}
		if diff := cmp.Diff(fence.Policy(), &policy); diff != "" {
			t.Errorf("policy (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(fence.Binding(namespace), &binding); diff != "" {
			t.Errorf("binding (-want +got):\n%s", diff)
		}
		if strings.Contains(out.String(), "status:") {
			t.Error("a status is printed, which nobody applies")
		}
	}
}
