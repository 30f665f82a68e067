package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease/eventhubs"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// fromDocument is the first block of a language in docs/event-hubs.md.
func fromDocument(t *testing.T, language string) []byte {
	t.Helper()
	document, err := os.ReadFile("../../docs/event-hubs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(document), "```"+language+"\n")
	block, _, found := strings.Cut(text, "```\n")
	if !found {
		t.Fatalf("docs/event-hubs.md has no block of %s", language)
	}
	return []byte(block)
}

// The template in docs/event-hubs.md is one that lighterman takes.
func TestTemplateInDocument(t *testing.T) {
	t.Parallel()
	var secret corev1.Secret
	var template batchv1.CronJob
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(fromDocument(t, "yaml")), 1<<16)
	for _, object := range []any{&secret, &template} {
		if err := documents.Decode(object); err != nil {
			t.Fatal(err)
		}
	}
	specs, err := annotation.Parse("CronJob", template.Annotations)
	if err != nil || len(specs) != 1 {
		t.Fatalf("%d sets of annotations, %v", len(specs), err)
	}
	if _, err := jobs.FromCronJob(&template, annotation.Strip); err != nil {
		t.Error(err)
	}
	for _, key := range secretKeys(specs[0]) {
		if key.Name != secret.Name || secret.StringData[key.Key] == "" {
			t.Errorf("the template reads %v, and the Secret %s holds %v", key, secret.Name, secret.StringData)
		}
	}
	source, err := eventhubs.New(eventhubs.Config{
		ConnectionString: withKey(secret.StringData[specs[0].ConnectionSecret.Key]), EventHub: specs[0].EventHub, ConsumerGroup: specs[0].ConsumerGroup,
		CheckpointConnectionString: withKey(secret.StringData[specs[0].CheckpointSecret.Key]), PoisonQueue: specs[0].PoisonQueue,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Close(); err != nil {
		t.Error(err)
	}
}

// withKey puts a key in the place that a connection string of a document leaves for it.
func withKey(connection string) string { return strings.ReplaceAll(connection, "…", "bm90IGEga2V5") }

// The poisoned event in docs/event-hubs.md is one that lighterman could have written.
func TestEnvelopeInDocument(t *testing.T) {
	t.Parallel()
	var e eventhubs.Envelope
	decoder := json.NewDecoder(bytes.NewReader(fromDocument(t, "json")))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		t.Fatal(err)
	}
	id := jobs.Identity{
		Source: e.Source, Messages: jobs.NewMessageSet(partitioned.MessageID(e.Partition, e.SequenceNumber, e.EnqueuedAt)), Attempt: e.Attempts,
	}
	if want := id.Name(); e.Job != want {
		t.Errorf("its Job is %s, want %s", e.Job, want)
	}
}
