package jobs

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

// follower remembers what it is told.
type follower struct {
	mu   sync.Mutex
	told []string
}

func (f *follower) JobChanged(id Identity, _ *batchv1.Job) { f.add("changed " + string(id.Messages)) }
func (f *follower) JobGone(id Identity, _ *batchv1.Job)    { f.add("gone " + string(id.Messages)) }

func (f *follower) add(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, s)
}

func (f *follower) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	told := f.told
	f.told = nil
	return told
}

func TestTracker(t *testing.T) {
	one := testJob(t, testID)
	retry := testJob(t, Identity{Source: testID.Source, Messages: NewMessageSet("m1"), Attempt: 2})
	other := testJob(t, Identity{Source: testID.Source, Messages: NewMessageSet("m2"), Attempt: 1})
	elsewhere := testJob(t, Identity{Source: "x://h/elsewhere", Messages: NewMessageSet("m1"), Attempt: 1})
	tampered := testJob(t, Identity{Source: testID.Source, Messages: NewMessageSet("m3"), Attempt: 1})
	tampered.Annotations[AnnotationMessageID] = "m1"
	packID := Identity{Source: testID.Source, Messages: NewMessageSet("m5", "m2", "m4"), Attempt: 3}
	pack := testJob(t, packID)
	tracker, err := NewTracker(fake.NewClientset(one, retry, other, elsewhere, tampered, pack), "ns")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { tracker.Run(ctx) })
	defer running.Wait()
	defer cancel()
	if err := tracker.WaitForSync(ctx); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, found []*batchv1.Job, want ...string) {
		t.Helper()
		var got []string
		for _, j := range found {
			got = append(got, j.Name)
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	expect("of the message", tracker.OfMessage(testID.Source, "m1"), one.Name, retry.Name)
	expect("of a message that is also in a pack", tracker.OfMessage(testID.Source, "m2"), other.Name, pack.Name)
	expect("of a message in a pack", tracker.OfMessage(testID.Source, "m4"), pack.Name)
	expect("of the last message in a pack", tracker.OfMessage(testID.Source, "m5"), pack.Name)
	expect("of a whole pack as if it were a message", tracker.OfMessage(testID.Source, string(packID.Messages)))
	expect("of the source", tracker.OfSource(testID.Source), one.Name, retry.Name, other.Name, pack.Name)
	expect("of another source", tracker.OfSource("x://h/elsewhere"), elsewhere.Name)
	if got := tracker.Current(one); got == nil || got.Name != one.Name {
		t.Errorf("current %v, want %s", got, one.Name)
	}
	if got := tracker.Current(testJob(t, Identity{Source: testID.Source, Messages: NewMessageSet("gone"), Attempt: 1})); got != nil {
		t.Errorf("current %v of a Job that does not exist", got)
	}
	expect("of no message", tracker.OfMessage(testID.Source, "m3"))
	for known, id := range map[string]Identity{
		"message": testID, "pack": packID, "its messages in another order": {Source: testID.Source, Messages: NewMessageSet("m4", "m2", "m5"), Attempt: 3},
	} {
		if !tracker.Knows("ns", id) {
			t.Errorf("%s: it is not known", known)
		}
		if tracker.Knows("elsewhere", id) {
			t.Errorf("%s: it is known in another namespace", known)
		}
	}
	for unknown, id := range map[string]Identity{
		"another attempt": {Source: testID.Source, Messages: packID.Messages, Attempt: 2},
		"a message less":  {Source: testID.Source, Messages: NewMessageSet("m2", "m4"), Attempt: 3},
		"tampered with":   {Source: testID.Source, Messages: NewMessageSet("m3"), Attempt: 1},
	} {
		if tracker.Knows("ns", id) {
			t.Errorf("%s: it is known", unknown)
		}
	}
}

func TestTrackerTellsTheSourcesFollower(t *testing.T) {
	tracker, err := NewTracker(fake.NewClientset(), "")
	if err != nil {
		t.Fatal(err)
	}
	job := testJob(t, testID)
	f, g := &follower{}, &follower{}
	tracker.Follow(testID.Source, f)
	tracker.Follow("x://h/elsewhere", g)

	tracker.changed(job)
	tracker.gone(job)
	tracker.gone(cache.DeletedFinalStateUnknown{Key: "ns/" + job.Name, Obj: job})
	tracker.gone(cache.DeletedFinalStateUnknown{Key: "ns/x", Obj: "no Job"})
	tracker.gone("no Job")
	tracker.changed(&batchv1.Job{}) // carries our label, perhaps, and is not ours
	if diff := cmp.Diff([]string{"changed m1", "gone m1", "gone m1"}, f.taken()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	tracker.Unfollow(testID.Source)
	tracker.changed(job)
	if told := append(f.taken(), g.taken()...); len(told) > 0 {
		t.Errorf("told %v after the end", told)
	}
}

// TestTrim: what is kept says the same, in a fraction of the memory.
func TestTrim(t *testing.T) {
	job := testJob(t, testID)
	job.UID, job.ResourceVersion = "u", "7"
	job.Labels[LabelSettled] = "completed"
	job.Annotations[AnnotationEnded] = "StartTimeout"
	job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: "DeadlineExceeded"}}
	job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	job.Spec.TTLSecondsAfterFinished = ptr.To[int32](60)
	obj, err := trim(job)
	if err != nil {
		t.Fatal(err)
	}
	got := obj.(*batchv1.Job)
	if id, err := IdentityOf(got); err != nil || id != testID {
		t.Errorf("identity %+v, %v", id, err)
	}
	if diff := cmp.Diff(StatusOf(job), StatusOf(got)); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if ttl := got.Spec.TTLSecondsAfterFinished; ttl == nil || *ttl != 60 {
		t.Errorf("TTL %v, want 60", ttl)
	}
	if got.UID != "u" || got.ResourceVersion != "7" || got.Labels[LabelSettled] != "completed" || got.Namespace != "ns" {
		t.Errorf("metadata %+v", got.ObjectMeta)
	}
	if got.Annotations["note"] != "" || got.Labels["team"] != "" || len(got.Spec.Template.Spec.Containers) > 0 || got.Status.UncountedTerminatedPods != nil {
		t.Errorf("it keeps more than is read: %+v", got)
	}
	if again, err := trim(got); err != nil || cmp.Diff(got, again) != "" {
		t.Error("trimming twice is not trimming once")
	}
	if obj, err := trim("no Job"); obj != "no Job" || err != nil {
		t.Errorf("%v, %v", obj, err)
	}
}

// TestTrimKeepsWhatIsReadOfAPack: its messages, and that its pods wait for a Secret.
func TestTrimKeepsWhatIsReadOfAPack(t *testing.T) {
	template, err := FromCronJob(cronJob(), keepAll)
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{Source: testID.Source, Messages: NewMessageSet("m1", "m2"), Attempt: 1}
	pack := packOf(t, PayloadAuto, 1, Message{ID: "m1"}, Message{ID: "m2"})
	job, _ := newJob(t, template, Task{Identity: id, Content: pack.Content(), Packed: true})
	obj, err := trim(job)
	if err != nil {
		t.Fatal(err)
	}
	got := obj.(*batchv1.Job)
	if read, err := IdentityOf(got); err != nil || read != id || !NeedsSecret(got) {
		t.Errorf("identity %+v, %v, needs a Secret %v; want %+v", read, err, NeedsSecret(got), id)
	}
}
