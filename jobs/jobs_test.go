package jobs

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
)

func keepAll(m map[string]string) map[string]string { return m }

func TestNameIsAPureFunctionOfTheIdentity(t *testing.T) {
	base := Identity{Source: "redis-streams://r:6379/0/thumbs?group=g", MessageID: "1-0", Attempt: 1}
	same := base
	if base.Name() != same.Name() {
		t.Fatal("two names for one identity")
	}
	seen := map[string]Identity{}
	for _, id := range []Identity{
		base,
		{Source: base.Source, MessageID: "1-0", Attempt: 2},
		{Source: base.Source, MessageID: "1-1", Attempt: 1},
		{Source: "redis-streams://r:6379/1/thumbs?group=g", MessageID: "1-0", Attempt: 1},
		{Source: "redis-streams://r:6379/0/thumbs?group=h", MessageID: "1-0", Attempt: 1},
		// The border between source and message must not be movable.
		{Source: base.Source + "1", MessageID: "-0", Attempt: 1},
	} {
		name := id.Name()
		if other, ok := seen[name]; ok {
			t.Errorf("%+v and %+v have the same name", id, other)
		}
		seen[name] = id
	}
}

func TestNamesAreValid(t *testing.T) {
	for _, source := range []string{
		"azure-storage-queue://account.queue.core.windows.net/tasks",
		"redis-streams://h:1/0/Ünï::code_stream?group=x",
		"redis-streams://h:1/0/---?group=x",
		"x://h/" + strings.Repeat("long-", 40),
		"",
	} {
		name := Identity{Source: source, MessageID: "m", Attempt: 1_000_000}.Name()
		if errs := validation.IsDNS1123Label(name); len(errs) > 0 {
			t.Errorf("source %q makes the name %q: %v", source, name, errs)
		}
	}
}

// cronJob is a template with a bit of everything.
func cronJob() *batchv1.CronJob {
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "resize", Labels: map[string]string{"of": "cronjob"}},
		Spec: batchv1.CronJobSpec{
			Suspend: ptr.To(true),
			JobTemplate: batchv1.JobTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      map[string]string{"team": "images"},
					Annotations: map[string]string{"note": "kept"},
				},
				Spec: batchv1.JobSpec{
					BackoffLimit:            ptr.To[int32](2),
					TTLSecondsAfterFinished: ptr.To[int32](60),
					Template: corev1.PodTemplateSpec{
						ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "resize"}},
						Spec: corev1.PodSpec{
							RestartPolicy:  corev1.RestartPolicyNever,
							InitContainers: []corev1.Container{{Name: "init"}},
							Containers: []corev1.Container{
								{Name: "main", Env: []corev1.EnvVar{{Name: "ARGS", Value: "--event=$(KEDA_TASK_DATA)"}}},
								{Name: "side"},
							},
						},
					},
				},
			},
		},
	}
}

func TestJobFromCronJob(t *testing.T) {
	template, err := FromCronJob(cronJob(), keepAll)
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{Source: "x://h/resize", MessageID: "m1", Attempt: 3}
	enqueued := time.Date(2026, 11, 23, 10, 0, 0, 5, time.UTC)
	got, err := template.Job(Task{Identity: id, Payload: []byte(`{"cost": "$5", "a": "$(SECRET)"}`), EnqueuedAt: enqueued})
	if err != nil {
		t.Fatal(err)
	}
	payload := corev1.EnvVar{Name: EnvPayload, Value: `{"cost": "$$5", "a": "$$(SECRET)"}`}
	want := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns",
			Name:      id.Name(),
			Labels:    map[string]string{"team": "images", LabelTemplate: "resize"},
			Annotations: map[string]string{
				"note":               "kept",
				AnnotationTemplate:   "CronJob/resize",
				AnnotationSource:     "x://h/resize",
				AnnotationMessageID:  "m1",
				AnnotationAttempt:    "3",
				AnnotationEnqueuedAt: "2026-11-23T10:00:00.000000005Z",
			},
		},
		Spec: batchv1.JobSpec{
			BackoffLimit: ptr.To[int32](2),
			// The TTL is held back until the message is settled.
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "resize", LabelTemplate: "resize"}},
				Spec: corev1.PodSpec{
					RestartPolicy:  corev1.RestartPolicyNever,
					InitContainers: []corev1.Container{{Name: "init", Env: []corev1.EnvVar{payload}}},
					Containers: []corev1.Container{
						{Name: "main", Env: []corev1.EnvVar{payload, {Name: "ARGS", Value: "--event=$(KEDA_TASK_DATA)"}}},
						{Name: "side", Env: []corev1.EnvVar{payload}},
					},
				},
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Job (-want +got):\n%s", diff)
	}
	if ttl, ok := template.TTL(); !ok || ttl != time.Minute {
		t.Errorf("TTL %v, %v; want 1m", ttl, ok)
	}
	if read, err := IdentityOf(got); err != nil || read != id {
		t.Errorf("identity %+v, %v; want %+v", read, err, id)
	}

	again, err := template.Job(Task{Identity: Identity{Source: "x://h/resize", MessageID: "m2", Attempt: 1}, Payload: []byte("other")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("making another Job changed the first:\n%s", diff)
	}
	if _, ok := again.Annotations[AnnotationEnqueuedAt]; ok {
		t.Error("a message without a time has one on its Job")
	}
}

func TestJobFromSuspendedJob(t *testing.T) {
	generated := map[string]string{
		"controller-uid": "u", "job-name": "resize", batchv1.ControllerUidLabel: "u", batchv1.JobNameLabel: "resize", "app": "resize",
	}
	spec := cronJob().Spec.JobTemplate.Spec
	spec.Suspend = ptr.To(true)
	spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: "u"}}
	spec.Template.Labels = generated
	template, err := FromJob(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "resize", Labels: map[string]string{"team": "images", "job-name": "resize"}}, Spec: spec}, keepAll)
	if err != nil {
		t.Fatal(err)
	}
	got, err := template.Job(Task{Identity: Identity{Source: "x://h/q", MessageID: "m", Attempt: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Spec.Suspend != nil || got.Spec.Selector != nil {
		t.Errorf("suspend %v and selector %v are the template's own", got.Spec.Suspend, got.Spec.Selector)
	}
	if diff := cmp.Diff(map[string]string{"app": "resize", LabelTemplate: "resize"}, got.Spec.Template.Labels); diff != "" {
		t.Errorf("pod labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"team": "images", LabelTemplate: "resize"}, got.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

// TestToolAnnotationsStayOnTheTemplate: what kubectl and Argo CD write on an object they applied says nothing true of the Jobs made from it.
func TestToolAnnotationsStayOnTheTemplate(t *testing.T) {
	written := map[string]string{
		"kubectl.kubernetes.io/last-applied-configuration": "{}", "argocd.argoproj.io/tracking-id": "app:batch/Job:ns/resize", "note": "kept",
	}
	fromCronJob := cronJob()
	fromCronJob.Spec.JobTemplate.Annotations = written
	fromJob := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "resize", Annotations: written}, Spec: cronJob().Spec.JobTemplate.Spec}
	fromJob.Spec.Suspend = ptr.To(true)
	for kind, newTemplate := range map[string]func() (*Template, error){
		"CronJob": func() (*Template, error) { return FromCronJob(fromCronJob, keepAll) },
		"Job":     func() (*Template, error) { return FromJob(fromJob, keepAll) },
	} {
		template, err := newTemplate()
		if err != nil {
			t.Fatal(err)
		}
		job, err := template.Job(Task{Identity: testID})
		if err != nil {
			t.Fatal(err)
		}
		if len(written) != 3 {
			t.Fatal("the object itself was changed")
		}
		for key := range written {
			if _, kept := job.Annotations[key]; kept != (key == "note") {
				t.Errorf("%s: a Job has the annotations %v", kind, job.Annotations)
			}
		}
	}
}

func TestUnusableTemplates(t *testing.T) {
	tests := map[string]struct {
		make func() (*Template, error)
		want string
	}{
		"CronJob that is not suspended": {
			func() (*Template, error) {
				c := cronJob()
				c.Spec.Suspend = ptr.To(false)
				return FromCronJob(c, keepAll)
			}, "set spec.suspend: true",
		},
		"CronJob without suspend": {
			func() (*Template, error) {
				c := cronJob()
				c.Spec.Suspend = nil
				return FromCronJob(c, keepAll)
			}, "set spec.suspend: true",
		},
		"Job that runs": {
			func() (*Template, error) { return FromJob(&batchv1.Job{}, keepAll) }, "create it with spec.suspend: true",
		},
		"Job that has run": {
			func() (*Template, error) {
				return FromJob(&batchv1.Job{Spec: batchv1.JobSpec{Suspend: ptr.To(true)}, Status: batchv1.JobStatus{Failed: 1}}, keepAll)
			}, "has run already",
		},
		"payload variable in use": {
			func() (*Template, error) {
				c := cronJob()
				c.Spec.JobTemplate.Spec.Template.Spec.InitContainers[0].Env = []corev1.EnvVar{{Name: EnvPayload}}
				return FromCronJob(c, keepAll)
			}, `container "init" sets KEDA_TASK_DATA itself; remove it`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := test.make()
			if !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want ErrTemplate with %q", err, test.want)
			}
		})
	}
}

func TestPayloadsAreCarriedOrRefused(t *testing.T) {
	longest := bytes.Repeat([]byte("a"), maxEnvPayload)
	tests := map[string]struct {
		payload []byte
		refused string // part of the error
	}{
		"empty":             {payload: nil},
		"text":              {payload: []byte("hello, wörld\n\"'`\\")},
		"one byte to spare": {payload: longest[1:]},
		"longest":           {payload: longest},
		"too long by one":   {payload: append([]byte("a"), longest...), refused: "131056 at most"},
		"NUL":               {payload: []byte("a\x00b"), refused: "byte 1 is NUL"},
		"not UTF-8":         {payload: []byte("a\xffb"), refused: "not valid UTF-8"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := payloadEnv(test.payload)
			if test.refused != "" {
				if !errors.Is(err, ErrPayload) || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("error %v, want ErrPayload with %q", err, test.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if back := strings.ReplaceAll(got.Value, "$$", "$"); back != string(test.payload) {
				t.Error("the payload does not come back")
			}
		})
	}
}

func TestStatusOf(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))
	condition := func(kind batchv1.JobConditionType, status corev1.ConditionStatus, reason string) batchv1.JobStatus {
		return batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: kind, Status: status, Reason: reason, LastTransitionTime: at}}}
	}
	tests := map[string]struct {
		job  batchv1.Job
		want Status
	}{
		"new":         {batchv1.Job{}, Status{Phase: Pending}},
		"suspended":   {batchv1.Job{Spec: batchv1.JobSpec{Suspend: ptr.To(true)}}, Status{Phase: Pending, Suspended: true}},
		"pod pending": {batchv1.Job{Status: batchv1.JobStatus{Active: 1, Ready: ptr.To[int32](0)}}, Status{Phase: Pending}},
		"pod ready":   {batchv1.Job{Status: batchv1.JobStatus{Active: 1, Ready: ptr.To[int32](1)}}, Status{Phase: Running}},
		"pod failed, another to come": {
			batchv1.Job{Status: batchv1.JobStatus{Failed: 1}}, Status{Phase: Running},
		},
		// The pods still terminate: the Job can be relied on only once it is Complete or Failed.
		"success criteria met": {batchv1.Job{Status: condition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, "")}, Status{}},
		"failure target":       {batchv1.Job{Status: condition(batchv1.JobFailureTarget, corev1.ConditionTrue, "")}, Status{}},
		"complete, not true":   {batchv1.Job{Status: condition(batchv1.JobComplete, corev1.ConditionFalse, "")}, Status{}},
		"complete": {
			batchv1.Job{Status: condition(batchv1.JobComplete, corev1.ConditionTrue, "")},
			Status{Phase: Succeeded, FinishedAt: at.Time},
		},
		"failed": {
			batchv1.Job{Status: condition(batchv1.JobFailed, corev1.ConditionTrue, "BackoffLimitExceeded")},
			Status{Phase: Failed, Reason: "BackoffLimitExceeded", FinishedAt: at.Time},
		},
		"ended by us": {
			batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AnnotationEnded: "StartTimeout"}},
				Status:     condition(batchv1.JobFailed, corev1.ConditionTrue, "DeadlineExceeded"),
			},
			Status{Phase: Failed, Reason: "StartTimeout", FinishedAt: at.Time},
		},
		"ended by us, and explained": {
			batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AnnotationEnded: "StartTimeout: main: ErrImagePull"}},
				Status:     condition(batchv1.JobFailed, corev1.ConditionTrue, "DeadlineExceeded"),
			},
			Status{Phase: Failed, Reason: "StartTimeout", Message: "main: ErrImagePull", FinishedAt: at.Time},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, StatusOf(&test.job)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}
