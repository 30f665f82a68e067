package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// evidence is what is found when all is quiet again.
type evidence struct {
	sent       []message
	runs       []taskRun
	eventIDs   map[string]string   // what lighterman must know an event by, by the id of its message
	ends       []partitionEnd      // of the event hubs
	sameNames  map[string]int      // Jobs of which there was more than one, one after the other
	left       map[string]int64    // messages that are still in a queue
	poison     map[string][]poison // by the queue that they come from
	unsettled  []string            // Jobs without the label
	overdue    []string            // Jobs that should be gone
	provided   int                 // Secrets with payloads, as long as their Jobs were there
	secrets    []string            // that are there without their Jobs
	complaints []string            // of the processes: deaths, bad ends, leaks
}

// A taskRun is one line of the record: a container that was started, and a message that it was given.
type taskRun struct {
	id      string
	attempt int
	job     string
	uid     string
	pod     string
	message string // what lighterman knows it by
}

// A poison is a message in a poison queue. Attempts and job are empty where the queue cannot carry them, and message, which is what lighterman knows it by,
// where it is not an event.
type poison struct {
	body     string
	attempts string
	job      string
	message  string
}

func readRecord(path string) ([]taskRun, error) {
	text, err := os.ReadFile(path) //nolint:gosec // our own file
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no task has run
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(string(text))
}

func parseRecord(text string) ([]taskRun, error) {
	var runs []taskRun
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 6 || !strings.HasSuffix(line, "\n") {
			return nil, fmt.Errorf("line %d of the record is %q; want id, attempt, Job, UID, pod and the message's own id", len(runs)+1, line)
		}
		attempt, err := strconv.Atoi(words[1])
		if err != nil {
			return nil, fmt.Errorf("line %d of the record: the attempt: %w", len(runs)+1, err)
		}
		runs = append(runs, taskRun{id: words[0], attempt: attempt, job: words[2], uid: words[3], pod: words[4], message: words[5]})
	}
	return runs, nil
}

// leftIn counts what the queues and streams still hold, leased messages included, and what the checkpoints have not passed of the event hubs.
func (w *world) leftIn(ctx context.Context) (map[string]int64, error) {
	left := make(map[string]int64)
	for i := range queueCount {
		name := queueName(queueKind, i)
		properties, err := w.queues.NewQueueClient(name).GetProperties(ctx, nil)
		if err != nil {
			return nil, fmt.Errorf("counting the messages of %s: %w", name, err)
		}
		if n := *properties.ApproximateMessagesCount; n > 0 {
			left[name] = n
		}
		name = queueName(streamKind, i)
		entries, err := w.streams.XLen(ctx, name).Result()
		if err != nil {
			return nil, fmt.Errorf("counting the messages of %s: %w", name, err)
		}
		var pending int64
		groups, err := w.streams.XInfoGroups(ctx, name).Result()
		if err != nil && entries > 0 {
			return nil, fmt.Errorf("counting the pending messages of %s: %w", name, err)
		}
		for _, group := range groups {
			pending += group.Pending
		}
		if n := max(entries, pending); n > 0 {
			left[name] = n
		}
	}
	ends, err := w.partitionEnds(ctx)
	if err != nil {
		return nil, err
	}
	for _, end := range ends {
		if n := end.lag(); n > 0 {
			left[end.hub] += n
		}
	}
	return left, nil
}

// readPoison reads the poison queues by the clients of the sources, not by lighterman.
func (w *world) readPoison(ctx context.Context) (map[string][]poison, error) {
	found := make(map[string][]poison)
	for i := range queueCount {
		name := queueName(queueKind, i)
		bodies, err := w.receiveAll(ctx, name+"-poison")
		if err != nil {
			return nil, fmt.Errorf("reading %s-poison: %w", name, err)
		}
		for _, body := range bodies {
			found[name] = append(found[name], poison{body: body})
		}
		name = queueName(streamKind, i)
		entries, err := w.streams.XRange(ctx, name+":poison", "-", "+").Result()
		if err != nil {
			return nil, fmt.Errorf("reading %s:poison: %w", name, err)
		}
		for _, entry := range entries {
			found[name] = append(found[name], poison{
				body: text(entry.Values["data"]), attempts: text(entry.Values["lighterman-attempts"]), job: text(entry.Values["lighterman-job"]),
			})
		}
	}
	for i := range hubCount {
		name := queueName(eventKind, i)
		bodies, err := w.receiveAll(ctx, name+"-poison")
		if err != nil {
			return nil, fmt.Errorf("reading %s-poison: %w", name, err)
		}
		for _, body := range bodies {
			p, err := readEnvelope(body)
			if err != nil {
				return nil, fmt.Errorf("reading %s-poison: %w", name, err)
			}
			found[name] = append(found[name], p)
		}
	}
	return found, nil
}

// readEnvelope takes apart what a poisoned event is in a Storage Queue.
func readEnvelope(envelope string) (poison, error) {
	var e struct {
		Partition      string
		SequenceNumber int64
		EnqueuedAt     time.Time
		Attempts       int
		Job            string
		Body           string
	}
	if err := json.Unmarshal([]byte(envelope), &e); err != nil {
		return poison{}, fmt.Errorf("%w, in %q", err, envelope)
	}
	return poison{
		body: e.Body, attempts: strconv.Itoa(e.Attempts), job: e.Job, message: partitioned.MessageID(e.Partition, e.SequenceNumber, e.EnqueuedAt),
	}, nil
}

func text(value any) string {
	s, _ := value.(string)
	return s
}

func (w *world) receiveAll(ctx context.Context, queue string) ([]string, error) {
	var bodies []string
	batch, hidden := int32(32), int32(3600)
	for {
		reply, err := w.queues.NewQueueClient(queue).DequeueMessages(ctx, &azqueue.DequeueMessagesOptions{
			NumberOfMessages: &batch, VisibilityTimeout: &hidden,
		})
		if queueerror.HasCode(err, queueerror.QueueNotFound) {
			return nil, nil // nothing was ever poisoned
		}
		if err != nil || len(reply.Messages) == 0 {
			return bodies, err
		}
		for _, m := range reply.Messages {
			bodies = append(bodies, *m.MessageText)
		}
	}
}

// retentionSlack is how late the TTL controller may be, which deletes one Job after the other.
const retentionSlack = 30 * time.Second

// jobsLeft finds the Jobs that are not as they should be when no message is left.
func (w *world) jobsLeft(ctx context.Context) (unsettled, overdue []string, err error) {
	list, err := w.client.BatchV1().Jobs(namespace).List(ctx, metav1.ListOptions{LabelSelector: jobs.Selector()})
	if err != nil {
		return nil, nil, fmt.Errorf("listing the Jobs: %w", err)
	}
	for i := range list.Items {
		job := &list.Items[i]
		ttl, finished := job.Spec.TTLSecondsAfterFinished, jobs.StatusOf(job).FinishedAt
		switch {
		case job.Labels[jobs.LabelSettled] == "" || ttl == nil:
			unsettled = append(unsettled, job.Name)
		case time.Since(finished) > time.Duration(*ttl)*time.Second+retentionSlack:
			overdue = append(overdue, job.Name)
		}
	}
	return unsettled, overdue, nil
}

// payloadSecrets finds the Secrets that are not ours.
func (w *world) payloadSecrets(ctx context.Context) ([]string, error) {
	list, err := w.client.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing the Secrets: %w", err)
	}
	var found []string
	for i := range list.Items {
		if name := list.Items[i].Name; !slices.Contains(kinds, name) {
			found = append(found, name)
		}
	}
	return found, nil
}

// deleteJobs deletes what there is of Jobs.
func (w *world) deleteJobs(ctx context.Context) error {
	background := metav1.DeletePropagationBackground
	err := w.client.BatchV1().Jobs(namespace).DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &background}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("deleting the Jobs: %w", err)
	}
	return nil
}

// processesOf finds the processes whose command line names a folder.
func processesOf(dir string) ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, file := range files {
		text, _ := os.ReadFile(file) //nolint:gosec // of /proc; the process may have ended
		if strings.Contains(string(text), dir) {
			found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
