package processnode_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestVolumes(t *testing.T) {
	w := newWorld(t)
	w.secret("s", map[string][]byte{"a": []byte("A\x00\xff"), "b": []byte("B")})
	w.configMap("c", map[string]string{"conf": "x=1", "more": "y=2"})
	private, readable := int32(0o400), int32(0o440)
	volumes := []corev1.Volume{
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: &private}}},
		{Name: "items", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: "s", Items: []corev1.KeyToPath{{Key: "b", Path: "deep/er/b", Mode: &readable}},
		}}},
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "c"},
		}}},
		{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		}}},
		{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	script := strings.Join([]string{
		`od -An -tx1 /etc/lighterman-test/a`,
		`stat -c '%a' /etc/lighterman-test/a /nowhere/at/all/deep/er/b`,
		`cat /nowhere/at/all/deep/er/b; echo`,
		`cat /etc/hostname.d/conf; echo`,
		`cat /single/file.conf; echo`,
		`cat /down/name; echo`,
		`cat /shared/from-init`,
		`cat /shared/inner/more; echo`,
		`cat /only/sub; echo`,
		`touch /shared/new && echo writable`,
		`touch /etc/lighterman-test/new 2>/dev/null || echo read-only`,
		`touch /shared-ro/new 2>/dev/null || echo read-only`,
		`test -s /var/run/secrets/kubernetes.io/serviceaccount/token && test -d /etc/ssl && echo as usual`,
		`ls -d /proc/[0-9]* | wc -l | xargs test 10 -gt && echo few processes`,
		`echo x > /dev/null && head -c 4 /dev/urandom | wc -c`,
	}, "\n")
	container := shell(script)
	container.VolumeMounts = []corev1.VolumeMount{
		{Name: "secret", MountPath: "/etc/lighterman-test"},
		{Name: "items", MountPath: "/nowhere/at/all"},
		{Name: "config", MountPath: "/etc/hostname.d/"},
		{Name: "config", MountPath: "/single/file.conf", SubPath: "conf"},
		{Name: "config", MountPath: "/shared/inner"},
		{Name: "down", MountPath: "/down"},
		{Name: "empty", MountPath: "/shared"},
		{Name: "empty", MountPath: "/shared-ro", ReadOnly: true},
		{Name: "empty", MountPath: "/only", SubPathExpr: "of-$(WHO)"},
	}
	container.Env = []corev1.EnvVar{{Name: "WHO", Value: "me"}}
	first := shell("echo from the init container > /shared/from-init; mkdir /shared/of-me; printf mine > /shared/of-me/sub")
	first.Name = "first"
	first.VolumeMounts = []corev1.VolumeMount{{Name: "empty", MountPath: "/shared"}}
	pod := neverRestarted(container)
	pod.Spec.Volumes, pod.Spec.InitContainers = volumes, []corev1.Container{first}
	w.run(pod)

	want := strings.Join([]string{
		" 41 00 ff", "400", "440", "B", "x=1", "x=1", "pod", "from the init container", "y=2", "mine",
		"writable", "read-only", "read-only", "as usual", "few processes", "4", "",
	}, "\n")
	if got := w.log("pod", "main"); got != want {
		t.Errorf("the container saw\n%s\nwant\n%s", got, want)
	}
}

func TestUnsupportedVolumeIsNamed(t *testing.T) {
	w := newWorld(t)
	container := shell("true")
	container.VolumeMounts = []corev1.VolumeMount{{Name: "claim", MountPath: "/x"}}
	pod := neverRestarted(container)
	pod.Spec.Volumes = []corev1.Volume{{Name: "claim", VolumeSource: corev1.VolumeSource{
		NFS: &corev1.NFSVolumeSource{Server: "localhost", Path: "/"},
	}}}
	w.create(pod)
	w.until("pod", "to say what is wrong", func(pod *corev1.Pod) bool {
		return waitingReason(pod) == "ContainerCreating" &&
			strings.Contains(pod.Status.ContainerStatuses[0].State.Waiting.Message, "volume claim: a process node has no volumes of this kind")
	})
}
