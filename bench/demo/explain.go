package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/jobs"
)

// templateWarnings are the Events by which lighterman says what is wrong with the template.
func templateWarnings(ctx context.Context, client kubernetes.Interface, namespace, template string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	events, err := client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.kind=CronJob,involvedObject.name=" + template + ",type=" + corev1.EventTypeWarning,
	})
	if err != nil {
		return ""
	}
	var b strings.Builder
	for i := range events.Items {
		fmt.Fprintf(&b, "\n%s: %s", events.Items[i].Reason, events.Items[i].Message)
	}
	return b.String()
}

// whyWaiting says what a Job waits for, or nothing.
func whyWaiting(ctx context.Context, client kubernetes.Interface, namespace, job string) string {
	if job == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, why, err := jobs.WhyNotStarted(ctx, client.CoreV1(), namespace, job)
	if err != nil || why == "" {
		return ""
	}
	return fmt.Sprintf("the Job %s waits: %s", job, why)
}
