package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

var testID = Identity{Source: "x://h/resize", Messages: NewMessageSet("m1"), Attempt: 1}

func testJob(t *testing.T, id Identity) *batchv1.Job {
	t.Helper()
	template, err := FromCronJob(cronJob(), keepAll)
	if err != nil {
		t.Fatal(err)
	}
	job, _ := newJob(t, template, Task{Identity: id, Content: content(t, PayloadAuto, []byte("x")), Packed: id.Messages.Len() > 1})
	return job
}

// newJob makes a Job, with a payload where the task has none.
func newJob(t testing.TB, template *Template, task Task) (*batchv1.Job, *corev1.Secret) {
	t.Helper()
	if task.Content == nil {
		task.Content = content(t, PayloadAuto, nil)
	}
	job, secret, err := template.Job(task)
	if err != nil {
		t.Fatal(err)
	}
	return job, secret
}

func content(t testing.TB, mode PayloadMode, payload []byte) *Content {
	t.Helper()
	c, err := NewContent(mode, payload)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLaunch(t *testing.T) {
	wanted := testJob(t, testID)
	altered := func(change func(*batchv1.Job)) *batchv1.Job {
		j := wanted.DeepCopy()
		change(j)
		return j
	}
	tests := map[string]struct {
		existing *batchv1.Job
		adopted  bool
		foreign  bool
	}{
		"new":     {},
		"ours":    {existing: wanted, adopted: true},
		"another": {existing: altered(func(j *batchv1.Job) { j.Annotations = nil }), foreign: true},
		"other source": {
			existing: altered(func(j *batchv1.Job) { j.Annotations[AnnotationSource] = "x://other/resize" }), foreign: true,
		},
		"other message": {existing: altered(func(j *batchv1.Job) { j.Annotations[AnnotationMessageID] = "m2" }), foreign: true},
		"other attempt": {existing: altered(func(j *batchv1.Job) { j.Annotations[AnnotationAttempt] = "2" }), foreign: true},
		"edited, and ours": {
			existing: altered(func(j *batchv1.Job) { j.Labels = nil; j.Annotations["more"] = "x"; j.Spec = batchv1.JobSpec{} }), adopted: true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			if test.existing != nil {
				client = fake.NewClientset(test.existing.DeepCopy())
			}
			job, adopted, err := NewLauncher(client, "").Launch(t.Context(), wanted)
			if test.foreign {
				if !errors.Is(err, ErrForeign) || Class(err) != "foreign" || Rejected(err) {
					t.Errorf("error %v, want ErrForeign", err)
				}
				return
			}
			if err != nil || adopted != test.adopted || job.Name != wanted.Name {
				t.Errorf("Job %v, adopted %v, %v; want adopted %v", job, adopted, err, test.adopted)
			}
		})
	}
}

// TestLaunchOfAVanishingJob: between the creation that finds it and the read, the Job is deleted.
func TestLaunchOfAVanishingJob(t *testing.T) {
	exists := apierrors.NewAlreadyExists(schema.GroupResource{Group: "batch", Resource: "jobs"}, "j")
	for _, times := range []int{1, 2, 3, 100} {
		t.Run(fmt.Sprint(times), func(t *testing.T) {
			client := fake.NewClientset()
			creations := 0
			client.PrependReactor("create", "jobs", func(clienttesting.Action) (bool, runtime.Object, error) {
				creations++
				return creations <= times, nil, exists
			})
			job, adopted, err := NewLauncher(client, "").Launch(t.Context(), testJob(t, testID))
			if times < 3 {
				if err != nil || adopted || job == nil {
					t.Errorf("%v, %v, %v; want it created", job, adopted, err)
				}
			} else if !apierrors.IsAlreadyExists(err) || creations != 3 || Rejected(err) {
				t.Errorf("%v after %d creations, want AlreadyExists after 3", err, creations)
			}
		})
	}
}

// TestDryRun: the API server is asked for the Job, and for the Secret where the mode may need one, without creating either.
func TestDryRun(t *testing.T) {
	tests := map[string]struct {
		mode   PayloadMode
		fail   string // the resource that the API server refuses
		asked  []string
		remedy string // part of the error
	}{
		"auto":           {mode: PayloadAuto, asked: []string{"jobs", "secrets"}},
		"env":            {mode: PayloadEnv, asked: []string{"jobs"}},
		"secret":         {mode: PayloadSecret, asked: []string{"jobs", "secrets"}},
		"file":           {mode: PayloadAsFile, asked: []string{"jobs", "secrets"}},
		"Job refused":    {mode: PayloadAuto, fail: "jobs", asked: []string{"jobs"}, remedy: "would not take a Job of this template"},
		"Secret refused": {mode: PayloadAuto, fail: "secrets", asked: []string{"jobs", "secrets"}, remedy: "with payload: env there would be none, but for large properties"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			var asked []string
			client.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
				create := a.(clienttesting.CreateActionImpl)
				asked = append(asked, a.GetResource().Resource)
				if diff := cmp.Diff([]string{metav1.DryRunAll}, create.GetCreateOptions().DryRun); diff != "" {
					t.Errorf("it would have been created (-want +got):\n%s", diff)
				}
				if a.GetResource().Resource == test.fail {
					return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: test.fail}, "x", errors.New("exceeded quota"))
				}
				switch object := create.GetObject().(type) {
				case *batchv1.Job:
					if object.Name == testID.Name() || object.Annotations[AnnotationFence] != "ns/lock/7" {
						t.Errorf("asked for the Job %s with the annotations %v", object.Name, object.Annotations)
					}
				case *corev1.Secret:
					if len(object.OwnerReferences) > 0 {
						t.Errorf("the Secret's owner %v does not exist", object.OwnerReferences)
					}
				}
				return true, create.GetObject(), nil
			})
			template, err := FromCronJob(cronJob(), keepAll)
			if err != nil {
				t.Fatal(err)
			}
			err = NewLauncher(client, "ns/lock/7").DryRun(t.Context(), template, "x://h/resize", test.mode)
			switch {
			case test.fail == "" && err != nil:
				t.Error(err)
			case test.fail != "" && (!Rejected(err) || !strings.Contains(err.Error(), test.remedy)):
				t.Errorf("error %v, want a rejection with %q", err, test.remedy)
			}
			if diff := cmp.Diff(test.asked, asked); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
		})
	}
}

// patchOf returns what is patched by do.
func patchOf(t *testing.T, do func(l *Launcher) error) map[string]any {
	t.Helper()
	client := fake.NewClientset()
	var body []byte
	client.PrependReactor("patch", "jobs", func(a clienttesting.Action) (bool, runtime.Object, error) {
		body = a.(clienttesting.PatchAction).GetPatch()
		return true, &batchv1.Job{}, nil
	})
	if err := do(NewLauncher(client, "")); err != nil {
		t.Fatal(err)
	}
	var patch map[string]any
	if err := json.Unmarshal(body, &patch); err != nil {
		t.Fatal(err)
	}
	return patch
}

// TestMarkSettled: the TTL counts from when the Job finished, and what is asked for counts from now (invariant 4).
func TestMarkSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finished := &batchv1.Job{Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{
			Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Now().Add(-time.Hour)),
		}}}}
		ahead := finished.DeepCopy() // another machine's clock
		ahead.Status.Conditions[0].LastTransitionTime = metav1.NewTime(time.Now().Add(time.Hour))
		for name, test := range map[string]struct {
			job *batchv1.Job
			ttl float64
		}{
			"finished an hour ago":    {finished, 3600 + 165 + 1},
			"not known to have ended": {&batchv1.Job{}, 165 + 1},
			"finished in the future":  {ahead, 165 + 1},
		} {
			patch := patchOf(t, func(l *Launcher) error {
				return l.MarkSettled(t.Context(), test.job, "completed", 165*time.Second)
			})
			want := map[string]any{
				"metadata": map[string]any{"labels": map[string]any{LabelSettled: "completed"}},
				"spec":     map[string]any{"ttlSecondsAfterFinished": test.ttl},
			}
			if diff := cmp.Diff(want, patch); diff != "" {
				t.Errorf("%s: patch (-want +got):\n%s", name, diff)
			}
		}
	})
}

func TestEnd(t *testing.T) {
	for message, ended := range map[string]string{
		"":                         "StartTimeout",
		"main: ErrImagePull":       "StartTimeout: main: ErrImagePull",
		strings.Repeat("ä", 10000): "StartTimeout: " + strings.Repeat("ä", 512) + "…",
	} {
		got := patchOf(t, func(l *Launcher) error { return l.End(t.Context(), "ns", "j", "StartTimeout", message) })
		want := map[string]any{
			"metadata": map[string]any{"annotations": map[string]any{AnnotationEnded: ended}},
			"spec":     map[string]any{"activeDeadlineSeconds": 1.0},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("patch (-want +got):\n%s", diff)
		}
	}
}

func TestPatchesOfAJobThatIsGone(t *testing.T) {
	l := NewLauncher(fake.NewClientset(), "")
	if err := l.MarkSettled(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gone"}}, "completed", 0); err != nil {
		t.Errorf("MarkSettled: %v", err)
	}
	if err := l.End(t.Context(), "ns", "gone", "StartTimeout", ""); err != nil {
		t.Errorf("End: %v", err)
	}
}

func TestWhyNotStarted(t *testing.T) {
	pod := func(status corev1.PodStatus) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", Labels: map[string]string{batchv1.JobNameLabel: "j"}}, Status: status,
		}
	}
	waiting := func(reason, message string) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}}
	}
	tests := map[string]struct {
		pods   []runtime.Object
		want   string
		reason string
	}{
		"no pods": {nil, "it has no pods", ReasonNoPods},
		"unschedulable": {[]runtime.Object{pod(corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes"},
		}})}, "Unschedulable: 0/3 nodes", "Unschedulable"},
		"no image": {[]runtime.Object{pod(corev1.PodStatus{
			InitContainerStatuses: waiting("PodInitializing", ""), ContainerStatuses: waiting("ErrImagePull", "no such image"),
		})}, "container c: ErrImagePull: no such image", "ErrImagePull"},
		"no message":        {[]runtime.Object{pod(corev1.PodStatus{ContainerStatuses: waiting("CreateContainerConfigError", "")})}, "container c: CreateContainerConfigError", "CreateContainerConfigError"},
		"nothing to say":    {[]runtime.Object{pod(corev1.PodStatus{})}, "", ""},
		"another Job's pod": {[]runtime.Object{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}}}, "it has no pods", ReasonNoPods},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reason, got, err := WhyNotStarted(t.Context(), fake.NewClientset(test.pods...).CoreV1(), "ns", "j")
			if err != nil || got != test.want || reason != test.reason {
				t.Errorf("%q: %q, %v; want %q: %q", reason, got, err, test.reason, test.want)
			}
		})
	}
}

// timeout is a network's.
type timeout struct{}

func (timeout) Error() string   { return "i/o timeout" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// plain500 is how the API server passes on an error that it does not know.
func plain500(text string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: text}}
}

func TestClasses(t *testing.T) {
	resource, kind := schema.GroupResource{Resource: "jobs"}, schema.GroupKind{Kind: "Job"}
	tests := map[string]struct {
		err      error
		want     string
		rejected bool
	}{
		"invalid":            {apierrors.NewInvalid(kind, "j", nil), "invalid", true},
		"bad request":        {apierrors.NewBadRequest("x"), "invalid", true},
		"template":           {ErrTemplate, "invalid", false},
		"quota":              {apierrors.NewForbidden(resource, "j", errors.New("exceeded quota")), "forbidden", true},
		"unauthorized":       {apierrors.NewUnauthorized("x"), "forbidden", true},
		"no namespace":       {apierrors.NewNotFound(resource, "j"), "not_found", true},
		"conflict":           {apierrors.NewConflict(resource, "j", nil), "conflict", false},
		"vanishing":          {apierrors.NewAlreadyExists(resource, "j"), "conflict", false},
		"throttled":          {apierrors.NewTooManyRequests("x", 1), "throttled", false},
		"server timeout":     {apierrors.NewServerTimeout(resource, "create", 1), "timeout", false},
		"deadline":           {context.DeadlineExceeded, "timeout", false},
		"network timeout":    {timeout{}, "timeout", false},
		"internal":           {apierrors.NewInternalError(errors.New("x")), "unavailable", false},
		"unavailable":        {apierrors.NewServiceUnavailable("x"), "unavailable", false},
		"bad gateway":        {apierrors.NewGenericServerResponse(502, "create", resource, "j", "", 0, true), "unavailable", false},
		"canceled":           {context.Canceled, "canceled", false},
		"payload":            {ErrPayload, "payload", false},
		"too large":          {apierrors.NewRequestEntityTooLargeError("x"), "payload", false},
		"too large for etcd": {plain500("etcdserver: request is too large"), "payload", false},
		"too large to send":  {plain500("rpc error: code = ResourceExhausted desc = trying to send message larger than max (2097279 vs. 2097152)"), "payload", false},
		"any plain 500":      {plain500("etcdserver: leader changed"), "unavailable", false},
		"foreign":            {ErrForeign, "foreign", false},
		"anything else":      {errors.New("x"), "other", false},
		"method not allowed": {apierrors.NewMethodNotSupported(resource, "create"), "other", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := fmt.Errorf("creating Job: %w", test.err)
			if got := Class(err); got != test.want {
				t.Errorf("class %q, want %q", got, test.want)
			}
			if got := Rejected(err); got != test.rejected {
				t.Errorf("rejected %v, want %v", got, test.rejected)
			}
		})
	}
}

func TestLongTemplateNamesMakeLabels(t *testing.T) {
	for name, want := range map[string]string{
		"resize": "resize",
		"a23456789-123456789-123456789-123456789-123456789-123456789-1.-xyz": "a23456789-123456789-123456789-123456789-123456789-123456789-1",
	} {
		if got := labelValue(name); got != want {
			t.Errorf("label %q, want %q", got, want)
		}
	}
}

func TestNothingOfATaskIsSharedWithTheNext(t *testing.T) {
	template, err := FromJob(&batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "j"}, Spec: batchv1.JobSpec{Suspend: ptr.To(true), Template: corev1.PodTemplateSpec{
			Spec: corev1.PodSpec{
				Volumes:    make([]corev1.Volume, 0, 10),
				Containers: []corev1.Container{{Name: "c", Env: make([]corev1.EnvVar, 0, 10), VolumeMounts: make([]corev1.VolumeMount, 0, 10)}},
			},
		}},
	}, keepAll)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []PayloadMode{PayloadAuto, PayloadAsFile} {
		var saw []string
		one, oneSecret := newJob(t, template, Task{Identity: testID, Content: content(t, mode, []byte("one"))})
		two, twoSecret := newJob(t, template, Task{
			Identity: Identity{Source: testID.Source, Messages: NewMessageSet("m2"), Attempt: 1}, Content: content(t, mode, []byte("two")),
		})
		for _, made := range []struct {
			job    *batchv1.Job
			secret *corev1.Secret
		}{{one, oneSecret}, {two, twoSecret}} {
			container := see(t, made.job, made.secret)[0]
			saw = append(saw, container.env[EnvMessageID], string(container.payload(t)))
		}
		if diff := cmp.Diff([]string{"m1", "one", "m2", "two"}, saw); diff != "" {
			t.Errorf("%s: what the tasks are given (-want +got):\n%s", mode, diff)
		}
	}
}
