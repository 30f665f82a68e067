package jobs

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestFind: what counts is the name, since somebody may have removed our annotations from a Job that still runs.
func TestFind(t *testing.T) {
	job := testJob(t, testID)
	job.Annotations, job.Labels = nil, nil
	failure := errors.New("no such right")
	tests := map[string]struct {
		existing []runtime.Object
		fail     error
		found    bool
	}{
		"there":          {existing: []runtime.Object{job}, found: true},
		"not there":      {existing: []runtime.Object{testJob(t, Identity{Source: testID.Source, Messages: testID.Messages, Attempt: 2})}},
		"cannot be read": {existing: []runtime.Object{job}, fail: failure},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(test.existing...)
			client.PrependReactor("get", "jobs", func(clienttesting.Action) (bool, runtime.Object, error) { return test.fail != nil, nil, test.fail })
			l := NewLauncher(client, "")
			found, err := l.Find(t.Context(), "ns", testID)
			if (found != nil) != test.found || !errors.Is(err, test.fail) {
				t.Errorf("found %v, %v; want it found: %v, and %v", found, err, test.found, test.fail)
			}
			exists, err := l.Exists(t.Context(), "ns", testID)
			if exists != test.found || !errors.Is(err, test.fail) {
				t.Errorf("exists %v, %v; want %v, %v", exists, err, test.found, test.fail)
			}
		})
	}
}

// TestList: of all Jobs, page by page, those of the source; a Job that carries our label and no identity is of none.
func TestList(t *testing.T) {
	id := func(source string, ids ...string) Identity {
		return Identity{Source: source, Messages: NewMessageSet(ids...), Attempt: 1}
	}
	tampered := testJob(t, id(testID.Source, "m3"))
	tampered.Annotations[AnnotationMessageID] = "m4"
	pages := map[string]*batchv1.JobList{
		"":  {Items: []batchv1.Job{*testJob(t, testID), *testJob(t, id("x://h/elsewhere", "m1"))}},
		"2": {Items: []batchv1.Job{*tampered}},
		"3": {Items: []batchv1.Job{*testJob(t, id(testID.Source, "m1", "m2"))}},
	}
	pages[""].Continue, pages["2"].Continue = "2", "3"
	pages["3"].Items[0].Namespace = "other"
	client, failure := fake.NewClientset(), errors.New("too old")
	failing := "none"
	client.PrependReactor("list", "jobs", func(a clienttesting.Action) (bool, runtime.Object, error) {
		options := a.(clienttesting.ListActionImpl).ListOptions
		if options.LabelSelector != Selector() || options.Limit == 0 {
			t.Errorf("asked for %+v, want pages of our Jobs", options)
		}
		if options.Continue == failing {
			return true, nil, failure
		}
		return true, pages[options.Continue], nil
	})
	l := NewLauncher(client, "")
	got, err := l.List(t.Context(), "", testID.Source)
	want := []Located{{testID, "ns"}, {id(testID.Source, "m1", "m2"), "other"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v; found (-want +got):\n%s", err, diff)
	}
	// Half of the Jobs must not pass for all of them.
	failing = "3"
	if got, err := l.List(t.Context(), "", testID.Source); !errors.Is(err, failure) || got != nil {
		t.Errorf("%v, %v; want none, and %v", got, err, failure)
	}
}

func TestProvided(t *testing.T) {
	job, secret := jobWithSecret(t)
	failure := errors.New("no such right")
	tests := map[string]struct {
		existing []runtime.Object
		fail     error
		want     bool
	}{
		"there":          {existing: []runtime.Object{secret}, want: true},
		"not there":      {},
		"cannot be read": {existing: []runtime.Object{secret}, fail: failure},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(test.existing...)
			client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return test.fail != nil, nil, test.fail })
			if got, err := NewLauncher(client, "").Provided(t.Context(), job); got != test.want || !errors.Is(err, test.fail) {
				t.Errorf("provided %v, %v; want %v, %v", got, err, test.want, test.fail)
			}
		})
	}
}
