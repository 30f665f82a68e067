package speed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lighterman-dev/lighterman/bench/cluster/localcluster"
)

// whole is a cluster of its own, in which Jobs also run: with the controllers and the scheduler, on simulated nodes, whose pods succeed at once.
type whole struct {
	*arena
	dir string
}

func newWhole(b *testing.B) *whole {
	b.Helper()
	cluster, err := localcluster.Start(b.Context(), localcluster.Config{SimulatedNodes: 2, Progress: os.Stderr})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		// The benchmark's own context has ended by now.
		if err := cluster.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	config := protobuf(cluster.RESTConfig())
	a := &arena{B: b, kubeconfig: cluster.Kubeconfig, requests: &requestCounter{}}
	config.Wrap(a.requests.wrap)
	a.client = must(kubernetes.NewForConfig(config))(b)
	return &whole{arena: a, dir: cluster.Dir}
}

// readyNamespace makes a namespace in which pods can be created at once.
func (w *whole) readyNamespace() string {
	w.Helper()
	namespace := w.newNamespace()
	w.until("namespace "+namespace, time.Minute, func() bool {
		return must(localcluster.NamespaceReady(w.Context(), w.client, namespace))(w.B)
	})
	return namespace
}

// leading starts lighterman for a namespace, and returns when it leads.
func (w *whole) leading(namespace string) *process {
	w.Helper()
	p := w.lighterman(namespace)
	w.until("a leader", time.Minute, func() bool {
		locks := must(w.client.CoordinationV1().Leases(namespace).List(w.Context(), metav1.ListOptions{}))(w.B)
		return len(locks.Items) > 0 && w.leads(namespace, p)
	})
	return p
}

// until waits for something, and ends the benchmark if it does not come.
func (w *whole) until(what string, limit time.Duration, ask func() bool) {
	w.Helper()
	if !w.within(limit, ask) {
		w.Fatalf("waited for %v in vain for %s", limit, what)
	}
}

// within asks until the answer is yes, and returns it.
func (w *whole) within(limit time.Duration, ask func() bool) bool {
	w.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for !ask() {
		select {
		case <-ticker.C:
		case <-end.C:
			return false
		case <-w.Context().Done():
			w.Fatal(w.Context().Err())
		}
	}
	return true
}

// fill puts messages into a stream.
func (w *whole) fill(queue *redis.Client, stream string, count int, body func(n int) string) {
	w.Helper()
	const batch = 1000
	for from := 0; from < count; from += batch {
		_, err := queue.Pipelined(w.Context(), func(p redis.Pipeliner) error {
			for n := from; n < min(from+batch, count); n++ {
				p.XAdd(w.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"data", body(n)}})
			}
			return nil
		})
		if err != nil {
			w.Fatal(err)
		}
	}
}

// removeJobs deletes the Jobs of a namespace as the TTL controller does, and returns when all that they own is gone as well.
func (w *whole) removeJobs(namespace string) {
	w.Helper()
	foreground := metav1.DeletePropagationForeground
	err := w.client.BatchV1().Jobs(namespace).DeleteCollection(w.Context(), metav1.DeleteOptions{PropagationPolicy: &foreground}, metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	w.until("the Jobs to go", 3*time.Minute, func() bool {
		one := metav1.ListOptions{Limit: 2}
		return w.countJobs(namespace) == 0 &&
			len(must(w.client.CoreV1().Pods(namespace).List(w.Context(), one))(w.B).Items) == 0 &&
			len(must(w.client.CoreV1().Secrets(namespace).List(w.Context(), one))(w.B).Items) == 1 // the template's
	})
}

// pid finds a component of the cluster, which names the cluster's folder on its command line, and returns its arguments as well.
func (w *whole) pid(name string) (pid int, args []string) {
	w.Helper()
	for _, file := range must(filepath.Glob("/proc/[0-9]*/cmdline"))(w.B) {
		text, _ := os.ReadFile(file) // it may have ended
		args := strings.Split(string(text), "\x00")
		if filepath.Base(args[0]) == name && strings.Contains(string(text), w.dir) {
			return must(strconv.Atoi(filepath.Base(filepath.Dir(file))))(w.B), args
		}
	}
	w.Fatalf("%s does not run", name)
	return 0, nil
}

// Whose processor time is told, beside the components of the cluster by their names.
const (
	dispatcherCPU = "lighterman"
	redisCPU      = "redis-server"
	benchmarkCPU  = "benchmark"
	idleCPU       = "idle"
)

// cpu is the processor time that everybody has used so far.
func (w *whole) cpu(p *process, queue *redis.Client) map[string]time.Duration {
	w.Helper()
	used := map[string]time.Duration{dispatcherCPU: p.cpu(), redisCPU: w.redisCPU(queue), idleCPU: w.idleCPU()}
	used[benchmarkCPU] = must(cpuOf(os.Getpid()))(w.B)
	for _, name := range []string{
		localcluster.Etcd, localcluster.APIServer, localcluster.ControllerManager, localcluster.Scheduler, localcluster.Kwok,
	} {
		pid, _ := w.pid(name)
		used[name] = must(cpuOf(pid))(w.B)
	}
	return used
}

func (w *whole) redisCPU(queue *redis.Client) time.Duration {
	w.Helper()
	var seconds float64
	for line := range strings.Lines(must(queue.Info(w.Context(), "cpu").Result())(w.B)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_sys" || name == "used_cpu_user" {
			seconds += must(strconv.ParseFloat(value, 64))(w.B)
		}
	}
	return time.Duration(seconds * float64(time.Second))
}

// idleCPU is for how long the processors had nothing to do, all together.
func (w *whole) idleCPU() time.Duration {
	w.Helper()
	fields := bytes.Fields(must(os.ReadFile("/proc/stat"))(w.B))
	// "cpu", then user, nice, system, idle and iowait
	var ticks int64
	for _, field := range fields[4:6] {
		ticks += must(strconv.ParseInt(string(field), 10, 64))(w.B)
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

// etcdWrote is how many bytes etcd has written into its log so far.
func (w *whole) etcdWrote() float64 {
	w.Helper()
	_, args := w.pid(localcluster.Etcd)
	const flag = "--listen-client-urls="
	at := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, flag) })
	if at < 0 {
		w.Fatalf("etcd listens nowhere: %q", args)
	}
	request := must(http.NewRequestWithContext(w.Context(), http.MethodGet, strings.TrimPrefix(args[at], flag)+"/metrics", http.NoBody))(w.B)
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	for line := range strings.Lines(string(must(io.ReadAll(reply.Body))(w.B))) {
		if value, ok := strings.CutPrefix(line, "etcd_disk_wal_write_bytes_total "); ok {
			return must(strconv.ParseFloat(strings.TrimSpace(value), 64))(w.B)
		}
	}
	w.Fatal("etcd does not tell how much it has written")
	return 0
}

// table lays out rows of words in columns.
func table(rows [][]string) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(&b, "%*s", widths[i]+2, cell)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
