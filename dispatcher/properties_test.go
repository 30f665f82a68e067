package dispatcher

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
)

// secretOf is the Secret of a Job.
func (h *harness) secretOf(job string) *corev1.Secret {
	h.t.Helper()
	secret, err := h.admin.CoreV1().Secrets(namespace).Get(h.t.Context(), job, metav1.GetOptions{})
	h.must(err)
	return secret
}

// propertiesOf are the two variables of a Job's container that tell of properties.
func (h *harness) propertiesOf(job string) (properties, leftOut string) {
	h.t.Helper()
	for _, v := range h.job(job).Spec.Template.Spec.Containers[0].Env {
		value := strings.ReplaceAll(v.Value, "$$", "$")
		if v.ValueFrom != nil {
			data, ok := h.secretOf(v.ValueFrom.SecretKeyRef.Name).Data[v.ValueFrom.SecretKeyRef.Key]
			if !ok {
				h.t.Fatalf("the Secret has no key %s, and the pod waits for it", v.ValueFrom.SecretKeyRef.Key)
			}
			value = string(data)
		}
		switch v.Name {
		case jobs.EnvProperties:
			properties = value
		case jobs.EnvPropertiesLeftOut:
			leftOut = value
		}
	}
	return properties, leftOut
}

// TestPropertiesReachTheTask: what a producer attached to a message is told to its task, and does not stop it where it is too large.
func TestPropertiesReachTheTask(t *testing.T) {
	large := strings.Repeat("v", 5000)
	tests := map[string]struct {
		properties map[string]string
		want       string
		leftOut    string
	}{
		"none":      {nil, "", ""},
		"small":     {map[string]string{"tenant": "$(SECRET)", "a": "<b>"}, `{"a":"<b>","tenant":"$(SECRET)"}`, ""},
		"large":     {map[string]string{"tenant": large}, `{"tenant":"` + large + `"}`, ""},
		"too large": {map[string]string{"tenant": "blue", "blob": strings.Repeat("v", 200_000)}, `{"tenant":"blue"}`, "1"},
	}
	for name, test := range tests {
		for _, mode := range []string{"auto", "env", "secret", "file"} {
			t.Run(name+", "+mode, func(t *testing.T) {
				world(t, func(t *testing.T, h *harness) {
					q := h.dispatch("resize", "payload", mode)
					h.start()
					q.SendMessages(lease.Message{Body: []byte("x"), Properties: test.properties})
					job := h.awaitJobs(1)[0]
					advance(time.Second)
					if properties, leftOut := h.propertiesOf(job.Name); properties != test.want || leftOut != test.leftOut {
						t.Errorf("properties %.200q, %q left out; want %.200q, %q", properties, leftOut, test.want, test.leftOut)
					}
					if h.told("resize", "PayloadRefused") != 0 {
						t.Errorf("Events:\n%s", h.dump())
					}
					h.succeed(job.Name)
					h.eventually(time.Second, "it is completed", func() bool { return q.Len() == 0 })
					if len(q.Poisoned()) != 0 {
						t.Error("it was poisoned")
					}
				})
			})
		}
	}
}

// TestPropertiesReachTheTaskInPacks: in its message's line.
func TestPropertiesReachTheTaskInPacks(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "4")
		h.start()
		q.SendMessages(
			lease.Message{Body: []byte("a"), Properties: map[string]string{"tenant": "$(SECRET)"}},
			lease.Message{Body: []byte("b")},
			lease.Message{Body: []byte("c"), Properties: map[string]string{"tenant": "blue", "blob": strings.Repeat("v", 1_000_000)}},
			lease.Message{Body: []byte("d"), Properties: map[string]string{"blob": strings.Repeat("v", 1_000_000)}},
		)
		type line struct {
			ID, Data   string
			Properties map[string]string
			LeftOut    int `json:"properties_left_out"`
		}
		var got []line
		h.eventually(time.Minute, "all have a Job, which has its Secret", func() bool {
			got = nil
			for _, secret := range all[corev1.Secret](h.api, "secrets") {
				for text := range bytes.Lines(secret.Data["tasks.jsonl"]) {
					var one line
					h.must(json.Unmarshal(text, &one))
					got = append(got, one)
				}
			}
			return len(got) == 4
		})
		slices.SortFunc(got, func(a, b line) int { return strings.Compare(a.ID, b.ID) })
		want := []line{
			{"m1", "a", map[string]string{"tenant": "$(SECRET)"}, 0}, {"m2", "b", nil, 0}, {"m3", "c", map[string]string{"tenant": "blue"}, 1}, {"m4", "d", nil, 1},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("lines (-want +got):\n%.1000s", diff)
		}
		for _, job := range names(h.jobs()) {
			if properties, leftOut := h.propertiesOf(job); properties != "" || leftOut != "" {
				t.Errorf("the variables are %q and %q, and a pack is not one message", properties, leftOut)
			}
			h.report(job, "")
		}
		h.eventually(time.Minute, "they are completed", func() bool { return q.Len() == 0 })
		if len(q.Poisoned()) != 0 {
			t.Error("some were poisoned")
		}
	})
}

// TestPropertiesThatFillPacks: messages that are small but for what is attached to them wait for a pack that has room.
func TestPropertiesThatFillPacks(t *testing.T) {
	world(t, func(t *testing.T, h *harness) {
		q := h.dispatch("resize", "tasks-per-job", "10")
		h.start()
		for range 10 {
			q.SendMessages(lease.Message{Body: []byte("x"), Properties: map[string]string{"blob": strings.Repeat("v", 300_000)}})
		}
		h.eventually(time.Minute, "all are done", func() bool {
			for _, j := range h.unfinished() {
				h.report(j.Name, "")
			}
			return q.Len() == 0
		})
		for _, j := range h.jobs() {
			if n := jobs.PackLen(&j); n > 3 {
				t.Errorf("%d messages in a pack, and no more than 3 fit", n)
			}
		}
		if len(q.Poisoned()) != 0 || h.told("resize", "PayloadRefused") != 0 {
			t.Errorf("%d were poisoned\n%s", len(q.Poisoned()), h.dump())
		}
	})
}

// TestPropertiesAfterACrash has a leader end between a Job and its Secret: the next one's has all that the Job refers to.
func TestPropertiesAfterACrash(t *testing.T) {
	for _, mode := range []string{"auto", "env", "secret", "file"} {
		t.Run(mode, func(t *testing.T) {
			world(t, func(t *testing.T, h *harness) {
				q := h.dispatch("resize", "payload", mode, "lease-duration", "20s")
				first := h.start()
				fault := h.api.inject(&apiFault{verbs: "create", resource: "secrets", answer: internal})
				large := strings.Repeat("v", 5000)
				q.SendMessages(lease.Message{Body: []byte("x"), Properties: map[string]string{"tenant": large}})
				job := h.awaitJobs(1)[0].Name
				advance(time.Second)
				first.crash()
				h.api.remove(fault)
				h.start()
				h.eventually(2*time.Minute, "its Secret is there", func() bool { return len(all[corev1.Secret](h.api, "secrets")) == 2 })
				if properties, leftOut := h.propertiesOf(job); properties != `{"tenant":"`+large+`"}` || leftOut != "" {
					t.Errorf("properties %.200q, %q left out", properties, leftOut)
				}
				h.succeed(job)
				h.eventually(time.Minute, "it is completed", func() bool { return q.Len() == 0 })
			})
		})
	}
}
