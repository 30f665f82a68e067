package processnode

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// secretData returns the content of a Secret, or nil where it is missing and may be.
func (n *Node) secretData(ctx context.Context, namespace, name string, optional *bool) (map[string][]byte, error) {
	secret, err := n.Client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case isNotFound(err) && isTrue(optional):
		return nil, nil
	case isNotFound(err):
		return nil, fmt.Errorf("secret %q not found", name)
	case err != nil:
		return nil, fmt.Errorf("reading secret %q: %w", name, err)
	}
	return secret.Data, nil
}

// configMapData returns the content of a ConfigMap, or nil where it is missing and may be.
func (n *Node) configMapData(ctx context.Context, namespace, name string, optional *bool) (map[string][]byte, error) {
	config, err := n.Client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case isNotFound(err) && isTrue(optional):
		return nil, nil
	case isNotFound(err):
		return nil, fmt.Errorf("configmap %q not found", name)
	case err != nil:
		return nil, fmt.Errorf("reading configmap %q: %w", name, err)
	}
	data := make(map[string][]byte, len(config.Data)+len(config.BinaryData))
	for key, value := range config.Data {
		data[key] = []byte(value)
	}
	for key, value := range config.BinaryData {
		data[key] = value
	}
	return data, nil
}

// keyOf returns one value of a Secret or ConfigMap, or nil where it is missing and may be.
func keyOf(kind, name, key string, data map[string][]byte, optional *bool) ([]byte, error) {
	value, ok := data[key]
	if !ok && !isTrue(optional) {
		return nil, fmt.Errorf("couldn't find key %s in %s %q", key, kind, name)
	}
	return value, nil
}

func isTrue(b *bool) bool { return b != nil && *b }

// A tokenCache holds tokens of service accounts. A kubelet asks for one for each pod; here pods of one account share
// theirs, since a token for each of 50 pods a second would be the API server's main work.
type tokenCache struct {
	mu     sync.Mutex
	tokens map[string]cachedToken // guarded by mu
}

type cachedToken struct {
	token string
	until time.Time
}

func (n *Node) serviceAccountToken(ctx context.Context, pod *corev1.Pod, source *corev1.ServiceAccountTokenProjection) (string, error) {
	const life = 24 * time.Hour
	key := pod.Namespace + "/" + pod.Spec.ServiceAccountName + "/" + source.Audience
	n.tokens.mu.Lock()
	known := n.tokens.tokens[key]
	n.tokens.mu.Unlock()
	if time.Now().Before(known.until) {
		return known.token, nil
	}
	seconds := int64(life.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if source.Audience != "" {
		request.Spec.Audiences = []string{source.Audience}
	}
	reply, err := n.Client.CoreV1().ServiceAccounts(pod.Namespace).
		CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("requesting a token of service account %q: %w", pod.Spec.ServiceAccountName, err)
	}
	n.tokens.mu.Lock()
	defer n.tokens.mu.Unlock()
	if n.tokens.tokens == nil {
		n.tokens.tokens = map[string]cachedToken{}
	}
	// A service account that was deleted and made again invalidates its tokens, so they are not kept for long.
	n.tokens.tokens[key] = cachedToken{reply.Status.Token, time.Now().Add(time.Minute)}
	return reply.Status.Token, nil
}
