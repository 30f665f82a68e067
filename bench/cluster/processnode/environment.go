package processnode

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// defaultPath is what container runtimes set where the image says nothing.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// An environment is a container's variables. Nothing of the node's own environment is in it.
type environment map[string]string

// environment resolves a container's env and envFrom in the kubelet's order: envFrom first, then env from top to bottom,
// each literal value expanded with the variables above it. Values from a Secret or ConfigMap are never expanded.
func (n *Node) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (environment, error) {
	env := environment{}
	for i := range c.EnvFrom {
		if err := n.addAll(ctx, env, pod.Namespace, &c.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	services := environment{
		"KUBERNETES_SERVICE_HOST": n.APIServerHost, "KUBERNETES_SERVICE_PORT": n.APIServerPort,
		"KUBERNETES_SERVICE_PORT_HTTPS": n.APIServerPort,
	}
	lookUp := expansion.MappingFuncFor(env, services)
	for _, variable := range c.Env {
		if variable.ValueFrom == nil {
			env[variable.Name] = expansion.Expand(variable.Value, lookUp)
			continue
		}
		value, found, err := n.valueFrom(ctx, pod, c, variable.ValueFrom)
		if err != nil {
			return nil, err
		}
		if found {
			env[variable.Name] = value
		}
	}
	env.setDefaults(services)
	return env, nil
}

// setDefaults adds the variables that are not there yet.
func (e environment) setDefaults(defaults environment) {
	for name, value := range defaults {
		if _, ok := e[name]; !ok {
			e[name] = value
		}
	}
}

func (n *Node) addAll(ctx context.Context, env environment, namespace string, from *corev1.EnvFromSource) error {
	var data map[string][]byte
	var err error
	switch {
	case from.SecretRef != nil:
		data, err = n.secretData(ctx, namespace, from.SecretRef.Name, from.SecretRef.Optional)
	case from.ConfigMapRef != nil:
		data, err = n.configMapData(ctx, namespace, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
	}
	for key, value := range data {
		env[from.Prefix+key] = string(value)
	}
	return err
}

func (n *Node) valueFrom(
	ctx context.Context, pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource,
) (value string, found bool, err error) {
	var bytes []byte
	switch {
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		data, err := n.secretData(ctx, pod.Namespace, ref.Name, ref.Optional)
		if err == nil {
			bytes, err = keyOf("Secret", pod.Namespace+"/"+ref.Name, ref.Key, data, ref.Optional)
		}
		return string(bytes), bytes != nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		data, err := n.configMapData(ctx, pod.Namespace, ref.Name, ref.Optional)
		if err == nil {
			bytes, err = keyOf("ConfigMap", pod.Namespace+"/"+ref.Name, ref.Key, data, ref.Optional)
		}
		return string(bytes), bytes != nil, err
	case from.FieldRef != nil:
		value, err = n.field(pod, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = resourceField(pod, c.Name, from.ResourceFieldRef)
		return value, true, err
	default:
		return "", false, fmt.Errorf("container %s: a process node cannot resolve this kind of valueFrom; "+
			"use secretKeyRef, configMapKeyRef, fieldRef or resourceFieldRef", c.Name)
	}
}

// field resolves a fieldRef. What the API server does not know at that time is the node's to say.
func (n *Node) field(pod *corev1.Pod, path string) (string, error) {
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs":
		return Address, nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

// resourceField resolves a resourceFieldRef: in units of the divisor, rounded up. A missing limit is the node's capacity.
func resourceField(pod *corev1.Pod, container string, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" {
		container = ref.ContainerName
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if c.Name != container {
			continue
		}
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
			switch ref.Resource {
			case "limits." + string(name):
				limit, ok := c.Resources.Limits[name]
				if !ok {
					limit = capacity()[name]
				}
				return inUnitsOf(limit, ref.Divisor), nil
			case "requests." + string(name):
				return inUnitsOf(c.Resources.Requests[name], ref.Divisor), nil
			}
		}
	}
	return "", fmt.Errorf("container %s: a process node cannot resolve the resource %q; use limits or requests of cpu, memory or "+
		"ephemeral-storage", container, ref.Resource)
}

func inUnitsOf(quantity, divisor resource.Quantity) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if divisor.Cmp(resource.MustParse("1")) < 0 { // cpu in millicores: the only fraction that the API allows
		return fmt.Sprint((quantity.MilliValue() + divisor.MilliValue() - 1) / divisor.MilliValue())
	}
	return fmt.Sprint((quantity.Value() + divisor.Value() - 1) / divisor.Value())
}

// expandAll expands a command line, which sees all variables but those that the runtime adds.
func (e environment) expandAll(args []string) []string {
	lookUp := expansion.MappingFuncFor(e)
	for i := range args {
		args[i] = expansion.Expand(args[i], lookUp)
	}
	return args
}

// list is what the process is started with: what container runtimes add included.
func (e environment) list(hostname string) []string {
	e.setDefaults(environment{"PATH": defaultPath, "HOME": "/", "HOSTNAME": hostname})
	list := make([]string, 0, len(e))
	for _, name := range slices.Sorted(maps.Keys(e)) {
		list = append(list, name+"="+e[name])
	}
	return list
}
