// Package fence is the admission policy by which the API server itself keeps former leaders from creating Jobs.
//
// Leader election does not do that: a process that was paused, or cut off, learns late that another leads. Every Job says under which
// leader lock it was created, and in which term (jobs.AnnotationFence); the term is the lock's spec.leaseTransitions, which is raised whenever the lock
// changes hands. The policy takes the locks as its parameters (KEP-3488) and refuses a Job whose term is not the current one.
//
// The policy is one object for a cluster, and a binding ties it to the namespace where the locks are.
package fence

import (
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/jobs"
)

// Name is the policy's, and the beginning of its bindings' names.
const Name = "lighterman-fence"

// LabelLock is on every leader lock; the policy finds them by it. Its value is the name that the locks of all shards begin with.
const LabelLock = "lighterman.dev/leader-lock"

// Value is what a Job carries in jobs.AnnotationFence.
func Value(namespace, lock string, term int) string {
	return fmt.Sprintf("%s/%s/%d", namespace, lock, term)
}

// Policy is the policy.
func Policy() *admissionv1.ValidatingAdmissionPolicy {
	annotation := fmt.Sprintf("object.metadata.annotations['%s']", jobs.AnnotationFence)
	return &admissionv1.ValidatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: Name},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: ptr.To(admissionv1.Fail),
			ParamKind:     &admissionv1.ParamKind{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"},
			MatchConstraints: &admissionv1.MatchResources{
				// Nobody else's Jobs are looked at, so that a fault here could stop no other.
				ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: jobs.LabelTemplate, Operator: metav1.LabelSelectorOpExists},
				}},
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create},
					Rule: admissionv1.Rule{
						APIGroups: []string{batchv1.GroupName}, APIVersions: []string{batchv1.SchemeGroupVersion.Version}, Resources: []string{"jobs"},
					},
				}}},
			},
			MatchConditions: []admissionv1.MatchCondition{{
				Name:       "carries-a-fence",
				Expression: fmt.Sprintf("has(object.metadata.annotations) && '%s' in object.metadata.annotations", jobs.AnnotationFence),
			}},
			Variables: []admissionv1.Variable{
				{Name: "lock", Expression: "params.metadata.namespace + '/' + params.metadata.name + '/'"},
				{Name: "term", Expression: "string(params.spec.?leaseTransitions.orValue(0))"},
			},
			Validations: []admissionv1.Validation{{
				// Each lock is looked at by itself: a Job that names another one passes here.
				Expression: fmt.Sprintf("!%[1]s.startsWith(variables.lock) || %[1]s == variables.lock + variables.term", annotation),
				Message:    jobs.FenceDenied,
				Reason:     ptr.To(metav1.StatusReasonForbidden),
			}},
		},
	}
}

// Binding ties the policy to the locks in a namespace; without one, to those in the namespace of the Job that is created.
//
// A Job passes where there is no lock at all: who deletes the locks takes the fence down until they are made anew, which the dispatchers do at once,
// and with a term that no former leader has.
func Binding(lockNamespace string) *admissionv1.ValidatingAdmissionPolicyBinding {
	name := Name
	if lockNamespace != "" {
		name += "-" + lockNamespace
	}
	return &admissionv1.ValidatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicyBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: Name,
			ParamRef: &admissionv1.ParamRef{
				Namespace: lockNamespace,
				Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: LabelLock, Operator: metav1.LabelSelectorOpExists},
				}},
				ParameterNotFoundAction: ptr.To(admissionv1.AllowAction),
			},
			ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
}
