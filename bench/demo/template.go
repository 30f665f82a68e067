package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
)

//go:embed redis.yaml azure-storage-queue.yaml azure-event-hubs.yaml
var manifests embed.FS

// A manifest is what one of the YAML files holds.
type manifest struct {
	namespace corev1.Namespace
	secret    corev1.Secret
	template  batchv1.CronJob
}

func readManifest(source string) (*manifest, error) {
	text, err := manifests.ReadFile(source + ".yaml")
	if err != nil {
		return nil, err
	}
	var m manifest
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), len(text))
	for _, object := range []any{&m.namespace, &m.secret, &m.template} {
		if err := documents.Decode(object); err != nil {
			return nil, fmt.Errorf("reading %s.yaml: %w", source, err)
		}
	}
	if err := documents.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s.yaml holds more than a Namespace, a Secret and a CronJob (%w)", source, err)
	}
	return &m, nil
}

// adapt puts in what is known only now.
func (m *manifest) adapt(namespace string, secret map[string]string) {
	m.namespace.Name = namespace
	m.secret.Namespace, m.template.Namespace = namespace, namespace
	for key := range m.secret.StringData {
		m.secret.StringData[key] = secret[key]
	}
}

// apply creates all of it. The namespace has been created before: it is what is deleted at the end.
func (m *manifest) apply(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Secrets(m.secret.Namespace).Create(ctx, &m.secret, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating the Secret %s: %w", m.secret.Name, err)
	}
	_, err = client.BatchV1().CronJobs(m.template.Namespace).Create(ctx, &m.template, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating the template %s: %w", m.template.Name, err)
	}
	return nil
}

// createNamespace returns what deletes the namespace again. The two requests do not end with ctx: one that is given up may still
// have its effect.
func (m *manifest) createNamespace(ctx context.Context, client kubernetes.Interface) (remove func() error, err error) {
	ctx = context.WithoutCancel(ctx)
	creation, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	remove = func() error { return deleteNamespace(ctx, client, m.namespace.Name) }
	if _, err := client.CoreV1().Namespaces().Create(creation, &m.namespace, metav1.CreateOptions{}); err != nil {
		err = fmt.Errorf("creating the namespace %s: %w", m.namespace.Name, err)
		if creation.Err() != nil { // no answer: it may be there
			err = errors.Join(err, remove())
		}
		return nil, err
	}
	return remove, nil
}
