package processnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lighterman-dev/lighterman/bench/cluster/sandbox/spec"
)

// tokenMount is where every pod has its service account's token unless it declines.
const tokenMount = "/var/run/secrets/kubernetes.io/serviceaccount" //nolint:gosec // a path, no credential

func volumesDir(podDir string) string { return filepath.Join(podDir, "volumes") }

// makeVolumes writes the pod's volumes below dir, and returns the folder of each.
func (n *Node) makeVolumes(ctx context.Context, pod *corev1.Pod, dir string) (map[string]string, error) {
	volumes := map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.HostPath != nil {
			volumes[v.Name] = v.HostPath.Path
			continue
		}
		folder := filepath.Join(dir, v.Name)
		if err := n.makeVolume(ctx, pod, v, folder); err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		volumes[v.Name] = folder
	}
	return volumes, nil
}

// A volumeFile is one file of a volume, by its path below the volume's folder.
type volumeFile struct {
	path string
	data []byte
	mode *int32
}

func (n *Node) makeVolume(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, folder string) error {
	var files []volumeFile
	var mode *int32
	var err error
	switch {
	case v.EmptyDir != nil:
		// Any user may write to an emptyDir, whatever the umask of this process.
		return errors.Join(os.MkdirAll(folder, 0o750), os.Chmod(folder, 0o777)) //nolint:gosec // as a kubelet does
	case v.Secret != nil:
		mode = v.Secret.DefaultMode
		files, err = n.secretFiles(ctx, pod, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional)
	case v.ConfigMap != nil:
		mode = v.ConfigMap.DefaultMode
		files, err = n.configMapFiles(ctx, pod, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional)
	case v.DownwardAPI != nil:
		mode = v.DownwardAPI.DefaultMode
		files, err = n.downwardFiles(pod, v.DownwardAPI.Items)
	case v.Projected != nil:
		mode = v.Projected.DefaultMode
		files, err = n.projectedFiles(ctx, pod, v.Projected.Sources)
	default:
		return errors.New("a process node has no volumes of this kind; " +
			"use secret, configMap, downwardAPI, projected, emptyDir or hostPath")
	}
	if err != nil {
		return err
	}
	return writeFiles(folder, files, mode)
}

func writeFiles(folder string, files []volumeFile, defaultMode *int32) error {
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	for _, file := range files {
		if !filepath.IsLocal(file.path) {
			return fmt.Errorf("path %q leaves the volume; use a relative path that stays inside", file.path)
		}
		mode := fs.FileMode(0o644)
		for _, wanted := range []*int32{defaultMode, file.mode} {
			if wanted != nil {
				mode = fs.FileMode(*wanted) & fs.ModePerm //nolint:gosec // the API allows 0 to 0777
			}
		}
		path := filepath.Join(folder, file.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		// A volume that was half made is made again, and its files may be read-only by now.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := errors.Join(os.WriteFile(path, file.data, mode), os.Chmod(path, mode)); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) secretFiles(
	ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, optional *bool,
) ([]volumeFile, error) {
	data, err := n.secretData(ctx, pod.Namespace, name, optional)
	if err != nil {
		return nil, err
	}
	return filesOf("Secret", pod.Namespace+"/"+name, data, items, optional)
}

func (n *Node) configMapFiles(
	ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, optional *bool,
) ([]volumeFile, error) {
	data, err := n.configMapData(ctx, pod.Namespace, name, optional)
	if err != nil {
		return nil, err
	}
	return filesOf("ConfigMap", pod.Namespace+"/"+name, data, items, optional)
}

// filesOf picks the items, or everything where none are named.
func filesOf(kind, name string, data map[string][]byte, items []corev1.KeyToPath, optional *bool) ([]volumeFile, error) {
	var files []volumeFile
	if len(items) == 0 {
		for key, value := range data {
			files = append(files, volumeFile{path: key, data: value})
		}
		return files, nil
	}
	for _, item := range items {
		value, err := keyOf(kind, name, item.Key, data, optional)
		if err != nil {
			return nil, err
		}
		if value != nil {
			files = append(files, volumeFile{item.Path, value, item.Mode})
		}
	}
	return files, nil
}

func (n *Node) downwardFiles(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile) ([]volumeFile, error) {
	files := make([]volumeFile, 0, len(items))
	for _, item := range items {
		var value string
		var err error
		if item.FieldRef != nil {
			value, err = n.field(pod, item.FieldRef.FieldPath)
		} else {
			value, err = resourceField(pod, "", item.ResourceFieldRef)
		}
		if err != nil {
			return nil, err
		}
		files = append(files, volumeFile{item.Path, []byte(value), item.Mode})
	}
	return files, nil
}

func (n *Node) projectedFiles(ctx context.Context, pod *corev1.Pod, sources []corev1.VolumeProjection) ([]volumeFile, error) {
	var all []volumeFile
	for _, source := range sources {
		var files []volumeFile
		var err error
		switch {
		case source.Secret != nil:
			files, err = n.secretFiles(ctx, pod, source.Secret.Name, source.Secret.Items, source.Secret.Optional)
		case source.ConfigMap != nil:
			files, err = n.configMapFiles(ctx, pod, source.ConfigMap.Name, source.ConfigMap.Items, source.ConfigMap.Optional)
		case source.DownwardAPI != nil:
			files, err = n.downwardFiles(pod, source.DownwardAPI.Items)
		case source.ServiceAccountToken != nil:
			var token string
			token, err = n.serviceAccountToken(ctx, pod, source.ServiceAccountToken)
			files = []volumeFile{{path: source.ServiceAccountToken.Path, data: []byte(token)}}
		default:
			err = errors.New("a process node cannot project this source; use secret, configMap, downwardAPI or serviceAccountToken")
		}
		if err != nil {
			return nil, err
		}
		all = append(all, files...)
	}
	return all, nil
}

// containerMounts says what the container sees where: its volumeMounts, and the file for its termination message.
func (r *containerRun) containerMounts(env environment, dir string) ([]spec.Mount, error) {
	c := r.container
	if !r.node.isolated() {
		for _, m := range c.VolumeMounts {
			if m.MountPath != tokenMount {
				return nil, &waitError{[]string{"CreateContainerError"}, fmt.Errorf(
					"container %s: nothing can be mounted at %s: %w", c.Name, m.MountPath, r.node.isolationErr)}
			}
		}
		return nil, nil
	}
	if err := os.WriteFile(r.messagePath(), nil, 0o600); err != nil {
		return nil, err
	}
	messagePath := c.TerminationMessagePath
	if messagePath == "" {
		messagePath = corev1.TerminationMessagePathDefault
	}
	var mounts []spec.Mount
	for _, m := range c.VolumeMounts {
		source, err := r.mountSource(env, &m)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, spec.Mount{Source: source, Target: filepath.Clean("/" + m.MountPath), ReadOnly: m.ReadOnly || r.isReadOnly(m.Name)})
	}
	mounts = append(mounts, spec.Mount{Source: filepath.Join(dir, "termination-log"), Target: filepath.Clean("/" + messagePath)})
	// A volume inside another one's mount path must come after it.
	sort.SliceStable(mounts, func(i, j int) bool {
		return strings.Count(mounts[i].Target, "/") < strings.Count(mounts[j].Target, "/")
	})
	return mounts, nil
}

func (r *containerRun) mountSource(env environment, m *corev1.VolumeMount) (string, error) {
	source, ok := r.volumes[m.Name]
	if !ok {
		return "", fmt.Errorf("volume %q is not in the pod", m.Name)
	}
	sub := m.SubPath
	if m.SubPathExpr != "" {
		sub = env.expandAll([]string{m.SubPathExpr})[0]
	}
	if sub == "" {
		return source, nil
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q leaves the volume; use a relative path that stays inside", sub)
	}
	source = filepath.Join(source, sub)
	if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
		return source, os.MkdirAll(source, 0o750)
	}
	return source, nil
}

// isReadOnly says whether the volume's content comes from the API: containers may not change that.
func (r *containerRun) isReadOnly(name string) bool {
	for _, v := range r.pod.Spec.Volumes {
		if v.Name == name {
			return v.EmptyDir == nil && v.HostPath == nil
		}
	}
	return false
}
