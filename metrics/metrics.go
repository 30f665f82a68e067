// Package metrics is every number that Lighterman tells about itself, and the server that tells them.
//
// All metrics are defined in New, one after the other, with the values that their labels can take; docs/metrics.md is made from
// the same definitions. Series that belong to a template exist from when it is first seen, at zero, so that a rate over them is
// right from the first event, and are dropped when it goes.
//
// The loop that handles messages does not look anything up here: it holds a Template, whose fields are the series themselves.
package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stage is the step on a message's way at which something failed.
type Stage string

// The stages.
const (
	StageDiscover Stage = "discover"
	StageReceive  Stage = "receive"
	StageLaunch   Stage = "launch"
	StageTrack    Stage = "track"
	StageExtend   Stage = "extend"
	StageSettle   Stage = "settle"
	StageMark     Stage = "mark"
	StageBacklog  Stage = "backlog"
)

var stages = []Stage{StageDiscover, StageReceive, StageLaunch, StageTrack, StageExtend, StageSettle, StageMark, StageBacklog}

// State is what a template is up to.
type State string

// The states. A template is in one of them.
const (
	// StateRunning means that messages are taken as they come.
	StateRunning State = "running"
	// StatePaused means that the user paused it.
	StatePaused State = "paused"
	// StateMisconfigured means that the template, its Secret or its source must be mended first.
	StateMisconfigured State = "misconfigured"
	// StateBlocked means that the template is good, and something beside it is in the way: a quota, missing rights, a source
	// that cannot be reached.
	StateBlocked State = "blocked"
	// StateStalled means that messages are taken, and their Jobs do not start.
	StateStalled State = "stalled"
)

var states = []State{StateRunning, StatePaused, StateMisconfigured, StateBlocked, StateStalled}

// obstacles are what keeps pods from starting.
var obstacles = []string{
	"ContainerCreating", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ErrImagePull", "FailedScheduling",
	"ImageInspectError", "ImagePullBackOff", "InvalidImageName", "NoPods", "RegistryUnavailable", "RunContainerError", "Unschedulable",
	classOther,
}

// classes are the kinds of failure: those of package lease, and those of the Kubernetes API.
var classes = []string{
	"canceled", "conflict", "fenced", "forbidden", "foreign", "invalid", "lost", "not_found", classOther, "payload", "reset", "throttled", "timeout",
	"unauthorized", "unavailable", "unreadable",
}

const classOther = "other"

// reasons are those for which Kubernetes fails a Job, the one for which we have it do so, that somebody deleted it, and those for which messages of a
// pack fail whose Job has succeeded.
var reasons = []string{
	"BackoffLimitExceeded", "DeadlineExceeded", "Deleted", "FailedIndexes", "MaxFailedIndexesExceeded", "PayloadLost", "PodFailurePolicy", "ReportedFailed",
	"StartTimeout", "UnclearReport", classOther,
}

// Metrics are all metrics of one process.
type Metrics struct {
	buildInfo *prometheus.GaugeVec
	leader    *prometheus.GaugeVec
	fenced    *prometheus.GaugeVec

	state         *prometheus.GaugeVec
	backlog       *prometheus.GaugeVec
	backlogLeased *prometheus.GaugeVec
	unconfirmed   *prometheus.GaugeVec
	heldBack      *prometheus.GaugeVec
	inFlight      *prometheus.GaugeVec
	maxInFlight   *prometheus.GaugeVec
	pending       *prometheus.GaugeVec
	stalled       *prometheus.GaugeVec

	received   *prometheus.CounterVec
	launched   *prometheus.CounterVec
	failures   *prometheus.CounterVec
	settled    *prometheus.CounterVec
	renewals   *prometheus.CounterVec
	leasesLost *prometheus.CounterVec
	errors     *prometheus.CounterVec

	queueWait *prometheus.HistogramVec
	launch    *prometheus.HistogramVec
	run       *prometheus.HistogramVec
	settle    *prometheus.HistogramVec

	definitions []Definition
	// perTemplate are the vectors that have series of templates, which DropTemplate removes.
	perTemplate []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}
}

// New defines all metrics and registers them with reg.
func New(reg prometheus.Registerer) *Metrics {
	m := &Metrics{}
	d := definer{reg: reg, m: m}

	m.buildInfo = d.gauge("build_info", "Always 1; its labels tell the version.",
		Label{Name: "version", Meaning: "the version of Lighterman"},
		Label{Name: "goversion", Meaning: "the version of Go that built it"})
	m.leader = d.gauge("leader", "Whether this process leads the shard: 1 if it does.",
		Label{Name: "shard", Meaning: "the name of the shard's leader lock"})

	m.fenced = d.gauge("fenced", "Whether the API server refuses Jobs of former leaders of the shard: 1 if it does. No series before this process has led "+
		"the shard and has had a template to find out with.",
		Label{Name: "shard", Meaning: "the name of the shard's leader lock"})

	m.state = d.templateGauge("template_state", "1 for the state that the template is in, 0 for the others.",
		Label{Name: "state", Values: texts(states)})
	m.backlog = d.templateGauge("backlog_messages",
		"Messages that the source holds and that are not completed: visible, leased and delayed, as last read.")
	m.backlogLeased = d.templateGauge("backlog_leased_messages",
		"How many of the backlog are leased or delayed, as last read. No series where the source cannot tell.")
	m.unconfirmed = d.templateGauge("unconfirmed_messages",
		"Messages that are settled and that no checkpoint has passed, so that a crash has them delivered again, as last read. No series where a source has no checkpoints.")
	m.heldBack = d.templateGauge("held_back_messages",
		"How many of the unconfirmed messages wait for an older one that is not settled, as last read. No series where a source has no checkpoints.")
	m.inFlight = d.templateGauge("in_flight_tasks", "Tasks between the receipt of their message and its settlement.")
	m.maxInFlight = d.templateGauge("max_in_flight_tasks", "The limit of tasks in flight that the template sets.")

	m.pending = d.templateGauge("pending_tasks", "Tasks whose Job has no ready pod, or is being created.")
	m.stalled = d.templateGauge("stalled_tasks",
		"Tasks whose Job could have started 30 seconds ago and has had no ready pod, by what the pods of the oldest wait for.",
		Label{Name: "reason", Values: obstacles})

	m.received = d.templateCounter("messages_received_total", "Messages leased, redeliveries included.")
	m.launched = d.templateCounter("jobs_launched_total",
		"Jobs that took up a task: created for it, or found to be running or finished already and adopted.",
		Label{Name: "result", Values: []string{"created", "adopted"}})
	m.failures = d.templateCounter("task_failures_total", "Jobs that failed, each an attempt, by the reason Kubernetes gives.",
		Label{Name: "reason", Values: reasons})
	m.settled = d.templateCounter("tasks_settled_total",
		"Tasks that ended: completed after success; requeued for another attempt; poisoned after the last; or returned, "+
			"uncounted, as they could not be launched, or as the process stopped while their Jobs run.",
		Label{Name: "outcome", Values: []string{"completed", "requeued", "poisoned", "returned"}})
	m.renewals = d.templateCounter("lease_renewals_total", "Renewals of leases asked of the source.",
		Label{Name: "result", Values: []string{"ok", "error"}})
	m.leasesLost = d.templateCounter("leases_lost_total", "Leases that ended before their task did.")
	m.errors = d.templateCounter("errors_total",
		"Errors, by where they came up and of what kind they are. Both template labels are empty where no template is concerned.",
		Label{Name: "stage", Values: texts(stages)}, Label{Name: "class", Values: classes})

	m.queueWait = d.templateHistogram("queue_wait_seconds",
		"From when a message was put into its source to when it was received; with redeliveries, to each receipt.")
	m.launch = d.templateHistogram("launch_seconds", "From the receipt of a message to when its Job is created.")
	m.run = d.templateHistogram("run_seconds", "From the creation of a Job to when it was seen to have finished.")
	m.settle = d.templateHistogram("settle_seconds", "From when a Job was seen to have finished to when its message is settled.")
	return m
}

// Template holds the series of one template, ready for use. Its fields are safe for concurrent use.
type Template struct {
	InFlight    prometheus.Gauge
	MaxInFlight prometheus.Gauge
	Pending     prometheus.Gauge

	Received prometheus.Counter
	// Created and Adopted are the results of launching a Job.
	Created, Adopted prometheus.Counter
	// Completed, Requeued, Poisoned and Returned are the outcomes of tasks.
	Completed, Requeued, Poisoned, Returned prometheus.Counter
	// Renewed and NotRenewed are the results of asking for a lease's renewal.
	Renewed, NotRenewed prometheus.Counter
	LeasesLost          prometheus.Counter

	// QueueWait, Launch, Run and Settle observe seconds.
	QueueWait, Launch, Run, Settle prometheus.Observer

	m      *Metrics
	labels prometheus.Labels
	states map[State]prometheus.Gauge
}

// Template returns the series of a template, with all that have fixed labels at zero if they are new. The name is the kind in
// small letters and the object's name, with a slash between them, as in cronjob/thumbs; a named set of annotations adds
// another slash and the set's name. Whoever asks for it calls DropTemplate when the template is gone.
func (m *Metrics) Template(namespace, name string) *Template {
	with := prometheus.Labels{labelNamespace: namespace, labelTemplate: name}
	launched, settled, renewals := m.launched.MustCurryWith(with), m.settled.MustCurryWith(with), m.renewals.MustCurryWith(with)
	t := &Template{
		InFlight:    m.inFlight.With(with),
		MaxInFlight: m.maxInFlight.With(with),
		Pending:     m.pending.With(with),
		Received:    m.received.With(with),
		Created:     launched.WithLabelValues("created"),
		Adopted:     launched.WithLabelValues("adopted"),
		Completed:   settled.WithLabelValues("completed"),
		Requeued:    settled.WithLabelValues("requeued"),
		Poisoned:    settled.WithLabelValues("poisoned"),
		Returned:    settled.WithLabelValues("returned"),
		Renewed:     renewals.WithLabelValues("ok"),
		NotRenewed:  renewals.WithLabelValues("error"),
		LeasesLost:  m.leasesLost.With(with),
		QueueWait:   m.queueWait.With(with),
		Launch:      m.launch.With(with),
		Run:         m.run.With(with),
		Settle:      m.settle.With(with),
		m:           m,
		labels:      with,
		states:      map[State]prometheus.Gauge{},
	}
	for _, state := range states {
		t.states[state] = m.state.WithLabelValues(namespace, name, string(state))
	}
	for _, o := range obstacles {
		m.stalled.WithLabelValues(namespace, name, o)
	}
	for _, reason := range reasons {
		m.failures.WithLabelValues(namespace, name, reason)
	}
	return t
}

// DropTemplate removes all series of a template. Nothing may use its Template any more.
func (m *Metrics) DropTemplate(namespace, name string) {
	for _, vector := range m.perTemplate {
		vector.DeletePartialMatch(prometheus.Labels{labelNamespace: namespace, labelTemplate: name})
	}
}

// SetState records the state that the template is in now.
func (t *Template) SetState(now State) {
	for state, gauge := range t.states {
		if state == now {
			gauge.Set(1)
		} else {
			gauge.Set(0)
		}
	}
}

// SetBacklog records how many messages the source holds, and how many of them are leased; negative where it cannot tell.
func (t *Template) SetBacklog(messages, leased int64) {
	t.m.backlog.With(t.labels).Set(float64(messages))
	if leased < 0 {
		t.m.backlogLeased.Delete(t.labels)
		return
	}
	t.m.backlogLeased.With(t.labels).Set(float64(leased))
}

// SetUnconfirmed records how many settled messages no checkpoint has passed, and how many of them wait for an older one.
func (t *Template) SetUnconfirmed(unconfirmed, heldBack int64) {
	t.m.unconfirmed.With(t.labels).Set(float64(unconfirmed))
	t.m.heldBack.With(t.labels).Set(float64(heldBack))
}

// SetStalled records how many tasks do not start, and what the pods of the oldest wait for; none, where the reason is empty.
func (t *Template) SetStalled(reason string, n int) {
	now := ""
	if reason != "" {
		now = known(reason, obstacles)
	}
	for _, o := range obstacles {
		gauge := t.m.stalled.WithLabelValues(t.labels[labelNamespace], t.labels[labelTemplate], o)
		if o == now {
			gauge.Set(float64(n))
		} else {
			gauge.Set(0)
		}
	}
}

// Failed counts a Job that failed, by the reason of its Failed condition.
func (t *Template) Failed(reason string) {
	t.m.failures.WithLabelValues(t.labels[labelNamespace], t.labels[labelTemplate], FailureReason(reason)).Inc()
}

// FailureReason is the word by which a failed Job is counted: one of a few, whatever the reason of its Failed condition.
func FailureReason(reason string) string { return known(reason, reasons) }

// Error counts an error at the stage. A class that is not among the known ones counts as other.
func (t *Template) Error(stage Stage, class string) {
	t.m.errors.WithLabelValues(t.labels[labelNamespace], t.labels[labelTemplate], string(stage), known(class, classes)).Inc()
}

// Error counts an error that concerns no template in particular.
func (m *Metrics) Error(stage Stage, class string) {
	m.errors.WithLabelValues("", "", string(stage), known(class, classes)).Inc()
}

// SetLeader records whether this process leads the shard.
func (m *Metrics) SetLeader(shard string, leads bool) {
	value := 0.0
	if leads {
		value = 1
	}
	m.leader.WithLabelValues(shard).Set(value)
}

// SetFenced records whether the API server refuses Jobs of former leaders of the shard.
func (m *Metrics) SetFenced(shard string, fenced bool) {
	value := 0.0
	if fenced {
		value = 1
	}
	m.fenced.WithLabelValues(shard).Set(value)
}

// SetBuildInfo records which version this is.
func (m *Metrics) SetBuildInfo(version, goVersion string) {
	m.buildInfo.WithLabelValues(version, goVersion).Set(1)
}

// Since is the time that has passed since start, in the unit of the histograms. Clocks of different machines can make it appear
// negative, which no histogram should see.
func Since(start time.Time) float64 { return max(time.Since(start), 0).Seconds() }

// known keeps the values of a label few, whatever the API server or a source comes up with.
func known(value string, values []string) string {
	if slices.Contains(values, value) {
		return value
	}
	return classOther
}

func texts[T ~string](values []T) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = string(v)
	}
	return all
}
