package integration

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lighterman-dev/lighterman/bench/cluster/clustertest"
)

// rights is what the README says that lighterman needs.
func rights() []rbacv1.PolicyRule {
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	return []rbacv1.PolicyRule{
		rule("batch", "cronjobs", "list", "watch"),
		rule("batch", "jobs", "list", "watch", "get", "create", "patch"),
		rule("", "secrets", "get", "create"),
		rule("", "pods", "list"),
		rule("", "events", "create", "patch"),
		rule("coordination.k8s.io", "leases", "list", "get", "create", "update", "delete"),
	}
}

// grant makes a service account that may do what the rules say, and returns a kubeconfig of it.
func (w *world) grant(rules []rbacv1.PolicyRule) string {
	w.Helper()
	const name = "lighterman"
	must[*corev1.ServiceAccount](w)(w.client.CoreV1().ServiceAccounts(w.namespace).Create(w.Context(),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	must[*rbacv1.Role](w)(w.client.RbacV1().Roles(w.namespace).Create(w.Context(),
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{}))
	must[*rbacv1.RoleBinding](w)(w.client.RbacV1().RoleBindings(w.namespace).Create(w.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: w.namespace}},
	}, metav1.CreateOptions{}))
	token := must[*authenticationv1.TokenRequest](w)(w.client.CoreV1().ServiceAccounts(w.namespace).CreateToken(w.Context(), name,
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{}))

	config, err := clientcmd.LoadFromFile(clustertest.Get(w.T).Kubeconfig)
	if err != nil {
		w.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Token = token.Status.Token
	}
	path := filepath.Join(w.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		w.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		w.Fatal(err)
	}
	return path
}

// With the rights that the README lists, everything works; without one of them, the template is told so, and its messages wait.
func TestRightsAreEnoughAndNeeded(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("rights")
	c := packTemplate("rights", 2, `printf '{"failed": ["%s"]}' "$(cut -d '"' -f 4 "$KEDA_TASK_DATA_FILE")" >/dev/termination-log`)
	c.Annotations["lighterman.dev/max-attempts"] = "2"
	w.createCronJob(c)
	s.send("x")
	rules := rights()
	pods := rules[3]
	rules[1].Verbs, rules[2].Verbs = []string{"list", "watch", "get", "patch"}, []string{"get"}
	rules = slices.Delete(rules, 3, 4)
	grant := func() {
		role := must[*rbacv1.Role](w)(w.client.RbacV1().Roles(w.namespace).Get(t.Context(), "lighterman", metav1.GetOptions{}))
		role.Rules = rules
		must[*rbacv1.Role](w)(w.client.RbacV1().Roles(w.namespace).Update(t.Context(), role, metav1.UpdateOptions{}))
	}
	p := runLighterman(t, w.namespace, "--kubeconfig", w.grant(rules), "--shards", "2")
	w.waitForEvent("rights", "Misconfigured", "forbidden", `cannot create resource "jobs"`)

	rules[1].Verbs = rights()[1].Verbs
	grant()
	w.waitForEvent("rights", "Misconfigured", "forbidden", `cannot create resource "secrets"`)
	if leased := s.leased(); leased != 0 {
		t.Errorf("%d messages are leased while no Job may be created", leased)
	}

	rules[2].Verbs = rights()[2].Verbs
	grant()
	w.waitForEvent("rights", "ReportUnreadable", "forbidden", `cannot list resource "pods"`)
	if got := s.len(); got != 1 {
		t.Errorf("%d messages are left while it cannot be read what the task reports, want 1", got)
	}

	rules = append(rules, pods)
	grant()
	s.waitUntilEmpty()
	w.waitForEvent("rights", "Poisoned", "attempt 2 of 2 failed: ReportedFailed")
	if got := len(w.jobs()); got != 2 {
		t.Errorf("%d Jobs, want 2", got)
	}
	if denied := p.logged("forbidden"); len(denied) != 3 {
		t.Errorf("%d log lines of something forbidden, want those about Jobs, Secrets and pods: %v", len(denied), denied)
	}
}
