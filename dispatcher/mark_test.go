package dispatcher

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/leasetest"
)

// TestWindowWithClocksThatDiffer (invariant 4): by the API server's clock, a settled Job stays for the whole window from when its message was
// settled, whatever our clock says.
func TestWindowWithClocksThatDiffer(t *testing.T) {
	const window = (120 + 30 + 15) * time.Second // lease duration, request timeout, lock duration
	for name, theirs := range map[string]time.Duration{
		"clocks agree": 0, "ours is ahead": -clockSkew, "ours is behind": clockSkew, "ours is a little behind": 20 * time.Second,
	} {
		for lag, settles := range map[string]time.Duration{"settled at once": 0, "settled later": 40 * time.Second, "settled much later": 10 * time.Minute} {
			for given, ttl := range map[string]*int32{"no TTL of the template": nil, "a short one": ptr.To[int32](5), "a long one": ptr.To[int32](3600)} {
				t.Run(name+", "+lag+", "+given, func(t *testing.T) {
					world(t, func(t *testing.T, h *harness) {
						q := h.queue("resize")
						c := cronJob("resize")
						c.Spec.JobTemplate.Spec.TTLSecondsAfterFinished = ttl
						h.create(c)
						h.start()
						q.Send("x")
						job := h.awaitJobs(1)[0].Name
						if settles > 0 {
							q.inject(leasetest.OpComplete, leasetest.Fault{Err: errFault})
						}
						finishedAt := time.Now().Add(theirs)
						h.editJob(job, func(j *batchv1.Job) {
							j.Status.Conditions = []batchv1.JobCondition{{
								Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(finishedAt),
							}}
						})
						advance(settles)
						q.heal()
						h.eventually(time.Minute, "the Job is marked", func() bool { return h.job(job).Labels[jobs.LabelSettled] != "" })
						settledAt := time.Now().Add(theirs)
						// The condition says whole seconds.
						ends := finishedAt.Truncate(time.Second).Add(time.Duration(*h.job(job).Spec.TTLSecondsAfterFinished) * time.Second)
						if stays := ends.Sub(settledAt); stays < window {
							t.Errorf("it stays for %v, want %v at least", stays, window)
						}
						if ttl != nil && ends.Sub(finishedAt.Truncate(time.Second)) < time.Duration(*ttl)*time.Second {
							t.Errorf("it stays until %v after it finished, and the template wants %d s", ends.Sub(finishedAt), *ttl)
						}
						if longest := window + 2*clockSkew + time.Hour + 2*time.Second; ends.Sub(settledAt) > longest {
							t.Errorf("it stays for %v, want %v at most", ends.Sub(settledAt), longest)
						}
					})
				})
			}
		}
	}
}
