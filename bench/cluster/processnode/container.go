package processnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// retryInterval is how long what is missing (a Secret, a volume, an image) is waited for between two looks.
	retryInterval = time.Second

	// unpullable begins the names of images that cannot be pulled. All others are ignored.
	unpullable = "invalid.test/"
)

// A containerRun is one container of a pod, through all its restarts.
type containerRun struct {
	*podWorker
	container *corev1.Container
	record    func(*podState) *containerRecord
	policy    corev1.RestartPolicy
	started   chan struct{} // where not nil, closed at the first start
}

// run returns when the container will not run again, and says whether it succeeded.
func (r *containerRun) run(ctx context.Context, stop *stopper) bool {
	if known := r.known(); known.state.Terminated != nil && !shouldRestart(r.policy, known.state.Terminated.ExitCode) {
		return known.state.Terminated.ExitCode == 0
	}
	delay := r.node.Backoff
	for {
		begun := time.Now()
		ended := r.once(ctx, stop)
		if ended == nil { // stopped before it could start
			return false
		}
		if ctx.Err() != nil || isClosed(stop.ch) || !shouldRestart(r.policy, ended.ExitCode) {
			r.set(func(c *containerRecord) { c.state = corev1.ContainerState{Terminated: ended} })
			return ended.ExitCode == 0
		}
		if time.Since(begun) > 60*r.node.Backoff { // it ran well for long: its past is forgotten
			delay = r.node.Backoff
		}
		message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			delay, r.container.Name, r.pod.Name, r.pod.Namespace, r.pod.UID)
		r.set(func(c *containerRecord) {
			c.last = corev1.ContainerState{Terminated: ended}
			c.state = waiting("CrashLoopBackOff", message)
		})
		if !sleep(ctx, stop.ch, delay) {
			r.set(func(c *containerRecord) { c.state = corev1.ContainerState{Terminated: ended} })
			return false
		}
		delay = min(2*delay, 30*r.node.Backoff)
		r.set(func(c *containerRecord) { c.restarts++ })
	}
}

func shouldRestart(policy corev1.RestartPolicy, exitCode int32) bool {
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && exitCode != 0
}

// once runs the container one time. It returns nil where it was stopped before the process could be started.
func (r *containerRun) once(ctx context.Context, stop *stopper) *corev1.ContainerStateTerminated {
	var p *process
	for attempt := 0; p == nil; attempt++ {
		var failed *waitError
		var refused *startError
		var err error
		p, err = r.start(ctx)
		switch {
		case err == nil:
		case errors.As(err, &refused):
			now := metav1.Now()
			return &corev1.ContainerStateTerminated{
				ExitCode: 128, Reason: "StartError", Message: refused.Error(), StartedAt: metav1.Unix(0, 0), FinishedAt: now,
				ContainerID: r.id(),
			}
		case errors.As(err, &failed):
			r.set(func(c *containerRecord) { c.state = waiting(failed.reasonOf(attempt), failed.Error()) })
		default:
			r.set(func(c *containerRecord) { c.state = waiting("CreateContainerConfigError", err.Error()) })
		}
		if err != nil && !sleep(ctx, stop.ch, retryInterval) {
			return nil
		}
	}
	startedAt := metav1.Now()
	id := r.id()
	r.set(func(c *containerRecord) {
		c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: startedAt}}
		c.id = id
	})
	if r.started != nil && !isClosed(r.started) {
		close(r.started)
	}
	code := p.wait(ctx, stop)
	ended := &corev1.ContainerStateTerminated{
		ExitCode: code, Reason: "Completed", StartedAt: startedAt, FinishedAt: metav1.Now(), ContainerID: id,
	}
	if code != 0 {
		ended.Reason = "Error"
	}
	ended.Message = r.terminationMessage(code)
	return ended
}

// A waitError keeps a container waiting, with a reason of its own; it is tried again.
type waitError struct {
	reasons []string // the first, then the last for all further attempts
	err     error
}

func (e *waitError) Error() string { return e.err.Error() }
func (e *waitError) Unwrap() error { return e.err }

func (e *waitError) reasonOf(attempt int) string { return e.reasons[min(attempt, len(e.reasons)-1)] }

func (r *containerRun) start(ctx context.Context) (*process, error) {
	c := r.container
	if strings.HasPrefix(c.Image, unpullable) {
		return nil, &waitError{[]string{"ErrImagePull", "ImagePullBackOff"}, fmt.Errorf("image %q cannot be pulled", c.Image)}
	}
	env, err := r.node.environment(ctx, r.pod, c)
	if err != nil {
		return nil, err
	}
	args := env.expandAll(append(append([]string{}, c.Command...), c.Args...))
	if len(c.Command) == 0 {
		return nil, &waitError{[]string{"CreateContainerError"}, fmt.Errorf(
			"container %s has no command: a process node has no images to take an entry point from; set command", c.Name)}
	}
	dir := filepath.Join(r.dir, c.Name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	mounts, err := r.containerMounts(env, dir)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(r.logPath(r.known().restarts), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	return r.node.launch(launchSpec{
		args: args, env: env.list(r.pod.Name), dir: c.WorkingDir, hostname: r.hostname(), mounts: mounts,
		scratch: filepath.Join(dir, "root"), log: log, user: runAs(r.pod, c),
	})
}

func (r *containerRun) hostname() string {
	if r.pod.Spec.Hostname != "" {
		return r.pod.Spec.Hostname
	}
	return r.pod.Name[:min(len(r.pod.Name), 63)]
}

func (r *containerRun) logPath(restarts int32) string {
	return logPath(r.dir, r.container.Name, restarts)
}

func logPath(podDir, container string, restarts int32) string {
	return filepath.Join(podDir, container, fmt.Sprintf("%d.log", restarts))
}

func (r *containerRun) messagePath() string {
	return filepath.Join(r.dir, r.container.Name, "termination-log")
}

// terminationMessage reads what the container left, within the kubelet's limits.
func (r *containerRun) terminationMessage(exitCode int32) string {
	const fromFile, fromLog = 4096, 2048
	text, _ := os.ReadFile(r.messagePath())
	if len(text) == 0 && exitCode != 0 && r.container.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		text, _ = os.ReadFile(r.logPath(r.known().restarts))
		text = text[max(0, len(text)-fromLog):]
	}
	return strings.ToValidUTF8(string(text[:min(len(text), fromFile)]), "\uFFFD")
}

func (r *containerRun) id() string {
	return fmt.Sprintf("process://%s/%s/%d", r.pod.UID, r.container.Name, r.known().restarts)
}

func (r *containerRun) set(f func(*containerRecord)) {
	r.change(func(s *podState) { f(r.record(s)) })
}

func (r *containerRun) known() containerRecord { return r.read(r.record) }

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
