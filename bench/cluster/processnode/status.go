package processnode

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A podState is all that decides a pod's status.
type podState struct {
	inits, mains []containerRecord
	initialized  bool // all init containers are done
	deleting     bool
	reason       string // of the pod's end, where it is not the containers' doing
	message      string
	startTime    metav1.Time
}

type containerRecord struct {
	state    corev1.ContainerState
	last     corev1.ContainerState
	restarts int32
	id       string
}

func initRecord(i int) func(*podState) *containerRecord {
	return func(s *podState) *containerRecord { return &s.inits[i] }
}

func mainRecord(i int) func(*podState) *containerRecord {
	return func(s *podState) *containerRecord { return &s.mains[i] }
}

// newPodState begins with what an earlier run of this node has reported. Containers that ran then are lost.
func newPodState(pod *corev1.Pod) podState {
	s := podState{startTime: metav1.Now()}
	if pod.Status.StartTime != nil {
		s.startTime = *pod.Status.StartTime
	}
	waitFor := "ContainerCreating"
	if len(pod.Spec.InitContainers) > 0 {
		waitFor = "PodInitializing"
	}
	s.inits = recordsOf(pod.Spec.InitContainers, pod.Status.InitContainerStatuses, "ContainerCreating")
	s.mains = recordsOf(pod.Spec.Containers, pod.Status.ContainerStatuses, waitFor)
	return s
}

func recordsOf(containers []corev1.Container, known []corev1.ContainerStatus, reason string) []containerRecord {
	records := make([]containerRecord, len(containers))
	for i, c := range containers {
		records[i].state = waiting(reason, "")
		for _, status := range known {
			if status.Name != c.Name {
				continue
			}
			records[i] = containerRecord{status.State, status.LastTerminationState, status.RestartCount, status.ContainerID}
			if running := status.State.Running; running != nil {
				records[i].state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: 137, Reason: "ContainerStatusUnknown", Message: "The node was restarted and has lost the container",
					StartedAt: running.StartedAt, FinishedAt: metav1.Now(), ContainerID: status.ContainerID,
				}}
				records[i].restarts++
			}
		}
	}
	return records
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// eachWaiting gives a reason to all containers that have not been started.
func (s *podState) eachWaiting(reason, message string) {
	for _, records := range [][]containerRecord{s.inits, s.mains} {
		for i := range records {
			if records[i].state.Waiting != nil {
				records[i].state = waiting(reason, message)
			}
		}
	}
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func terminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// compose makes the status to report. ended says that no container runs or will run.
func compose(pod *corev1.Pod, s *podState, ended bool) corev1.PodStatus {
	status := corev1.PodStatus{
		Phase:     phaseOf(pod, s, ended),
		Reason:    s.reason,
		Message:   s.message,
		HostIP:    Address,
		HostIPs:   []corev1.HostIP{{IP: Address}},
		PodIP:     Address,
		PodIPs:    []corev1.PodIP{{IP: Address}},
		StartTime: &s.startTime,
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		ready := s.inits[i].state.Terminated != nil && s.inits[i].state.Terminated.ExitCode == 0
		if isSidecar(c) {
			ready = s.inits[i].state.Running != nil
		}
		status.InitContainerStatuses = append(status.InitContainerStatuses, containerStatus(c, &s.inits[i], ready))
	}
	allReady := true
	for i := range pod.Spec.Containers {
		ready := s.mains[i].state.Running != nil
		allReady = allReady && ready
		status.ContainerStatuses = append(status.ContainerStatuses, containerStatus(&pod.Spec.Containers[i], &s.mains[i], ready))
	}
	status.Conditions = conditions(status.Phase, s, allReady)
	return status
}

func containerStatus(c *corev1.Container, r *containerRecord, ready bool) corev1.ContainerStatus {
	started := r.state.Running != nil
	return corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, ImageID: "", ContainerID: r.id, State: r.state, LastTerminationState: r.last,
		RestartCount: r.restarts, Ready: ready, Started: &started,
	}
}

func conditions(phase corev1.PodPhase, s *podState, ready bool) []corev1.PodCondition {
	condition := func(kind corev1.PodConditionType, holds bool, reason string) corev1.PodCondition {
		if holds {
			return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue}
		}
		return corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason}
	}
	unready := "ContainersNotReady"
	switch phase {
	case corev1.PodSucceeded:
		unready = "PodCompleted"
	case corev1.PodFailed:
		unready = "PodFailed"
	}
	return []corev1.PodCondition{
		condition(corev1.PodReadyToStartContainers, !terminal(phase), ""),
		condition(corev1.PodInitialized, s.initialized || len(s.inits) == 0, "ContainersNotInitialized"),
		condition(corev1.PodReady, ready, unready),
		condition(corev1.ContainersReady, ready, unready),
		condition(corev1.PodScheduled, true, ""),
	}
}

// phaseOf follows the kubelet's rules for a pod's phase.
func phaseOf(pod *corev1.Pod, s *podState, ended bool) corev1.PodPhase {
	if ended && (s.reason != "" || s.deleting) {
		if s.reason == "" && allSucceeded(s.mains) {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	}
	for i := range s.inits {
		r := &s.inits[i]
		if r.state.Terminated != nil && r.state.Terminated.ExitCode != 0 && pod.Spec.RestartPolicy == corev1.RestartPolicyNever &&
			!isSidecar(&pod.Spec.InitContainers[i]) {
			return corev1.PodFailed
		}
	}
	if !s.initialized {
		return corev1.PodPending
	}
	unstarted, running := 0, 0
	for i := range s.mains {
		switch r := &s.mains[i]; {
		case r.state.Running != nil:
			running++
		case r.state.Waiting != nil && r.last.Terminated == nil:
			unstarted++
		}
	}
	switch {
	case unstarted > 0:
		return corev1.PodPending
	case running > 0 || !ended:
		return corev1.PodRunning
	case allSucceeded(s.mains):
		return corev1.PodSucceeded
	default:
		return corev1.PodFailed
	}
}

func allSucceeded(records []containerRecord) bool {
	for i := range records {
		if t := records[i].state.Terminated; t == nil || t.ExitCode != 0 {
			return false
		}
	}
	return true
}
