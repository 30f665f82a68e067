package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// listOf is a termination message of exactly so many bytes that names only ids of the pack: the JSON is filled up with spaces.
func listOf(size int, ids ...string) string {
	list := must(json.Marshal(map[string][]string{"failed": ids}))
	return string(list[:len(list)-1]) + strings.Repeat(" ", size-len(list)) + "}"
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestParseVerdict(t *testing.T) {
	const wrongForm = `is not of the form {"failed": ["id", …]}`
	const cutOff = "is cut off at 4096 bytes, so that it is not known which messages failed; where more fail than fit, exit with an error"
	tests := map[string]struct {
		message string
		limit   int // 4096 where it is 0
		want    []string
		err     string
	}{
		"nothing":                      {},
		"plain text":                   {message: "done: 3 of 3"},
		"plain text with braces":       {message: "done {3 of 3}"},
		"JSON without a list":          {message: `{"processed": 3}`},
		"JSON, and no object":          {message: `["1-0"]`},
		"a number":                     {message: `3`},
		"null":                         {message: `null`},
		"an empty list":                {message: `{"failed": []}`, want: []string{}},
		"null for a list":              {message: `{"failed": null}`},
		"one":                          {message: `{"failed": ["1-0"]}`, want: []string{"1-0"}},
		"several, and more to say":     {message: "\n{\"failed\": [\"1-0\", \"1-1\"], \"took\": \"3s\"}\n", want: []string{"1-0", "1-1"}},
		"ids as numbers":               {message: `{"failed": [1, 2]}`, err: wrongForm},
		"one id without its list":      {message: `{"failed": "1-0"}`, err: wrongForm},
		"a list of objects":            {message: `{"failed": [{"id": "1-0"}]}`, err: wrongForm},
		"a count":                      {message: `{"failed": 3}`, err: wrongForm},
		"without its end":              {message: `{"failed": ["1-0"`, err: wrongForm},
		"two lists":                    {message: "{\"failed\": [\"1-0\"]}\n{\"failed\": [\"1-1\"]}", err: wrongForm},
		"more after it":                {message: `{"failed": ["1-0"]} done`, err: wrongForm},
		"Python's quotes":              {message: `{'failed': ['1-0']}`, err: wrongForm},
		"as long as can be":            {message: listOf(4096, "1-0", "1-1"), want: []string{"1-0", "1-1"}},
		"the end of a longer one":      {message: listOf(5000, "1-0", "1-1")[904:], err: cutOff},
		"the beginning of a longer":    {message: listOf(5000, "1-0", "1-1")[:4096], err: cutOff},
		"text as long as can be":       {message: strings.Repeat("x", 4096), err: cutOff},
		"text that is shorter":         {message: strings.Repeat("x", 4095)},
		"cut off at less":              {message: listOf(2000, "1-0")[:1024], limit: 1024, err: "is cut off at 1024 bytes"},
		"text that is cut off at less": {message: strings.Repeat("x", 1024), limit: 1024, err: "is cut off at 1024 bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			limit := test.limit
			if limit == 0 {
				limit = maxMessage
			}
			got, err := parseVerdict(test.message, limit)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || got != nil {
					t.Errorf("%v, error %v; want %q", got, err, test.err)
				}
				return
			}
			if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
				t.Errorf("%v; ids (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestVerdictOf(t *testing.T) {
	id := Identity{Source: "x://h/resize", Messages: NewMessageSet("m1", "m2", "m3"), Attempt: 1}
	pods := 0
	pod := func(phase corev1.PodPhase, messages ...string) runtime.Object {
		pods++
		p := &corev1.Pod{Status: corev1.PodStatus{Phase: phase}}
		p.Namespace, p.Name, p.Labels = "ns", fmt.Sprint("p", pods), map[string]string{batchv1.JobNameLabel: id.Name()}
		for i, message := range messages {
			name := fmt.Sprint("c", i)
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name})
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
				Name: name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: message}},
			})
		}
		return p
	}
	of := func(p runtime.Object, change func(*corev1.Pod)) runtime.Object {
		change(p.(*corev1.Pod))
		return p
	}
	done := corev1.PodSucceeded
	tests := map[string]struct {
		pods      []runtime.Object
		succeeded int32 // pods, as the Job counts them; it may be late
		failed    []string
		unclear   string // part of it
	}{
		"no list":           {pods: []runtime.Object{pod(done, "")}},
		"plain text":        {pods: []runtime.Object{pod(done, "3 of 3 done")}},
		"a list":            {pods: []runtime.Object{pod(done, `{"failed": ["m2"]}`)}, failed: []string{"m2"}},
		"all of them":       {pods: []runtime.Object{pod(done, `{"failed": ["m3", "m1", "m2"]}`)}, failed: []string{"m1", "m2", "m3"}},
		"one of them twice": {pods: []runtime.Object{pod(done, `{"failed": ["m2", "m2"]}`)}, failed: []string{"m2"}},
		"an id of no message": {
			pods: []runtime.Object{pod(done, `{"failed": ["m2", "m4"]}`)}, unclear: `container c0 names something of 2 bytes as failed, which is not in the pack`,
		},
		"a long id of no message": {
			pods:    []runtime.Object{pod(done, `{"failed": ["`+strings.Repeat("x", 1000)+`"]}`)},
			unclear: `names something of 1000 bytes as failed`,
		},
		"two ids as one":   {pods: []runtime.Object{pod(done, `{"failed": ["m1 m2"]}`)}, unclear: "which is not in the pack"},
		"an empty id":      {pods: []runtime.Object{pod(done, `{"failed": [null]}`)}, unclear: "which is not in the pack"},
		"of a wrong type":  {pods: []runtime.Object{pod(done, `{"failed": "m1"}`)}, unclear: "termination message of container c0 is not of the form"},
		"cut off":          {pods: []runtime.Object{pod(done, listOf(5000, "m1")[904:])}, unclear: "container c0 is cut off at 4096 bytes"},
		"no pods":          {unclear: "0 of the 1 pods that succeeded are left"},
		"no succeeded pod": {pods: []runtime.Object{pod(corev1.PodFailed, `{"failed": ["m1"]}`)}, unclear: "0 of the 1 pods that succeeded are left"},
		"another Job's pod": {
			pods:    []runtime.Object{of(pod(done, ""), func(p *corev1.Pod) { p.Labels[batchv1.JobNameLabel] = "another" })},
			unclear: "0 of the 1 pods that succeeded are left",
		},
		"another namespace's pod": {
			pods: []runtime.Object{of(pod(done, ""), func(p *corev1.Pod) { p.Namespace = "other" })}, unclear: "0 of the 1 pods that succeeded are left",
		},
		"a failed pod, and its successor": {
			pods:   []runtime.Object{pod(corev1.PodFailed, `{"failed": ["m1"]}`), pod(done, `{"failed": ["m3"]}`)},
			failed: []string{"m3"},
		},
		"several containers": {
			pods: []runtime.Object{pod(done, `{"failed": ["m1"]}`, "nothing to report", `{"failed": ["m2"]}`)}, failed: []string{"m1", "m2"},
		},
		"several pods": {
			pods:   []runtime.Object{pod(done, `{"failed": ["m1"]}`), pod(done, ""), pod(done, `{"failed": ["m1", "m3"]}`)},
			failed: []string{"m1", "m3"},
		},
		"several pods, one unclear": {
			pods: []runtime.Object{pod(done, `{"failed": ["m1"]}`), pod(done, `{"failed": 1}`), pod(done, "")}, unclear: "is not of the form",
		},
		"one of several pods is gone": {
			pods: []runtime.Object{pod(done, `{"failed": ["m1"]}`), pod(done, "")}, succeeded: 3, unclear: "2 of the 3 pods that succeeded are left",
		},
		"a pod of a former Job of the name": {
			pods:    []runtime.Object{of(pod(done, `{"failed": ["m1"]}`), func(p *corev1.Pod) { p.Labels[batchv1.ControllerUidLabel] = "former" })},
			unclear: "0 of the 1 pods that succeeded are left",
		},
		"a container that has not ended": {
			pods: []runtime.Object{of(pod(done, `{"failed": ["m1"]}`, ""), func(p *corev1.Pod) {
				p.Status.ContainerStatuses[1].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
			})},
			failed: []string{"m1"},
		},
		"twelve containers have 1 KiB each": {
			pods:    []runtime.Object{pod(done, append(make([]string, 11), listOf(2000, "m1")[:1024])...)},
			unclear: "container c11 is cut off at 1024 bytes",
		},
		"init and ephemeral containers count": {
			pods: []runtime.Object{of(pod(done, listOf(5000, "m1")[:2457], ""), func(p *corev1.Pod) {
				p.Spec.InitContainers, p.Spec.EphemeralContainers = make([]corev1.Container, 2), make([]corev1.EphemeralContainer, 1)
			})},
			unclear: "container c0 is cut off at 2457 bytes",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			job := &batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: id.Name(), UID: "ours", Annotations: map[string]string{
					AnnotationSource: id.Source, AnnotationMessageIDs: string(id.Messages), AnnotationAttempt: "1",
				}},
				Status: batchv1.JobStatus{Succeeded: test.succeeded},
			}
			got, err := VerdictOf(t.Context(), fake.NewClientset(test.pods...).CoreV1(), job)
			if err != nil {
				t.Fatal(err)
			}
			if test.unclear != "" {
				if !strings.Contains(got.Unclear, test.unclear) {
					t.Errorf("it is unclear since %q, want %q", got.Unclear, test.unclear)
				}
				return
			}
			if diff := cmp.Diff(test.failed, slices.Sorted(maps.Keys(got.Failed))); diff != "" || got.Unclear != "" {
				t.Errorf("unclear %q; failed (-want +got):\n%s", got.Unclear, diff)
			}
		})
	}
}

func TestVerdictOfCannotBeRead(t *testing.T) {
	client, refused := fake.NewClientset(), errors.New("no such right")
	client.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, refused })
	if v, err := VerdictOf(t.Context(), client.CoreV1(), testJob(t, testID)); !errors.Is(err, refused) || v.Failed != nil {
		t.Errorf("%+v, error %v; want none and %v", v, err, refused)
	}
}

// FuzzVerdict: no message makes it panic, and a list that a kubelet cut off is never taken for a shorter one.
func FuzzVerdict(f *testing.F) {
	f.Add(`{"failed": ["1-0", "1-1"]}`, 4096)
	f.Add(`{"failed": [1]}`, 10)
	f.Add(`{"x": {"failed": []}}`, 15)
	f.Add("1\x00\xff", 1)
	f.Fuzz(func(t *testing.T, message string, limit int) {
		limit = 1 + max(limit, 0)%maxMessage
		failed, err := parseVerdict(message, limit)
		if err != nil && failed != nil {
			t.Errorf("%v, although %v", failed, err)
		}
		// The message as one of several failed ids, in a list that a kubelet cuts off at either end.
		list := string(must(json.Marshal(map[string][]string{"failed": {message, "1-0", message}})))
		if len(list) <= limit {
			return
		}
		for _, cut := range []string{list[:limit], list[len(list)-limit:]} {
			if failed, err := parseVerdict(cut, limit); err == nil {
				t.Errorf("%q is taken for a list of %v", cut, failed)
			}
		}
	})
}
