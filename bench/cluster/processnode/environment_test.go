package processnode_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/lighterman-dev/lighterman/bench/cluster/processnode"
)

func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	w.secret("s", map[string][]byte{"key": []byte("$(LITERAL) & secret"), "bytes": {'a', 0xff, 0xfe, 'z'}})
	w.configMap("c", map[string]string{"key": "of the config", "other": "too"})
	container := shell(`printf '%s|' "$LITERAL" "$ABOVE" "$BELOW" "$ESCAPED" "$SECRET" "$FROM_SECRET" "$CONFIG" \
		"$PRE_key" "$PRE_other" "$NAME" "$NAMESPACE" "$UID_" "$LABEL" "$NOTE" "$NODE" "$ACCOUNT" "$POD_IP" "$HOST_IP" \
		"${MISSING-unset}" "$CPU" "$MEMORY" "$1"; printf '%s' "$BYTES" | od -An -tx1`)
	container.Command = append(container.Command, "$(ABOVE)")
	container.Args = []string{"$(LITERAL) $(NONE) $$(LITERAL)"}
	container.EnvFrom = []corev1.EnvFromSource{{Prefix: "PRE_", ConfigMapRef: &corev1.ConfigMapEnvSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "c"},
	}}}
	container.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("3Mi")}
	container.Env = []corev1.EnvVar{
		{Name: "LITERAL", Value: `a "b" 'c'`},
		{Name: "ABOVE", Value: "<$(LITERAL)>"},
		{Name: "BELOW", Value: "$(ESCAPED)"},
		{Name: "ESCAPED", Value: "$$(LITERAL) $5 $"},
		secretRef("SECRET", "s", "key", false),
		{Name: "FROM_SECRET", Value: "$(SECRET)"},
		secretRef("BYTES", "s", "bytes", false),
		secretRef("MISSING", "s", "no-such-key", true),
		{Name: "CONFIG", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "c"}, Key: "key",
		}}},
		fieldRef("NAME", "metadata.name"), fieldRef("NAMESPACE", "metadata.namespace"), fieldRef("UID_", "metadata.uid"),
		fieldRef("LABEL", "metadata.labels['app.example/x']"), fieldRef("NOTE", "metadata.annotations['note']"),
		fieldRef("NODE", "spec.nodeName"), fieldRef("ACCOUNT", "spec.serviceAccountName"),
		fieldRef("POD_IP", "status.podIP"), fieldRef("HOST_IP", "status.hostIP"),
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{
			Resource: "limits.cpu", Divisor: resource.MustParse("1m"),
		}}},
		{Name: "MEMORY", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}},
	}
	pod := neverRestarted(container)
	pod.Labels, pod.Annotations = map[string]string{"app.example/x": "labelled"}, map[string]string{"note": "two\nlines"}
	pod = w.run(pod)

	want := strings.Join([]string{
		`a "b" 'c'`, `<a "b" 'c'>`, "$(ESCAPED)", "$(LITERAL) $5 $", "$(LITERAL) & secret", "$(LITERAL) & secret", "of the config",
		"of the config", "too", "pod", w.namespace, string(pod.UID), "labelled", "two\nlines", "process-0", "default",
		processnode.Address, processnode.Address, "unset", "1500", "3145728", `a "b" 'c' $(NONE) $(LITERAL)`, " 61 ff fe 7a\n",
	}, "|")
	if got := w.log("pod", "main"); got != want {
		t.Errorf("the container saw\n%s\nwant\n%s", got, want)
	}
}

func TestEnvironmentIsThePodsAlone(t *testing.T) {
	w := newWorld(t)
	w.run(neverRestarted(shell(`env | sed 's/=.*//' | sort | tr '\n' ' '; hostname`)))
	want := "HOME HOSTNAME KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS PATH PWD pod\n"
	if got := w.log("pod", "main"); got != want {
		t.Errorf("the container's variables and host name are %q, want %q", got, want)
	}
}

func TestMissingConfigurationIsWaitedFor(t *testing.T) {
	withVolume := shell("cat /conf/key")
	withVolume.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/conf"}}
	withVariable := shell(`printf %s "$V"`)
	withVariable.Env = []corev1.EnvVar{secretRef("V", "late", "key", false)}
	withAll := shell(`printf %s "$key"`)
	withAll.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "late"},
	}}}
	for name, test := range map[string]struct {
		container corev1.Container
		reason    string
		present   map[string][]byte // of the Secret from the beginning
	}{
		"variable, no Secret": {withVariable, "CreateContainerConfigError", nil},
		"variable, no key":    {withVariable, "CreateContainerConfigError", map[string][]byte{"other": []byte("x")}},
		"envFrom":             {withAll, "CreateContainerConfigError", nil},
		"volume":              {withVolume, "ContainerCreating", nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if test.present != nil {
				w.secret("late", test.present)
			}
			pod := neverRestarted(test.container)
			if len(test.container.VolumeMounts) > 0 {
				pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
					Secret: &corev1.SecretVolumeSource{SecretName: "late"},
				}}}
			}
			w.create(pod)
			waiting := w.until("pod", "to wait with a reason", func(pod *corev1.Pod) bool {
				return waitingReason(pod) == test.reason && pod.Status.ContainerStatuses[0].State.Waiting.Message != ""
			})
			if waiting.Status.Phase != corev1.PodPending {
				t.Errorf("phase is %s, want Pending", waiting.Status.Phase)
			}
			w.provide("late", map[string][]byte{"key": []byte("here")})
			if ended := w.until("pod", "to end", hasEnded); ended.Status.Phase != corev1.PodSucceeded {
				t.Errorf("phase is %s, want Succeeded", ended.Status.Phase)
			}
			if got := w.log("pod", "main"); got != "here" {
				t.Errorf("the container saw %q, want %q", got, "here")
			}
		})
	}
}
