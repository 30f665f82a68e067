package dispatcher

import (
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
	"github.com/lighterman-dev/lighterman/jobs"
)

// admit does what the policy of package fence has the API server do. That the policy says so is tested on a real one (bench/integration). The
// caller holds the mutex.
func (s *apiServer) admit(r *apiRequest) error {
	value := text(r.body, "metadata", "annotations", jobs.AnnotationFence)
	if !s.fenced || r.resource != "jobs" || value == "" {
		return nil
	}
	for key, o := range s.objects {
		if key.resource != "leases" || text(o, "metadata", "labels", fence.LabelLock) == "" {
			continue
		}
		lock := decode[coordinationv1.Lease](o)
		current := fence.Value(key.namespace, key.name, int(ptr.Deref(lock.Spec.LeaseTransitions, 0)))
		if !strings.HasPrefix(value, key.namespace+"/"+key.name+"/") || value == current {
			continue
		}
		err := apierrors.NewForbidden(schema.GroupResource{Group: "batch", Resource: "jobs"}, r.name, nil)
		err.ErrStatus.Message = fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", fence.Name, fence.Name, jobs.FenceDenied)
		err.ErrStatus.Details.Causes = []metav1.StatusCause{{Message: err.ErrStatus.Message}}
		return err
	}
	return nil
}
