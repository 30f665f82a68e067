package jobs

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"
)

// jobWithSecret is a Job as the API server knows it, and the Secret that its pods wait for.
func jobWithSecret(t *testing.T) (*batchv1.Job, *corev1.Secret) {
	t.Helper()
	job, secret := newJob(t, testTemplate(t), Task{Identity: testID, Content: content(t, PayloadAsFile, []byte("x"))})
	job.UID = "of-the-job"
	return job, secret
}

func TestProvide(t *testing.T) {
	job, secret := jobWithSecret(t)
	existing := func(owners ...metav1.OwnerReference) *corev1.Secret {
		s := secret.DeepCopy()
		s.OwnerReferences = owners
		return s
	}
	ours := metav1.OwnerReference{APIVersion: "batch/v1", Kind: "Job", Name: job.Name, UID: job.UID}
	former, other, notes := ours, ours, ours
	former.UID = "of-a-former-one"
	other.Name, other.UID = "another", "of-another"
	notes.Kind, notes.UID = "ConfigMap", "of-a-config-map"
	tests := map[string]struct {
		existing *corev1.Secret
		foreign  bool
		passes   bool // the error passes by itself
	}{
		"new":                    {},
		"there, and ours":        {existing: existing(ours)},
		"ours, and another's":    {existing: existing(other, ours)},
		"of a former Job":        {existing: existing(former), passes: true},
		"of another Job":         {existing: existing(other), foreign: true},
		"of a like-named object": {existing: existing(notes), foreign: true},
		"nobody's":               {existing: existing(), foreign: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			if test.existing != nil {
				client = fake.NewClientset(test.existing)
			}
			err := NewLauncher(client, "ns/lock/7").Provide(t.Context(), job, secret)
			if len(secret.OwnerReferences) > 0 {
				t.Error("the caller's Secret was changed")
			}
			switch {
			case test.foreign:
				if !errors.Is(err, ErrForeign) || Class(err) != "foreign" || !strings.Contains(err.Error(), "ns/"+secret.Name) {
					t.Errorf("error %v, want ErrForeign", err)
				}
				return
			case test.passes:
				if err == nil || errors.Is(err, ErrForeign) || Rejected(err) || Class(err) != "other" {
					t.Errorf("error %v, want one that passes", err)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			got, err := client.CoreV1().Secrets("ns").Get(t.Context(), job.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got.TypeMeta, got.ManagedFields = metav1.TypeMeta{}, nil
			want := existing(ours)
			if test.existing != nil {
				want = test.existing // it stays as it was
			} else {
				want.Immutable = ptr.To(true)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Secret (-want +got):\n%s", diff)
			}
		})
	}
}

// TestProvideAVanishingSecret: between the creation that finds it and the read, a former Job's Secret is deleted.
func TestProvideAVanishingSecret(t *testing.T) {
	exists := apierrors.NewAlreadyExists(schema.GroupResource{Resource: "secrets"}, "s")
	for _, times := range []int{1, 2, 3, 100} {
		t.Run(fmt.Sprint(times), func(t *testing.T) {
			client := fake.NewClientset()
			creations := 0
			client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
				creations++
				return creations <= times, nil, exists
			})
			job, secret := jobWithSecret(t)
			err := NewLauncher(client, "").Provide(t.Context(), job, secret)
			if times < 3 {
				if err != nil {
					t.Errorf("%v; want it created", err)
				}
			} else if !apierrors.IsAlreadyExists(err) || creations != 3 || Rejected(err) || errors.Is(err, ErrForeign) {
				t.Errorf("%v after %d creations, want AlreadyExists after 3", err, creations)
			}
		})
	}
}

// TestProvideIsRefused: a quota on Secrets, say, is the user's to mend, as one on Jobs is.
func TestProvideIsRefused(t *testing.T) {
	resource := schema.GroupResource{Resource: "secrets"}
	for name, test := range map[string]struct {
		verb     string
		err      error
		rejected bool
		class    string
	}{
		"quota":               {"create", apierrors.NewForbidden(resource, "s", errors.New("exceeded quota")), true, "forbidden"},
		"unavailable":         {"create", apierrors.NewServiceUnavailable("x"), false, "unavailable"},
		"no right to read it": {"get", apierrors.NewForbidden(resource, "s", errors.New("no such right")), true, "forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			job, secret := jobWithSecret(t)
			client := fake.NewClientset(secret)
			client.PrependReactor(test.verb, "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, test.err })
			err := NewLauncher(client, "").Provide(t.Context(), job, secret)
			if !errors.Is(err, test.err) || Rejected(err) != test.rejected || Class(err) != test.class {
				t.Errorf("error %v of class %s, rejected %v; want %v of class %s, %v", err, Class(err), Rejected(err), test.err, test.class, test.rejected)
			}
		})
	}
}
