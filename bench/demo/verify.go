package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/jobs"
)

// verify looks at what really happened: the Jobs and pods that there are, and what their containers wrote.
func verify(ctx context.Context, client kubernetes.Interface, namespace string, tasks map[string]*task) error {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: jobs.Selector()})
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	podsOf := make(map[string][]*corev1.Pod, len(pods.Items))
	for i := range pods.Items {
		pod := &pods.Items[i]
		job := pod.Labels[batchv1.JobNameLabel]
		podsOf[job] = append(podsOf[job], pod)
	}
	var wrong problems
	for id, t := range tasks {
		wrong.add(verifyTask(id, t, podsOf))
		for _, job := range t.jobs {
			delete(podsOf, job)
		}
	}
	for job, pods := range podsOf {
		wrong.add(fmt.Errorf("the Job %s, of which nothing was seen before, has %d pods", job, len(pods)))
	}
	return wrong.join()
}

// verifyTask says what is wrong with a task, if anything is.
func verifyTask(id string, t *task, podsOf map[string][]*corev1.Pod) error {
	if len(t.jobs) != 1 {
		return fmt.Errorf("message %s has %d Jobs, not one: %s", id, len(t.jobs), strings.Join(t.jobs, ", "))
	}
	job := t.jobs[0]
	if t.payload == "" {
		return fmt.Errorf("the Job %s is for a message %s that was never sent", job, id)
	}
	pods := podsOf[job]
	if len(pods) != 1 {
		return fmt.Errorf("the Job %s of message %s has %d pods, not one", job, id, len(pods))
	}
	got, err := termination(pods[0])
	if err != nil {
		return fmt.Errorf("the Job %s of message %s: %w", job, id, err)
	}
	if want := answer(t.payload); got != want {
		return fmt.Errorf("the Job %s of message %s wrote %q, and the right answer is %q", job, id, got, want)
	}
	return nil
}

// termination is what the pod's container wrote at its end, of its only run.
func termination(pod *corev1.Pod) (string, error) {
	if len(pod.Status.ContainerStatuses) != 1 {
		return "", fmt.Errorf("the pod %s tells of %d containers, not of one", pod.Name, len(pod.Status.ContainerStatuses))
	}
	status := pod.Status.ContainerStatuses[0]
	if status.RestartCount > 0 || status.State.Terminated == nil {
		return "", fmt.Errorf("the container of the pod %s has not ended, or was started %d times", pod.Name, status.RestartCount+1)
	}
	return strings.TrimSpace(status.State.Terminated.Message), nil
}

// problems are many errors of which the first few are told.
type problems struct {
	first []error
	more  int
}

func (p *problems) add(err error) {
	const enough = 3
	switch {
	case err == nil:
	case len(p.first) < enough:
		p.first = append(p.first, err)
	default:
		p.more++
	}
}

func (p *problems) join() error {
	err := errors.Join(p.first...)
	if p.more > 0 {
		err = fmt.Errorf("%w\nand %d more", err, p.more)
	}
	return err
}
