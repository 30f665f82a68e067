package metrics_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lighterman-dev/lighterman/metrics"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

const referenceHead = `# Metrics

<!-- Made from metrics/metrics.go by "make docs". Do not edit. -->

` + "`lighterman run`" + ` serves these at ` + "`/metrics`" + `, beside those of the Go runtime and the process. Series with a template exist from when the
template is first seen, and go with it. Times are in seconds; histograms come as native ones too, where Prometheus scrapes those.

| Metric | Type | Labels | Meaning |
| --- | --- | --- | --- |
`

// docs/metrics.md is what the code says.
func TestReference(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString(referenceHead)
	for _, d := range metrics.New(prometheus.NewRegistry()).Table() {
		var labels []string
		for _, label := range d.Labels {
			text := "`" + label.Name + "`"
			if len(label.Values) > 0 {
				text += ": `" + strings.Join(label.Values, "`, `") + "`"
			} else if label.Name != "namespace" && label.Name != "template" {
				text += ": " + label.Meaning
			}
			labels = append(labels, text)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.Type, strings.Join(labels, "; "), d.Help)
	}
	b.WriteString("\nOn every metric of a template:\n\n")
	for _, label := range templateLabels(t) {
		fmt.Fprintf(&b, "- `%s`: %s.\n", label.Name, label.Meaning)
	}

	const path = "../docs/metrics.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("%s is behind the code; run \"make docs\" (-want +got):\n%s", path, diff)
	}
}

// templateLabels are those that a metric with no further labels has.
func templateLabels(t *testing.T) []metrics.Label {
	t.Helper()
	for _, d := range metrics.New(prometheus.NewRegistry()).Table() {
		if d.Name == "lighterman_backlog_messages" {
			return d.Labels
		}
	}
	t.Fatal("no metric of a template")
	return nil
}
