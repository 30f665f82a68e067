package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/checkpoints"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// hub is an event hub that tests put events into.
type hub struct {
	w       *world
	broker  *eventhub.Broker
	azurite *servers.Azurite
	name    string
}

// withEventHub runs a broker and an Azurite for the test, puts their connection strings in Secrets, and makes an event hub.
func (w *world) withEventHub(name string, partitions int) *hub {
	w.Helper()
	h := &hub{
		w: w, name: name, broker: eventhub.Run(w.T, eventhub.Options{}),
		azurite: servers.RunAzurite(w.T, servers.AzuriteOptions{Blob: true, InMemory: true}),
	}
	if err := h.broker.CreateHub(name, partitions); err != nil {
		w.Fatal(err)
	}
	w.createSecret("hub", map[string]string{"connection": h.broker.ConnectionString()})
	w.createSecret("checkpoints", map[string]string{"connection": h.azurite.ConnectionString()})
	return h
}

// template is a small CronJob for the event hub.
func (h *hub) template(script string) *batchv1.CronJob {
	c := shell(template(h.name, h.name), script)
	delete(c.Annotations, "lighterman.dev/stream")
	for key, value := range map[string]string{
		"source": "azure-event-hubs", "event-hub": h.name, "connection-secret": "hub/connection", "checkpoint-secret": "checkpoints/connection",
	} {
		c.Annotations["lighterman.dev/"+key] = value
	}
	return c
}

func (h *hub) send(partition string, events ...eventhub.Event) {
	h.w.Helper()
	if err := h.broker.Send(h.name, partition, events...); err != nil {
		h.w.Fatal(err)
	}
}

// last is the sequence number of each partition's newest event, by partition.
func (h *hub) last() map[string]int64 {
	h.w.Helper()
	client := must[*azeventhubs.ConsumerClient](h.w)(azeventhubs.NewConsumerClientFromConnectionString(
		h.broker.ConnectionString(), h.name, azeventhubs.DefaultConsumerGroup, nil))
	defer func() { _ = client.Close(context.WithoutCancel(h.w.Context())) }()
	last := make(map[string]int64)
	for _, id := range must[azeventhubs.EventHubProperties](h.w)(client.GetEventHubProperties(h.w.Context(), nil)).PartitionIDs {
		last[id] = must[azeventhubs.PartitionProperties](h.w)(client.GetPartitionProperties(h.w.Context(), id, nil)).LastEnqueuedSequenceNumber
	}
	return last
}

// checkpoints is how far each partition has come, as other programs see it.
func (h *hub) checkpoints(ctx context.Context) (map[string]int64, error) {
	blobs, err := container.NewClientFromConnectionString(h.azurite.ConnectionString(), "lighterman-checkpoints", nil)
	if err != nil {
		return nil, err
	}
	store, err := checkpoints.NewBlobStore(blobs, nil)
	if err != nil {
		return nil, err
	}
	list, err := store.ListCheckpoints(ctx, h.broker.Addr(), strings.ToLower(h.name), "$default", nil)
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		return nil, nil // there is no dispatcher yet
	}
	if err != nil {
		return nil, err
	}
	at := make(map[string]int64)
	for _, c := range list {
		at[c.PartitionID] = *c.SequenceNumber
	}
	return at, nil
}

// waitUntilPassed waits until the checkpoints are at the last event of each partition.
func (h *hub) waitUntilPassed() {
	h.w.Helper()
	last := h.last()
	h.w.eventually("the checkpoints are at the last events", func(ctx context.Context) (bool, error) {
		at, err := h.checkpoints(ctx)
		if err != nil {
			return false, err
		}
		for id, n := range last {
			if at[id] > n {
				return false, fmt.Errorf("the checkpoint of partition %s is at %d, beyond the last event %d", id, at[id], n)
			}
			if at[id] < n {
				return false, nil
			}
		}
		return len(at) == len(last), nil
	})
}

// Five thousand events over eight partitions, two dispatchers, and the one that leads is killed in the middle: each event is in one Job that runs, and the
// checkpoints end at the last events.
func TestEventHubTakeover(t *testing.T) {
	const partitions, events, perJob = 8, 5000, 10
	w := newWorld(t)
	h := w.withEventHub("spike", partitions)
	folder := t.TempDir()
	c := h.template(fmt.Sprintf(`ids=$(sed -n 's/^{"id":"\([^"]*\)".*/\1/p' "$KEDA_TASK_DATA_FILE") && printf '%%s\n' "$ids" >>%s/runs`, folder))
	c.Annotations["lighterman.dev/tasks-per-job"] = strconv.Itoa(perJob)
	c.Annotations["lighterman.dev/batch-wait"] = "500ms"
	pod := &c.Spec.JobTemplate.Spec.Template.Spec
	pod.Volumes = []corev1.Volume{{Name: "runs", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder}}}}
	pod.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "runs", MountPath: folder}}
	w.createCronJob(c)

	first := runLighterman(t, w.namespace, "--lock-duration", "3s")
	first.waitForLog("leading")
	runLighterman(t, w.namespace, "--lock-duration", "3s")
	want := make(map[string]int)
	for i := range events {
		h.send(strconv.Itoa(i%partitions), eventhub.Event{Body: fmt.Appendf(nil, "event %d", i)})
	}
	for p := range partitions {
		for _, e := range h.broker.Events(h.name, strconv.Itoa(p)) {
			want[partitioned.MessageID(strconv.Itoa(p), e.SequenceNumber, e.EnqueuedAt)] = 0
		}
	}
	runs := func() []string {
		text, err := os.ReadFile(filepath.Join(folder, "runs"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.Fields(string(text))
	}
	w.eventually("a third has been done", func(context.Context) (bool, error) { return len(runs()) >= events/3, nil })
	before := len(runs())
	first.kill()
	h.waitUntilPassed()

	for _, id := range runs() {
		want[id]++
	}
	lost, doubled := 0, 0
	for _, n := range want {
		switch {
		case n == 0:
			lost++
		case n > 1:
			doubled++
		}
	}
	t.Logf("%d events over %d partitions, killed after %d: %d lost, %d doubled", events, partitions, before, lost, doubled)
	if lost+doubled > 0 || len(want) != events {
		t.Errorf("%d lost and %d doubled of %d events, want none of %d", lost, doubled, len(want), events)
	}
}

// What a task is told of an event, where a bad one goes, and that a broker which starts anew is found again.
func TestEventHub(t *testing.T) {
	w := newWorld(t)
	h := w.withEventHub("Orders.v1", 2)
	c := h.template(`printf '%s|%s|%s' "$KEDA_TASK_DATA" "$LIGHTERMAN_PROPERTIES" "$LIGHTERMAN_MESSAGE_ID"; test "$KEDA_TASK_DATA" != bad`)
	c.Name = "orders"
	c.Annotations["lighterman.dev/max-attempts"] = "2"
	c.Annotations["lighterman.dev/retry-backoff"] = "100ms..100ms"
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	h.send("0", eventhub.Event{Body: []byte("good $(HOSTNAME)"), Properties: map[string]any{"kind": "a$(B)", "n": int64(7)}})
	h.send("0", eventhub.Event{Body: []byte("bad"), Properties: map[string]any{"kind": "x"}})
	h.send("1", eventhub.Event{Body: []byte("plain")})
	h.waitUntilPassed()
	h.broker.Stop()
	if err := h.broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.send("1", eventhub.Event{Body: []byte("after the restart")})
	h.waitUntilPassed()

	var texts []string
	for _, text := range w.logs() {
		texts = append(texts, text[:strings.LastIndexByte(text, '/')]) // without the time
	}
	slices.Sort(texts)
	want := []string{
		"after the restart||1/1", `bad|{"kind":"x"}|0/1`, `bad|{"kind":"x"}|0/1`, `good $(HOSTNAME)|{"kind":"a$(B)","n":"7"}|0/0`, "plain||1/0",
	}
	if !slices.Equal(texts, want) {
		t.Errorf("the tasks printed %q, want %q", texts, want)
	}
	queue := must[*azqueue.QueueClient](w)(azqueue.NewQueueClientFromConnectionString(h.azurite.ConnectionString(), "orders-v1-poison", nil))
	poisoned := must[azqueue.DequeueMessagesResponse](w)(queue.DequeueMessages(t.Context(), &azqueue.DequeueMessagesOptions{NumberOfMessages: new(int32(32))})).Messages
	if len(poisoned) != 1 {
		t.Fatalf("the poison queue holds %d messages, want 1", len(poisoned))
	}
	var envelope struct {
		Body           string
		Partition      string
		SequenceNumber int64
		Attempts       int
		Reason         string
		Properties     map[string]string
	}
	if err := json.Unmarshal([]byte(*poisoned[0].MessageText), &envelope); err != nil {
		t.Fatal(err)
	}
	if envelope.Body != "bad" || envelope.Partition != "0" || envelope.SequenceNumber != 1 || envelope.Attempts != 2 ||
		!strings.Contains(envelope.Reason, "attempt 2 of 2 failed") || envelope.Properties["kind"] != "x" {
		t.Errorf("the poisoned event is %+v", envelope)
	}
	w.eventually("all Jobs are marked", func(context.Context) (bool, error) {
		for _, job := range w.jobs() {
			if job.Labels["lighterman.dev/settled"] == "" {
				return false, nil
			}
		}
		return true, nil
	})
}
