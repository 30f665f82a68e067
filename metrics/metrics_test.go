package metrics_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

func TestTemplate(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg)
	template := m.Template("shop", "cronjob/thumbs")
	template.Received.Add(3)
	template.Created.Add(2)
	template.Adopted.Inc()
	template.Completed.Inc()
	template.Poisoned.Inc()
	template.NotRenewed.Inc()
	template.InFlight.Set(2)
	template.SetState(metrics.StateBlocked)
	template.SetState(metrics.StateRunning)
	template.SetBacklog(40, 3)
	template.Failed("BackoffLimitExceeded")
	template.Failed("SomethingNew")
	template.Error(metrics.StageLaunch, "forbidden")
	template.Error(metrics.StageReceive, "a word that nobody knows")
	template.Run.Observe(0.3)

	want := `
# HELP lighterman_backlog_leased_messages How many of the backlog are leased or delayed, as last read. No series where the source cannot tell.
# TYPE lighterman_backlog_leased_messages gauge
lighterman_backlog_leased_messages{namespace="shop",template="cronjob/thumbs"} 3
# HELP lighterman_backlog_messages Messages that the source holds and that are not completed: visible, leased and delayed, as last read.
# TYPE lighterman_backlog_messages gauge
lighterman_backlog_messages{namespace="shop",template="cronjob/thumbs"} 40
# HELP lighterman_errors_total Errors, by where they came up and of what kind they are. Both template labels are empty where no template is concerned.
# TYPE lighterman_errors_total counter
lighterman_errors_total{class="forbidden",namespace="shop",stage="launch",template="cronjob/thumbs"} 1
lighterman_errors_total{class="other",namespace="shop",stage="receive",template="cronjob/thumbs"} 1
# HELP lighterman_jobs_launched_total Jobs that took up a task: created for it, or found to be running or finished already and adopted.
# TYPE lighterman_jobs_launched_total counter
lighterman_jobs_launched_total{namespace="shop",result="adopted",template="cronjob/thumbs"} 1
lighterman_jobs_launched_total{namespace="shop",result="created",template="cronjob/thumbs"} 2
# HELP lighterman_lease_renewals_total Renewals of leases asked of the source.
# TYPE lighterman_lease_renewals_total counter
lighterman_lease_renewals_total{namespace="shop",result="error",template="cronjob/thumbs"} 1
lighterman_lease_renewals_total{namespace="shop",result="ok",template="cronjob/thumbs"} 0
# HELP lighterman_task_failures_total Jobs that failed, each an attempt, by the reason Kubernetes gives.
# TYPE lighterman_task_failures_total counter
lighterman_task_failures_total{namespace="shop",reason="BackoffLimitExceeded",template="cronjob/thumbs"} 1
lighterman_task_failures_total{namespace="shop",reason="DeadlineExceeded",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="Deleted",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="FailedIndexes",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="MaxFailedIndexesExceeded",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="PayloadLost",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="PodFailurePolicy",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="ReportedFailed",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="StartTimeout",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="UnclearReport",template="cronjob/thumbs"} 0
lighterman_task_failures_total{namespace="shop",reason="other",template="cronjob/thumbs"} 1
# HELP lighterman_tasks_settled_total Tasks that ended: completed after success; requeued for another attempt; poisoned after the last; or returned, uncounted, as they could not be launched, or as the process stopped while their Jobs run.
# TYPE lighterman_tasks_settled_total counter
lighterman_tasks_settled_total{namespace="shop",outcome="completed",template="cronjob/thumbs"} 1
lighterman_tasks_settled_total{namespace="shop",outcome="poisoned",template="cronjob/thumbs"} 1
lighterman_tasks_settled_total{namespace="shop",outcome="requeued",template="cronjob/thumbs"} 0
lighterman_tasks_settled_total{namespace="shop",outcome="returned",template="cronjob/thumbs"} 0
# HELP lighterman_template_state 1 for the state that the template is in, 0 for the others.
# TYPE lighterman_template_state gauge
lighterman_template_state{namespace="shop",state="blocked",template="cronjob/thumbs"} 0
lighterman_template_state{namespace="shop",state="misconfigured",template="cronjob/thumbs"} 0
lighterman_template_state{namespace="shop",state="paused",template="cronjob/thumbs"} 0
lighterman_template_state{namespace="shop",state="running",template="cronjob/thumbs"} 1
lighterman_template_state{namespace="shop",state="stalled",template="cronjob/thumbs"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"lighterman_backlog_leased_messages", "lighterman_backlog_messages", "lighterman_errors_total", "lighterman_jobs_launched_total",
		"lighterman_lease_renewals_total", "lighterman_task_failures_total", "lighterman_tasks_settled_total", "lighterman_template_state",
	); err != nil {
		t.Error(err)
	}

	template.SetBacklog(40, -1)
	if got := count(t, reg, "lighterman_backlog_leased_messages"); got != 0 {
		t.Errorf("%d series of leased messages where the source cannot tell, want 0", got)
	}
}

func TestDropTemplate(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg)
	for _, name := range []string{"cronjob/stays", "cronjob/goes"} {
		template := m.Template("shop", name)
		template.SetBacklog(1, 1)
		template.Error(metrics.StageTrack, "timeout")
	}
	m.Error(metrics.StageDiscover, "forbidden")
	before := count(t, reg)

	m.DropTemplate("shop", "cronjob/goes")
	// One series belongs to no template.
	if got, want := count(t, reg), (before-1)/2+1; got != want {
		t.Errorf("%d series of %d are left, want %d", got, before, want)
	}
	if got := labelled(t, reg, "cronjob/goes"); len(got) > 0 {
		t.Errorf("series of the template that went: %v", got)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg)
	m.SetBuildInfo("v1.2.3", "go1.26.0")
	m.SetLeader("lighterman-0", true)
	m.SetLeader("lighterman-1", true)
	m.SetLeader("lighterman-1", false)
	want := `
# HELP lighterman_build_info Always 1; its labels tell the version.
# TYPE lighterman_build_info gauge
lighterman_build_info{goversion="go1.26.0",version="v1.2.3"} 1
# HELP lighterman_leader Whether this process leads the shard: 1 if it does.
# TYPE lighterman_leader gauge
lighterman_leader{shard="lighterman-0"} 1
lighterman_leader{shard="lighterman-1"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "lighterman_build_info", "lighterman_leader"); err != nil {
		t.Error(err)
	}
}

// What is documented is what there is: every family, with its labels, and no label value beyond those that are listed.
func TestDefinitionsHold(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	m := metrics.New(reg)
	m.SetBuildInfo("v1.2.3", "go1.26.0")
	m.SetLeader("lighterman-0", true)
	m.SetFenced("lighterman-0", true)
	template := m.Template("shop", "job/thumbs")
	template.SetBacklog(1, 1)
	template.SetUnconfirmed(1, 1)
	template.Error(metrics.StageExtend, "lost")

	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}

	families := map[string]*dto.MetricFamily{}
	for _, family := range gather(t, reg) {
		families[family.GetName()] = family
	}
	for _, definition := range m.Table() {
		family := families[definition.Name]
		if family == nil {
			t.Errorf("%s is documented, and does not exist", definition.Name)
			continue
		}
		delete(families, definition.Name)
		want := map[string][]string{}
		for _, label := range definition.Labels {
			want[label.Name] = label.Values
			if (len(label.Values) == 0) == (label.Meaning == "") {
				t.Errorf("label %s of %s wants either values or a meaning", label.Name, definition.Name)
			}
		}
		for _, series := range family.GetMetric() {
			if len(series.GetLabel()) != len(want) {
				t.Errorf("%s has %d labels, want %d", definition.Name, len(series.GetLabel()), len(want))
			}
			for _, pair := range series.GetLabel() {
				values, ok := want[pair.GetName()]
				if !ok || len(values) > 0 && !slices.Contains(values, pair.GetValue()) {
					t.Errorf("%s has %s=%q, which is not documented", definition.Name, pair.GetName(), pair.GetValue())
				}
			}
		}
	}
	for name := range families {
		t.Errorf("%s exists, and is not documented", name)
	}
}

// Every class that package lease can name is one that the metrics know.
func TestClassesOfLeaseErrors(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		lease.ErrLost, lease.ErrNotFound, lease.ErrUnauthorized, lease.ErrThrottled, lease.ErrInvalid, lease.ErrUnreadable,
		context.Canceled, context.DeadlineExceeded,
	} {
		reg := prometheus.NewPedanticRegistry()
		class := lease.Class(err)
		metrics.New(reg).Error(metrics.StageSettle, class)
		var got []string
		for _, family := range gather(t, reg) {
			for _, pair := range family.GetMetric()[0].GetLabel() {
				if pair.GetName() == "class" {
					got = append(got, pair.GetValue())
				}
			}
		}
		if diff := cmp.Diff([]string{class}, got); diff != "" {
			t.Errorf("class of %v (-want +got):\n%s", err, diff)
		}
	}
}

func TestSinceIsNeverNegative(t *testing.T) {
	t.Parallel()
	if got := metrics.Since(time.Now().Add(time.Hour)); got != 0 {
		t.Errorf("Since(in an hour) = %v, want 0", got)
	}
	if got := metrics.Since(time.Now().Add(-time.Minute)); got < 60 {
		t.Errorf("Since(a minute ago) = %v", got)
	}
}

func gather(t *testing.T, reg prometheus.Gatherer) []*dto.MetricFamily {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func count(t *testing.T, reg prometheus.Gatherer, names ...string) int {
	t.Helper()
	n, err := testutil.GatherAndCount(reg, names...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// labelled are the names of metrics that have a series with the template.
func labelled(t *testing.T, reg prometheus.Gatherer, template string) []string {
	t.Helper()
	var names []string
	for _, family := range gather(t, reg) {
		for _, series := range family.GetMetric() {
			for _, pair := range series.GetLabel() {
				if pair.GetName() == "template" && pair.GetValue() == template {
					names = append(names, family.GetName())
				}
			}
		}
	}
	return names
}

func BenchmarkTemplate(b *testing.B) {
	template := metrics.New(prometheus.NewRegistry()).Template("shop", "cronjob/thumbs")
	b.ReportAllocs()
	for b.Loop() {
		template.Received.Inc()
		template.QueueWait.Observe(0.02)
	}
}
