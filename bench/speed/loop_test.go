package speed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lighterman-dev/lighterman/jobs"
)

// loopVariable makes this test binary the plain loop; its value is a loopPlan in JSON.
const loopVariable = "LIGHTERMAN_BENCH_LOOP"

// loopPlan is what the plain loop is to do.
type loopPlan struct {
	Kubeconfig, Namespace string
	Workers, Jobs         int
}

// loop is the plain loop as a process of its own.
type loop struct {
	*process
	in  io.WriteCloser
	out *bufio.Reader
}

// loop starts a plain loop, which waits until it is told to go.
func (a *arena) loop(namespace string, workers, count int) *loop {
	a.Helper()
	plan := must(json.Marshal(loopPlan{Kubeconfig: a.kubeconfig, Namespace: namespace, Workers: workers, Jobs: count}))(a.B)
	cmd := exec.CommandContext(a.Context(), must(os.Executable())(a.B))
	cmd.Env = append(os.Environ(), loopVariable+"="+string(plan))
	l := &loop{in: must(cmd.StdinPipe())(a.B)}
	// Not StdoutPipe, which Wait closes, read or not.
	read, write, err := os.Pipe()
	if err != nil {
		a.Fatal(err)
	}
	cmd.Stdout = write
	l.out = bufio.NewReader(read)
	l.process = start(a.B, cmd)
	_ = write.Close()
	a.Cleanup(func() { _ = read.Close() })
	l.await("ready")
	return l
}

// begin lets the loop begin.
func (l *loop) begin() {
	l.b.Helper()
	if _, err := io.WriteString(l.in, "go\n"); err != nil {
		l.b.Fatal(err)
	}
}

func (l *loop) await(word string) {
	l.b.Helper()
	line, err := l.out.ReadString('\n')
	if strings.TrimSpace(line) != word {
		l.b.Fatalf("the plain loop says %q (%v), not %q; the end of its log:\n%s", line, err, word, l.tail())
	}
}

// runLoop is the life of the plain loop: the best that can be done with a typed client and nothing else.
func runLoop(text string) error {
	var plan loopPlan
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", plan.Kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(protobuf(config))
	if err != nil {
		return err
	}
	ctx := context.Background()
	// Open the connection.
	if _, err := client.BatchV1().Jobs(plan.Namespace).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return err
	}
	fmt.Println("ready")
	input := bufio.NewReader(os.Stdin)
	if _, err := input.ReadString('\n'); err != nil {
		return err
	}
	if err := createJobs(ctx, client, plan); err != nil {
		return err
	}
	fmt.Println("done")
	// The processor time can be read as long as the process is there.
	_, err = input.ReadString('\n')
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// createJobs creates the same Jobs as lighterman does.
func createJobs(ctx context.Context, client kubernetes.Interface, plan loopPlan) error {
	const source = "redis-streams://127.0.0.1:6379/0/tasks?group=lighterman"
	made, err := jobs.FromCronJob(template(plan.Namespace, nil), maps.Clone)
	if err != nil {
		return err
	}
	began := time.Now()
	var next atomic.Int64
	var failure error
	var once sync.Once
	var workers sync.WaitGroup
	for range plan.Workers {
		workers.Go(func() {
			for {
				n := int(next.Add(1))
				if n > plan.Jobs {
					return
				}
				message := jobs.NewMessageSet(fmt.Sprintf("%d-%d", began.UnixMilli(), n))
				job, err := plainJob(made, jobs.Identity{Source: source, Messages: message, Attempt: 1}, payload(n), began)
				if err == nil {
					_, err = client.BatchV1().Jobs(plan.Namespace).Create(ctx, job, metav1.CreateOptions{FieldManager: "lighterman"})
				}
				if err != nil {
					once.Do(func() { failure = err })
					return
				}
			}
		})
	}
	workers.Wait()
	return failure
}

// plainJob makes the Job of a small message, as lighterman does: the payload is in it, and it needs no Secret.
func plainJob(made *jobs.Template, id jobs.Identity, body string, enqueuedAt time.Time) (*batchv1.Job, error) {
	content, err := jobs.NewContent(jobs.PayloadAuto, []byte(body))
	if err != nil {
		return nil, err
	}
	job, secret, err := made.Job(jobs.Task{Identity: id, Content: content, EnqueuedAt: enqueuedAt})
	if err == nil && secret != nil {
		err = fmt.Errorf("the payload of %d bytes came into a Secret", len(body))
	}
	return job, err
}
