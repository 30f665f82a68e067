package jobs

import (
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// Phase is how far a Job has come.
type Phase int

const (
	// Pending means that no pod of the Job is ready yet, or that the Job is suspended.
	Pending Phase = iota
	// Running means that a pod of the Job has been ready, or has ended.
	Running
	// Succeeded means that the Job has the condition Complete.
	Succeeded
	// Failed means that the Job has the condition Failed.
	Failed
)

// Finished reports whether the Job has come to its end.
func (p Phase) Finished() bool { return p == Succeeded || p == Failed }

// Status is what a Job's status says about its task.
type Status struct {
	Phase Phase
	// Reason and Message say why the Job failed, as the Job controller gave it: BackoffLimitExceeded,
	// DeadlineExceeded, PodFailurePolicy, MaxFailedIndexesExceeded, FailedIndexes; or what AnnotationEnded says.
	Reason, Message string
	// FinishedAt is when the Job came to its end.
	FinishedAt time.Time
	// Suspended says that the Job waits to be admitted, by Kueue or by a person.
	Suspended bool
}

// StatusOf reads a Job's status. Only the conditions Complete and Failed end a Job: SuccessCriteriaMet and FailureTarget
// come before them, while pods still terminate.
func StatusOf(job *batchv1.Job) Status {
	s := Status{Suspended: job.Spec.Suspend != nil && *job.Spec.Suspend}
	for _, c := range job.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			s.Phase, s.FinishedAt = Succeeded, c.LastTransitionTime.Time
			return s
		case batchv1.JobFailed:
			s.Phase, s.Reason, s.Message, s.FinishedAt = Failed, c.Reason, c.Message, c.LastTransitionTime.Time
			if ended := job.Annotations[AnnotationEnded]; ended != "" {
				reason, message, explained := strings.Cut(ended, ": ")
				s.Reason = reason
				if explained {
					s.Message = message
				}
			}
			return s
		}
	}
	if job.Status.Ready != nil && *job.Status.Ready > 0 || job.Status.Succeeded > 0 || job.Status.Failed > 0 {
		s.Phase = Running
	}
	return s
}
