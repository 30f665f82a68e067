package processnode

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A podWorker takes one pod from its first sight to its removal.
type podWorker struct {
	node  *Node
	pod   *corev1.Pod // as first seen; its spec does not change
	dir   string
	inbox chan *corev1.Pod // holds the newest version only
	gone  chan struct{}    // closed when the pod's object is gone
	dirty chan struct{}    // holds a token when the status has changed since the last report

	generation atomic.Int64 // newest seen

	volumes map[string]string // folders by the volume's name; written before the first container starts

	mu    sync.Mutex
	state podState // guarded by mu
}

func newPodWorker(n *Node, pod *corev1.Pod) *podWorker {
	w := &podWorker{
		node: n, pod: pod, dir: n.podDir(pod),
		inbox: make(chan *corev1.Pod, 1), gone: make(chan struct{}), dirty: make(chan struct{}, 1),
		state: newPodState(pod),
	}
	w.update(pod)
	return w
}

// update leaves the newest version in the inbox; the informer's goroutine is the only caller.
func (w *podWorker) update(pod *corev1.Pod) {
	w.generation.Store(pod.Generation)
	select {
	case <-w.inbox:
	default:
	}
	w.inbox <- pod
}

// A stopper asks containers to end within a grace period.
type stopper struct {
	once  sync.Once
	ch    chan struct{}
	grace time.Duration // written before ch is closed, read after
}

func newStopper() *stopper { return &stopper{ch: make(chan struct{})} }

func (s *stopper) stop(grace time.Duration) {
	s.once.Do(func() {
		s.grace = grace
		close(s.ch)
	})
}

// run ends when the pod's object is gone or the node stops.
func (w *podWorker) run(ctx context.Context) {
	deleting := false
	if !terminal(w.pod.Status.Phase) { // or else it ended before this node was started
		deleting = w.runContainers(ctx)
	}
	w.cleanUp()
	for !deleting {
		select {
		case <-ctx.Done():
			return
		case <-w.gone:
			_ = os.RemoveAll(w.dir)
			return
		case pod := <-w.inbox:
			deleting = pod.DeletionTimestamp != nil
		}
	}
	w.deleteObject(ctx)
	select {
	case <-ctx.Done():
	case <-w.gone:
		_ = os.RemoveAll(w.dir)
	}
}

// runContainers runs the pod until all containers have ended for good and this is reported. It says whether the pod
// is to be deleted.
func (w *podWorker) runContainers(ctx context.Context) (deleting bool) {
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	stop, ended, last := newStopper(), make(chan struct{}), make(chan struct{})
	reported := make(chan struct{})
	go func() {
		defer close(ended)
		w.runAll(ctx, stop)
	}()
	go func() {
		defer close(reported)
		w.report(ctx, last)
	}()
	deadline := w.deadline()
	for {
		select {
		case <-ended:
			close(last)
			ended = nil
		case <-reported:
			if ended != nil { // the pod's object is gone, or the node stops
				kill()
				<-ended
			}
			return deleting
		case <-w.gone:
			kill()
			<-reported
			if ended != nil {
				<-ended
			}
			return false
		case <-deadline:
			w.change(func(s *podState) {
				s.reason, s.message = "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
			})
			stop.stop(gracePeriod(w.pod))
		case pod := <-w.inbox:
			if pod.DeletionTimestamp != nil {
				deleting = true
				w.change(func(s *podState) { s.deleting = true })
				stop.stop(gracePeriod(pod))
			}
		}
	}
}

func (w *podWorker) deadline() <-chan time.Time {
	if seconds := w.pod.Spec.ActiveDeadlineSeconds; seconds != nil {
		return time.After(time.Duration(*seconds) * time.Second)
	}
	return nil
}

// gracePeriod is what a deletion asks for, or else the pod's own.
func gracePeriod(pod *corev1.Pod) time.Duration {
	for _, seconds := range []*int64{pod.DeletionGracePeriodSeconds, pod.Spec.TerminationGracePeriodSeconds} {
		if seconds != nil {
			return time.Duration(*seconds) * time.Second
		}
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// runAll runs volumes, init containers in their order, then all containers at once, then ends the sidecars.
func (w *podWorker) runAll(ctx context.Context, stop *stopper) {
	if !w.prepareVolumes(ctx, stop) {
		return
	}
	sidecarStop := newStopper()
	var sidecars, containers sync.WaitGroup
	defer sidecars.Wait()
	defer func() { sidecarStop.stop(gracePeriod(w.pod)) }()

	for i := range w.pod.Spec.InitContainers {
		c := &w.pod.Spec.InitContainers[i]
		if isSidecar(c) {
			started := make(chan struct{})
			r := containerRun{podWorker: w, container: c, record: initRecord(i), policy: corev1.RestartPolicyAlways, started: started}
			sidecars.Go(func() { r.run(ctx, sidecarStop) })
			select {
			case <-started:
			case <-ctx.Done():
				return
			case <-stop.ch:
				return
			}
			continue
		}
		policy := w.pod.Spec.RestartPolicy
		if policy == corev1.RestartPolicyAlways {
			policy = corev1.RestartPolicyOnFailure
		}
		r := containerRun{podWorker: w, container: c, record: initRecord(i), policy: policy}
		if !r.run(ctx, stop) {
			return
		}
	}
	w.change(func(s *podState) { s.initialized = true })
	for i := range w.pod.Spec.Containers {
		r := containerRun{
			podWorker: w, container: &w.pod.Spec.Containers[i], record: mainRecord(i), policy: w.pod.Spec.RestartPolicy,
		}
		containers.Go(func() { r.run(ctx, stop) })
	}
	containers.Wait()
}

func (w *podWorker) prepareVolumes(ctx context.Context, stop *stopper) bool {
	for {
		volumes, err := w.node.makeVolumes(ctx, w.pod, volumesDir(w.dir))
		if err == nil {
			w.volumes = volumes
			return true
		}
		w.change(func(s *podState) { s.eachWaiting("ContainerCreating", err.Error()) })
		if !sleep(ctx, stop.ch, retryInterval) {
			return false
		}
	}
}

// change changes the state and has it reported.
func (w *podWorker) change(f func(*podState)) {
	w.mu.Lock()
	f(&w.state)
	w.mu.Unlock()
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// cleanUp removes what containers used; logs stay as long as the pod's object.
func (w *podWorker) cleanUp() {
	_ = os.RemoveAll(volumesDir(w.dir))
}

// deleteObject is the last thing that a node does for a deleted pod.
func (w *podWorker) deleteObject(ctx context.Context) {
	options := metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(w.pod.UID))}
	for {
		err := w.node.Client.CoreV1().Pods(w.pod.Namespace).Delete(ctx, w.pod.Name, options)
		if err == nil || isNotFound(err) || isConflict(err) {
			return
		}
		if !sleep(ctx, w.gone, retryInterval) {
			return
		}
	}
}
