package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/dispatcher/fence"
	"github.com/lighterman-dev/lighterman/jobs"
)

func (w *world) lock(name string) *coordinationv1.Lease {
	w.Helper()
	return must[*coordinationv1.Lease](w)(w.client.CoordinationV1().Leases(w.namespace).Get(w.Context(), name, metav1.GetOptions{}))
}

// The policy itself: who is refused, and who is not.
func TestFence(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("fence")
	w.createCronJob(shell(template("fence", s.name), `true`))
	p := runLighterman(t, w.namespace, "--lock-duration", "60s")
	p.waitForLog("fenced: the API server refuses the Jobs of former leaders")
	s.send("x")
	s.waitUntilEmpty()
	lock := w.lock("lighterman")
	term := int(*lock.Spec.LeaseTransitions)
	if got, want := w.jobs()[0].Annotations[jobs.AnnotationFence], fence.Value(w.namespace, "lighterman", term); got != want {
		t.Errorf("the Job carries the fence %q, want %q", got, want)
	}
	create := func(label, value string) error {
		job := &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "by-hand-", Labels: map[string]string{label: "x"}, Annotations: map[string]string{}},
			Spec: batchv1.JobSpec{Suspend: ptr.To(true), Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "main", Image: "none"}},
			}}},
		}
		if value != "" {
			job.Annotations[jobs.AnnotationFence] = value
		}
		_, err := w.client.BatchV1().Jobs(w.namespace).Create(t.Context(), job, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	for _, c := range []struct {
		what, label, value string
		refused            bool
	}{
		{"the current term", jobs.LabelTemplate, fence.Value(w.namespace, "lighterman", term), false},
		{"a former term", jobs.LabelTemplate, fence.Value(w.namespace, "lighterman", term-1), true},
		{"a later term", jobs.LabelTemplate, fence.Value(w.namespace, "lighterman", term+1), true},
		{"no term at all", jobs.LabelTemplate, w.namespace + "/lighterman/", true},
		{"another lock", jobs.LabelTemplate, fence.Value(w.namespace, "lighterman-2", 1), false},
		{"another namespace's lock", jobs.LabelTemplate, fence.Value("elsewhere", "lighterman", 1), false},
		{"no fence", jobs.LabelTemplate, "", false},
		{"somebody else's Job", "app", fence.Value(w.namespace, "lighterman", term-1), false},
	} {
		switch err := create(c.label, c.value); {
		case c.refused && !jobs.Fenced(err):
			t.Errorf("%s: want it to be refused by the fence, got: %v", c.what, err)
		case !c.refused && err != nil:
			t.Errorf("%s: refused: %v", c.what, err)
		}
	}
}

// A leader that does not know yet that it is none any more is told so by its next Job.
func TestFencedLeaderStepsDown(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("former")
	w.createCronJob(shell(template("former", s.name), `true`))
	p := runLighterman(t, w.namespace, "--lock-duration", "60s")
	p.waitForLog("fenced: the API server refuses the Jobs of former leaders")
	lock := w.lock("lighterman")
	lock.Spec.HolderIdentity = ptr.To("somebody else")
	*lock.Spec.LeaseTransitions++
	must[*coordinationv1.Lease](w)(w.client.CoordinationV1().Leases(w.namespace).Update(t.Context(), lock, metav1.UpdateOptions{}))
	s.send("x")
	p.waitForLog("another process leads by now, and the API server refuses Jobs of this one's term; stepping down")
	w.eventually("the message is given back", func(context.Context) (bool, error) { return s.leased() == 0, nil })
	if got := len(w.jobs()); got != 0 {
		t.Errorf("%d Jobs were created in a term that is over", got)
	}
}

// Three processes share four shards; one goes, another comes.
func TestShards(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("shard-0")
	streams := []*stream{s}
	for i := range 8 {
		name := fmt.Sprintf("shard-%d", i)
		if i > 0 {
			streams = append(streams, s.named(name))
		}
		w.createCronJob(shell(template(name, streams[i].name), `true`))
	}
	start := func() *process { return runLighterman(t, w.namespace, "--lock-duration", "3s", "--shards", "4") }
	shares := func(processes ...*process) string {
		var held []string
		for _, p := range processes {
			n := 0
			for i := range 4 {
				if ptr.Deref(w.lock(fmt.Sprintf("lighterman-%d", i)).Spec.HolderIdentity, "") == identityOf(p) {
					n++
				}
			}
			held = append(held, fmt.Sprint(n))
		}
		return strings.Join(held, " ")
	}
	settle := func(what string, want []string, processes ...*process) {
		t.Helper()
		w.eventually(what, func(context.Context) (bool, error) {
			got := shares(processes...)
			for _, one := range want {
				if got == one {
					return true, nil
				}
			}
			return false, nil
		})
		for _, s := range streams {
			s.send("x")
		}
		for _, s := range streams {
			s.waitUntilEmpty()
		}
	}
	first := start()
	first.waitForLog("leading")
	w.eventually("all locks exist", func(ctx context.Context) (bool, error) {
		list, err := w.client.CoordinationV1().Leases(w.namespace).List(ctx, metav1.ListOptions{LabelSelector: fence.LabelLock})
		return err == nil && len(list.Items) == 4, err
	})
	settle("one process has all", []string{"4"}, first)
	second := start()
	settle("two share", []string{"2 2"}, first, second)
	third := start()
	settle("three share", []string{"2 1 1", "1 2 1", "1 1 2"}, first, second, third)
	first.stop()
	settle("two are left", []string{"2 2"}, second, third)
	second.kill()
	settle("one is left", []string{"4"}, third)
	if got, want := len(w.jobs()), 5*len(streams); got != want {
		t.Errorf("%d Jobs for %d messages", got, want)
	}
}
