package jobs

import (
	"errors"
	"slices"
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
	base := Identity{Source: "redis-streams://r:6379/0/thumbs?group=g", Messages: NewMessageSet("1-0"), Attempt: 1}
	same := base
	if base.Name() != same.Name() {
		t.Fatal("two names for one identity")
	}
	seen := map[string]Identity{}
	for _, id := range []Identity{
		base,
		{Source: base.Source, Messages: NewMessageSet("1-0"), Attempt: 2},
		{Source: base.Source, Messages: NewMessageSet("1-1"), Attempt: 1},
		{Source: base.Source, Messages: NewMessageSet("1-0", "1-1"), Attempt: 1},
		{Source: base.Source, Messages: NewMessageSet("1-0", "1-2"), Attempt: 1},
		{Source: base.Source, Messages: NewMessageSet("1-0", "1-1", "1-2"), Attempt: 1},
		{Source: "redis-streams://r:6379/1/thumbs?group=g", Messages: NewMessageSet("1-0"), Attempt: 1},
		{Source: "redis-streams://r:6379/0/thumbs?group=h", Messages: NewMessageSet("1-0"), Attempt: 1},
		// The border between source and message must not be movable, nor that between messages.
		{Source: base.Source + "1", Messages: NewMessageSet("-0"), Attempt: 1},
		{Source: base.Source, Messages: NewMessageSet("1-01-1"), Attempt: 1},
	} {
		name := id.Name()
		if other, ok := seen[name]; ok {
			t.Errorf("%+v and %+v have the same name", id, other)
		}
		seen[name] = id
	}
}

// TestNamesStay: a Job's name is the record of its attempt, and processes of different versions must agree on it.
func TestNamesStay(t *testing.T) {
	for name, id := range map[string]Identity{
		"thumbs-s74ed1tuqg4jjbd68hd3-1": {Source: "redis-streams://r:6379/0/thumbs?group=g", Messages: NewMessageSet("1-0"), Attempt: 1},
		"tasks-6rga0dhi9jqtij0soiji-12": {
			Source: "azure-storage-queue://account.queue.core.windows.net/tasks", Messages: NewMessageSet("c3e1a0f5-6f0f-4c2b-9a49-d54f3d7b7d2c"), Attempt: 12,
		},
		"thumbs-qrg6jk2u205rtsmn4mlp-2": {Source: "redis-streams://r:6379/0/thumbs?group=g", Messages: NewMessageSet("1-1", "1-0"), Attempt: 2},
	} {
		if got := id.Name(); got != name {
			t.Errorf("%+v has the name %s, and had %s", id, got, name)
		}
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
		name := Identity{Source: source, Messages: NewMessageSet("m"), Attempt: 1_000_000}.Name()
		if errs := validation.IsDNS1123Label(name); len(errs) > 0 {
			t.Errorf("source %q makes the name %q: %v", source, name, errs)
		}
	}
}

// TestMessageSet: what differs in order only, or names a message twice, is the same.
func TestMessageSet(t *testing.T) {
	tests := map[string]struct {
		ids  []string
		want []string
	}{
		"one":                 {[]string{"b"}, []string{"b"}},
		"in order":            {[]string{"a", "b", "c"}, []string{"a", "b", "c"}},
		"out of order":        {[]string{"c", "a", "b"}, []string{"a", "b", "c"}},
		"twice":               {[]string{"b", "a", "b"}, []string{"a", "b"}},
		"the same one twice":  {[]string{"a", "a"}, []string{"a"}},
		"by bytes, not value": {[]string{"10-0", "9-0"}, []string{"10-0", "9-0"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			given := slices.Clone(test.ids)
			set := NewMessageSet(test.ids...)
			if diff := cmp.Diff(test.want, slices.Collect(set.All())); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
			if set.Len() != len(test.want) {
				t.Errorf("%d ids, want %d", set.Len(), len(test.want))
			}
			if again := NewMessageSet(slices.Collect(set.All())...); again != set {
				t.Errorf("made anew it is %q, and was %q", again, set)
			}
			if diff := cmp.Diff(given, test.ids); diff != "" {
				t.Errorf("the caller's ids were changed:\n%s", diff)
			}
		})
	}
}

func TestIdentityOf(t *testing.T) {
	pack := Identity{Source: "x://h/resize", Messages: NewMessageSet("m2", "m1"), Attempt: 2}
	tests := map[string]struct {
		of     Identity
		change func(map[string]string)
		want   string // part of the error; empty: the identity comes back
	}{
		"one message": {of: testID},
		"a pack":      {of: pack},
		"a pack of one": {of: testID, change: func(a map[string]string) {
			a[AnnotationMessageIDs] = a[AnnotationMessageID]
			delete(a, AnnotationMessageID)
		}},
		"no messages":               {pack, func(a map[string]string) { delete(a, AnnotationMessageIDs) }, "does not carry the identity"},
		"no source":                 {pack, func(a map[string]string) { delete(a, AnnotationSource) }, "does not carry the identity"},
		"no attempt":                {pack, func(a map[string]string) { a[AnnotationAttempt] = "0" }, "does not carry the identity"},
		"a message less":            {pack, func(a map[string]string) { a[AnnotationMessageIDs] = "m1" }, "the identity of another Job"},
		"a message more":            {pack, func(a map[string]string) { a[AnnotationMessageIDs] = "m1 m2 m3" }, "the identity of another Job"},
		"not in order":              {pack, func(a map[string]string) { a[AnnotationMessageIDs] = "m2 m1" }, "the identity of another Job"},
		"a pack, and a message too": {pack, func(a map[string]string) { a[AnnotationMessageID] = "m1" }, "the identity of another Job"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			job := testJob(t, test.of)
			if test.change != nil {
				test.change(job.Annotations)
			}
			got, err := IdentityOf(job)
			switch {
			case test.want == "" && (err != nil || got != test.of):
				t.Errorf("identity %+v, %v; want %+v", got, err, test.of)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("identity %+v, error %v; want %q", got, err, test.want)
			}
		})
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
	id := Identity{Source: "x://h/resize", Messages: NewMessageSet("m1"), Attempt: 3}
	enqueued := time.Date(2026, 11, 23, 10, 0, 0, 5, time.UTC)
	got, secret, err := template.Job(Task{
		Identity: id, Content: content(t, PayloadAuto, []byte(`{"cost": "$5", "a": "$(SECRET)"}`)),
		EnqueuedAt: enqueued, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	})
	if err != nil || secret != nil {
		t.Fatal(err, secret)
	}
	told := func(more ...corev1.EnvVar) []corev1.EnvVar {
		return append([]corev1.EnvVar{
			{Name: EnvPayload, Value: `{"cost": "$$5", "a": "$$(SECRET)"}`},
			{Name: "LIGHTERMAN_MESSAGE_ID", Value: "m1"},
			{Name: "LIGHTERMAN_ENQUEUED_AT", Value: "2026-11-23T10:00:00.000000005Z"},
			{Name: "TRACEPARENT", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			{Name: "LIGHTERMAN_ATTEMPT", Value: "3"},
			{Name: "LIGHTERMAN_SOURCE", Value: "x://h/resize"},
			{Name: "LIGHTERMAN_TASK_COUNT", Value: "1"},
		}, more...)
	}
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
					InitContainers: []corev1.Container{{Name: "init", Env: told()}},
					Containers: []corev1.Container{
						{Name: "main", Env: told(corev1.EnvVar{Name: "ARGS", Value: "--event=$(KEDA_TASK_DATA)"})},
						{Name: "side", Env: told()},
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

	again, _ := newJob(t, template, Task{Identity: Identity{Source: "x://h/resize", Messages: NewMessageSet("m2"), Attempt: 1}, Content: content(t, PayloadAsFile, []byte("other"))})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("making another Job changed the first:\n%s", diff)
	}
	if _, ok := again.Annotations[AnnotationEnqueuedAt]; ok {
		t.Error("a message without a time has one on its Job")
	}
	want2 := []string{EnvPayloadFile, "LIGHTERMAN_MESSAGE_ID", "LIGHTERMAN_ATTEMPT", "LIGHTERMAN_SOURCE", "LIGHTERMAN_TASK_COUNT"}
	if diff := cmp.Diff(want2, names(again.Spec.Template.Spec.InitContainers[0].Env)); diff != "" {
		t.Errorf("variables of a message without a time and a trace (-want +got):\n%s", diff)
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
	got, _ := newJob(t, template, Task{Identity: Identity{Source: "x://h/q", Messages: NewMessageSet("m"), Attempt: 1}})
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
		job, _ := newJob(t, template, Task{Identity: testID})
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

// TestReservedNames: a template may not use the names by which a payload is handed over.
func TestReservedNames(t *testing.T) {
	setting := func(name string) func(*corev1.PodSpec) {
		return func(p *corev1.PodSpec) { p.InitContainers[0].Env = []corev1.EnvVar{{Name: name}} }
	}
	mounting := func(path string) func(*corev1.PodSpec) {
		return func(p *corev1.PodSpec) {
			p.Volumes = []corev1.Volume{{Name: "v"}}
			p.Containers[1].VolumeMounts = []corev1.VolumeMount{{Name: "other", MountPath: "/srv"}, {Name: "v", MountPath: path}}
		}
	}
	tests := map[string]struct {
		change func(*corev1.PodSpec)
		want   string // part of the error; empty: none
	}{
		"payload":             {setting(EnvPayload), `container "init" sets KEDA_TASK_DATA itself; remove it`},
		"file":                {setting(EnvPayloadFile), `container "init" sets KEDA_TASK_DATA_FILE itself; remove it`},
		"encoding":            {setting(EnvPayloadEncoding), `container "init" sets KEDA_TASK_DATA_ENCODING itself; remove it`},
		"what it may replace": {setting(EnvMessageID), ""},
		"a name like it":      {setting("KEDA_TASK_DATA_"), ""},
		"volume": {
			func(p *corev1.PodSpec) { p.Volumes = []corev1.Volume{{Name: "lighterman-payload"}} }, "a volume named lighterman-payload",
		},
		"a volume like it":     {func(p *corev1.PodSpec) { p.Volumes = []corev1.Volume{{Name: "lighterman"}} }, ""},
		"mount":                {mounting("/var/run/lighterman"), `container "side" mounts volume v at /var/run/lighterman, where`},
		"mount with a slash":   {mounting("/var/run/lighterman/"), `mounts volume v at /var/run/lighterman/, where`},
		"mount, roundabout":    {mounting("/var/./run/x/../lighterman"), `where the dispatcher puts payloads; mount it elsewhere`},
		"mount below":          {mounting("/var/run/lighterman/tasks.jsonl"), `where the dispatcher puts payloads; mount it elsewhere`},
		"mount beside":         {mounting("/var/run/lighterman-other"), ""},
		"mount above":          {mounting("/var/run"), ""},
		"mount of a like name": {mounting("/srv/var/run/lighterman"), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := cronJob()
			test.change(&c.Spec.JobTemplate.Spec.Template.Spec)
			_, err := FromCronJob(c, keepAll)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (!errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want ErrTemplate with %q", err, test.want)
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
