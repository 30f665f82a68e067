package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	prefix         = "lighterman_"
	labelNamespace = "namespace"
	labelTemplate  = "template"
)

// Definition is a metric as its documentation shows it.
type Definition struct {
	Name   string
	Type   string
	Help   string
	Labels []Label
}

// Label is a label of a metric, with either the few values that it takes or what it means.
type Label struct {
	Name    string
	Values  []string
	Meaning string
}

// Table returns the definitions of all metrics.
func (m *Metrics) Table() []Definition { return slices.Clone(m.definitions) }

// templateLabels come first on every metric of a template.
var templateLabels = []Label{
	{Name: labelNamespace, Meaning: "the namespace of the template"},
	{Name: labelTemplate, Meaning: "kind and name of the template, as in `cronjob/thumbs`, and the name of the set of annotations if it has one, as in `cronjob/thumbs/urgent`"},
}

// buckets reach from what a fast API server needs for a request to what a long Job runs. They are few since every template has
// four histograms; whoever wants more detail scrapes the native histograms.
var buckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}

// definer makes and registers metrics, and writes down what it made.
type definer struct {
	reg prometheus.Registerer
	m   *Metrics
}

func (d definer) gauge(name, help string, labels ...Label) *prometheus.GaugeVec {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, d.define("gauge", name, help, labels))
	d.reg.MustRegister(vec)
	return vec
}

func (d definer) templateGauge(name, help string, labels ...Label) *prometheus.GaugeVec {
	vec := d.gauge(name, help, slices.Concat(templateLabels, labels)...)
	d.m.perTemplate = append(d.m.perTemplate, vec)
	return vec
}

func (d definer) templateCounter(name, help string, labels ...Label) *prometheus.CounterVec {
	labels = slices.Concat(templateLabels, labels)
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, d.define("counter", name, help, labels))
	d.reg.MustRegister(vec)
	d.m.perTemplate = append(d.m.perTemplate, vec)
	return vec
}

func (d definer) templateHistogram(name, help string) *prometheus.HistogramVec {
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: prefix + name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}, d.define("histogram", name, help, templateLabels))
	d.reg.MustRegister(vec)
	d.m.perTemplate = append(d.m.perTemplate, vec)
	return vec
}

// define writes a definition down and returns the names of its labels.
func (d definer) define(kind, name, help string, labels []Label) []string {
	d.m.definitions = append(d.m.definitions, Definition{Name: prefix + name, Type: kind, Help: help, Labels: labels})
	names := make([]string, len(labels))
	for i, label := range labels {
		names[i] = label.Name
	}
	return names
}
