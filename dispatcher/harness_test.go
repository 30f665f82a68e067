package dispatcher

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/jobs"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/metrics"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	verbosity := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(verbosity)
	_ = verbosity.Set("stderrthreshold", "FATAL") // or errors go there all the same; it takes any severity
	// The other one, which slows down who has many errors, remembers the last one's time over all bubbles, and theirs differ by years.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// namespace is where everything of the tests is.
const namespace = "batch"

// harness is a world in virtual time: an API server, queues, and the processes that dispatch between them.
type harness struct {
	t     *testing.T
	api   *apiServer
	admin kubernetes.Interface

	mu     sync.Mutex
	queues map[string]*queue
	procs  []*process
}

// process is one dispatcher.
type process struct {
	*Dispatcher
	h          *harness
	connection *connection
	registry   *prometheus.Registry
	cancel     context.CancelFunc
	done       chan struct{}
	err        error
}

// world runs a test in virtual time. What it started must have ended when it ends.
func world(t *testing.T, test func(t *testing.T, h *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &harness{t: t, api: newAPIServer(), queues: map[string]*queue{}}
		h.admin = (&connection{server: h.api}).client(t)
		h.create(&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "queue"},
			Data:       map[string][]byte{"connection": []byte("good")},
		})
		defer func() {
			for _, p := range h.procs {
				p.stop()
			}
			advance(time.Minute) // for what may linger, such as the sink of Events
		}()
		test(t, h)
	})
}

// advance moves the virtual clock on, and lets everything that is due by then happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// eventually advances until a condition holds, for at most so long.
func (h *harness) eventually(within time.Duration, what string, holds func() bool) {
	h.t.Helper()
	start := time.Now()
	for {
		synctest.Wait()
		if holds() {
			return
		}
		if time.Since(start) > within {
			h.t.Fatalf("after %v: %s does not hold\n%s", within, what, h.dump())
		}
		advance(50 * time.Millisecond)
	}
}

// never advances and fails if the condition comes to hold.
func (h *harness) never(lasting time.Duration, what string, holds func() bool) {
	h.t.Helper()
	for start := time.Now(); time.Since(start) < lasting; advance(250 * time.Millisecond) {
		if holds() {
			h.t.Fatalf("after %v: %s\n%s", time.Since(start), what, h.dump())
		}
	}
}

func (h *harness) dump() string {
	var b strings.Builder
	for _, j := range h.jobs() {
		fmt.Fprintf(&b, "Job %s %v %+v\n", j.Name, j.Labels, jobs.StatusOf(&j))
	}
	for _, e := range h.events() {
		fmt.Fprintf(&b, "Event %s %s\n", e.Reason, e.Message)
	}
	return b.String()
}

// option changes how a process is started.
type option func(*Config)

// start runs a dispatcher.
func (h *harness) start(options ...option) *process {
	h.t.Helper()
	p := &process{
		h: h, connection: &connection{server: h.api}, registry: prometheus.NewRegistry(), done: make(chan struct{}),
	}
	client := p.connection.client(h.t)
	cfg := Config{
		Client: client,
		OpenSource: func(spec *annotation.Spec, c Connection) (lease.Source, error) {
			return h.open(p, spec, c.Source)
		},
		Lock: LockConfig{
			Client: client, Namespace: namespace, Name: "lock", Identity: fmt.Sprintf("process-%d", len(h.procs)),
		},
		Metrics: metrics.New(p.registry),
		Log:     slog.New(slog.DiscardHandler),
	}
	if os.Getenv("TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("process", cfg.Lock.Identity)
	}
	for _, o := range options {
		o(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	p.Dispatcher = d
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(h.t.Context())
	h.procs = append(h.procs, p)
	go func() {
		defer close(p.done)
		p.err = d.Run(ctx)
	}()
	synctest.Wait()
	return p
}

// stop ends a process as SIGTERM does, and waits for it.
func (p *process) stop() {
	p.recount()
	p.cancel()
	<-p.done
	if p.err != nil {
		p.h.t.Errorf("Run: %v", p.err)
	}
}

// crash ends a process as SIGKILL does: from now on it reaches nothing and nobody.
func (p *process) crash() {
	p.connection.cut.Store(true)
	p.cancel()
}

// cronJob makes an annotated CronJob that takes from the queue of its own name. The annotations are keys and values in turn, plain
// keys without their prefix; an empty value removes one.
func cronJob(name string, annotations ...string) *batchv1.CronJob {
	c := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{
			"lighterman.dev/source":            annotation.SourceRedisStreams,
			"lighterman.dev/stream":            name,
			"lighterman.dev/connection-secret": "queue/connection",
		}},
		Spec: batchv1.CronJobSpec{
			Suspend: ptr.To(true),
			JobTemplate: batchv1.JobTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"team": "images"}, Annotations: map[string]string{"note": "kept"}},
				Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
					RestartPolicy:  corev1.RestartPolicyNever,
					InitContainers: []corev1.Container{{Name: "first"}},
					Containers:     []corev1.Container{{Name: "main"}, {Name: "side"}},
				}}},
			},
		},
	}
	annotate(c.Annotations, annotations)
	return c
}

func annotate(to map[string]string, annotations []string) {
	for pair := range slices.Chunk(annotations, 2) {
		key := pair[0]
		if !strings.Contains(key, "/") {
			key = "lighterman.dev/" + key
		}
		if pair[1] == "" {
			delete(to, key)
		} else {
			to[key] = pair[1]
		}
	}
}

// annotate edits the annotations of a CronJob.
func (h *harness) annotate(name string, annotations ...string) {
	h.t.Helper()
	h.must(edit(h.api, "cronjobs", namespace, name, func(c *batchv1.CronJob) { annotate(c.Annotations, annotations) }))
}

// dispatch makes a queue and its template.
func (h *harness) dispatch(name string, annotations ...string) *queue {
	h.t.Helper()
	q := h.queue(name)
	h.create(cronJob(name, annotations...))
	return q
}

func (h *harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// create puts an object into the API server.
func (h *harness) create(o metav1.Object) {
	h.t.Helper()
	var err error
	options := metav1.CreateOptions{}
	switch o := o.(type) {
	case *batchv1.CronJob:
		_, err = h.admin.BatchV1().CronJobs(o.Namespace).Create(h.t.Context(), o, options)
	case *batchv1.Job:
		_, err = h.admin.BatchV1().Jobs(o.Namespace).Create(h.t.Context(), o, options)
	case *corev1.Secret:
		_, err = h.admin.CoreV1().Secrets(o.Namespace).Create(h.t.Context(), o, options)
	case *corev1.Pod:
		_, err = h.admin.CoreV1().Pods(o.Namespace).Create(h.t.Context(), o, options)
	}
	h.must(err)
}

// deleteTemplate deletes a CronJob.
func (h *harness) deleteTemplate(name string) {
	h.t.Helper()
	h.must(h.admin.BatchV1().CronJobs(namespace).Delete(h.t.Context(), name, metav1.DeleteOptions{}))
}

func (h *harness) deleteJob(name string) {
	h.t.Helper()
	h.must(h.admin.BatchV1().Jobs(namespace).Delete(h.t.Context(), name, metav1.DeleteOptions{}))
}

// jobs is all Jobs of ours, oldest first.
func (h *harness) jobs() []batchv1.Job {
	found := slices.DeleteFunc(all[batchv1.Job](h.api, "jobs"), func(j batchv1.Job) bool { return j.Labels[jobs.LabelTemplate] == "" })
	slices.SortStableFunc(found, func(a, b batchv1.Job) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	return found
}

// of is the Jobs of one template.
func (h *harness) of(template string) []batchv1.Job {
	return slices.DeleteFunc(h.jobs(), func(j batchv1.Job) bool { return j.Labels[jobs.LabelTemplate] != template })
}

// unfinished is the Jobs that have not ended.
func (h *harness) unfinished() []batchv1.Job {
	return slices.DeleteFunc(h.jobs(), func(j batchv1.Job) bool { return jobs.StatusOf(&j).Phase.Finished() })
}

// awaitJobs waits until so many Jobs exist, and returns them.
func (h *harness) awaitJobs(n int) []batchv1.Job {
	h.t.Helper()
	h.eventually(time.Minute, fmt.Sprintf("there are %d Jobs", n), func() bool { return len(h.jobs()) >= n })
	found := h.jobs()
	if len(found) != n {
		h.t.Fatalf("%d Jobs, want %d\n%s", len(found), n, h.dump())
	}
	return found
}

// job is a Job by its name.
func (h *harness) job(name string) batchv1.Job {
	h.t.Helper()
	for _, j := range h.jobs() {
		if j.Name == name {
			return j
		}
	}
	h.t.Fatalf("there is no Job %s", name)
	return batchv1.Job{}
}

func (h *harness) editJob(name string, change func(*batchv1.Job)) {
	h.t.Helper()
	h.must(edit(h.api, "jobs", namespace, name, change))
	synctest.Wait()
}

// ready gives Jobs a ready pod.
func (h *harness) ready(names ...string) {
	h.t.Helper()
	for _, name := range names {
		h.editJob(name, func(j *batchv1.Job) { j.Status.Active, j.Status.Ready = 1, ptr.To[int32](1) })
	}
}

func (h *harness) condition(name string, kind batchv1.JobConditionType, reason, message string) {
	h.t.Helper()
	h.editJob(name, func(j *batchv1.Job) {
		j.Status.Conditions = append(j.Status.Conditions, batchv1.JobCondition{
			Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastTransitionTime: metav1.Now(),
		})
	})
}

// succeed ends Jobs well.
func (h *harness) succeed(names ...string) {
	h.t.Helper()
	for _, name := range names {
		h.condition(name, batchv1.JobComplete, "CompletionsReached", "")
	}
}

// fail ends Jobs as failed.
func (h *harness) fail(names ...string) {
	h.t.Helper()
	for _, name := range names {
		h.condition(name, batchv1.JobFailed, "BackoffLimitExceeded", "the pod failed")
	}
}

// names are the names of Jobs.
func names(all []batchv1.Job) []string {
	var n []string
	for _, j := range all {
		n = append(n, j.Name)
	}
	return n
}

// attempt is the name of a Job of the queue's message.
func attempt(q *queue, messageID string, n int) string {
	return jobs.Identity{Source: q.Identity(), Messages: jobs.NewMessageSet(messageID), Attempt: n}.Name()
}

// content is a payload as it reaches the containers.
func content(t *testing.T, payload string) *jobs.Content {
	t.Helper()
	c, err := jobs.NewContent(jobs.PayloadAuto, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// events are the Events so far, oldest first.
func (h *harness) events() []corev1.Event { return all[corev1.Event](h.api, "events") }

// told counts the Events of a reason on an object whose text contains all the parts.
func (h *harness) told(object, reason string, parts ...string) (n int) {
	for _, e := range h.events() {
		if e.InvolvedObject.Name != object || e.Reason != reason {
			continue
		}
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(e.Message, part) }) {
			n += int(max(e.Count, 1))
		}
	}
	return n
}

// lock is the leader lock.
func (h *harness) lock() coordinationv1.Lease {
	h.t.Helper()
	locks := all[coordinationv1.Lease](h.api, "leases")
	if len(locks) != 1 {
		h.t.Fatalf("%d leader locks, want 1", len(locks))
	}
	return locks[0]
}

// metric is the sum of a metric's series that have these labels, given as name and value in turn; of a histogram, how many it observed.
func (p *process) metric(name string, labels ...string) float64 {
	p.h.t.Helper()
	families, err := p.registry.Gather()
	p.h.must(err)
	sum := 0.0
	for _, family := range families {
		if family.GetName() != "lighterman_"+name {
			continue
		}
	series:
		for _, m := range family.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			for pair := range slices.Chunk(labels, 2) {
				if have[pair[0]] != pair[1] {
					continue series
				}
			}
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}
