package speed

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// requestCounter counts the requests of a client.
type requestCounter struct{ made atomic.Int64 }

func (c *requestCounter) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		c.made.Add(1)
		return next.RoundTrip(request)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

// load is what the API server has done so far.
type load struct {
	cpu      time.Duration
	requests int64 // of others than this process
}

func (a *arena) load() load {
	a.Helper()
	text := must(a.client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(a.Context()))(a.B)
	l := load{requests: -a.requests.made.Load()}
	for line := range strings.Lines(string(text)) {
		isCPU := strings.HasPrefix(line, "process_cpu_seconds_total ")
		if !isCPU && !strings.HasPrefix(line, "apiserver_request_total{") {
			continue
		}
		line = strings.TrimSpace(line)
		value := must(strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64))(a.B)
		if isCPU {
			l.cpu = time.Duration(value * float64(time.Second))
		} else {
			l.requests += int64(value)
		}
	}
	return l
}

// countJobs is how many Jobs a namespace has. It costs the API server next to nothing.
func (a *arena) countJobs(namespace string) int {
	a.Helper()
	list := must(a.client.BatchV1().Jobs(namespace).List(a.Context(), metav1.ListOptions{Limit: 1}))(a.B)
	n := len(list.Items)
	if list.RemainingItemCount != nil {
		n += int(*list.RemainingItemCount)
	}
	return n
}

// waitForJobs waits until a namespace has so many Jobs. It asks the more often the fewer are missing.
func (a *arena) waitForJobs(namespace string, want int) {
	a.Helper()
	limit := time.Now().Add(2 * time.Minute)
	for {
		missing := want - a.countJobs(namespace)
		if missing <= 0 {
			return
		}
		if time.Now().After(limit) {
			a.Fatalf("%d of %d Jobs are missing in namespace %s after two minutes", missing, want, namespace)
		}
		time.Sleep(min(max(time.Duration(missing)*100*time.Microsecond, 5*time.Millisecond), 200*time.Millisecond))
	}
}

// deleteJobs empties a namespace of Jobs.
func (a *arena) deleteJobs(namespace string) {
	a.Helper()
	background := metav1.DeletePropagationBackground
	err := a.client.BatchV1().Jobs(namespace).DeleteCollection(a.Context(),
		metav1.DeleteOptions{PropagationPolicy: &background}, metav1.ListOptions{})
	if err != nil {
		a.Fatal(err)
	}
	if n := a.countJobs(namespace); n > 0 {
		a.Fatalf("%d Jobs are left in namespace %s", n, namespace)
	}
}
