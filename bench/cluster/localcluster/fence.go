package localcluster

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
)

// installFence has the API server refuse the Jobs of former leaders, whose locks are in the namespace of their Jobs or in LockNamespace.
func (c *Cluster) installFence(ctx context.Context) error {
	if c.config.Unfenced {
		return nil
	}
	client, err := kubernetes.NewForConfig(c.rest)
	if err != nil {
		return err
	}
	admission := client.AdmissionregistrationV1()
	_, err = admission.ValidatingAdmissionPolicies().Create(ctx, fence.Policy(), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("installing the fence: %w", err)
	}
	for _, namespace := range []string{"", LockNamespace} {
		_, err := admission.ValidatingAdmissionPolicyBindings().Create(ctx, fence.Binding(namespace), metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("installing the fence: %w", err)
		}
	}
	return nil
}
