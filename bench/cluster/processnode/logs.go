package processnode

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"k8s.io/client-go/util/cert"
)

// A logServer is the one part of a kubelet's HTTP interface that `kubectl logs` needs.
type logServer struct {
	server *http.Server
	port   int32
}

// serveLogs listens on a free port, which the Node object tells the API server.
func (n *Node) serveLogs() (*logServer, error) {
	certificate, key, err := cert.GenerateSelfSignedCertKey(Address, []net.IP{net.ParseIP(Address)}, nil)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", net.JoinHostPort(Address, "0"), &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.containerLogs)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	n.wg.Go(func() { _ = server.Serve(listener) })
	port := listener.Addr().(*net.TCPAddr).Port
	return &logServer{server, int32(port)}, nil //nolint:gosec // a port has 16 bits
}

func (n *Node) containerLogs(w http.ResponseWriter, r *http.Request) {
	worker, record := n.findContainer(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if worker == nil {
		http.Error(w, "this node has no such container", http.StatusNotFound)
		return
	}
	query := r.URL.Query()
	restarts := worker.read(record).restarts
	if query.Get("previous") == "true" {
		restarts--
	}
	file, err := os.Open(logPath(worker.dir, r.PathValue("container"), restarts))
	if err != nil {
		http.Error(w, "the container has not been started", http.StatusNotFound)
		return
	}
	defer func() { _ = file.Close() }()
	if lines, err := strconv.Atoi(query.Get("tailLines")); err == nil {
		if err := seekLastLines(file, lines); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	for {
		running := worker.read(record).state.Running != nil
		if _, err := io.Copy(w, file); err != nil || !running || query.Get("follow") != "true" {
			return
		}
		_ = http.NewResponseController(w).Flush()
		if !sleep(r.Context(), worker.gone, retryInterval/4) {
			return
		}
	}
}

func (n *Node) findContainer(namespace, pod, container string) (*podWorker, func(*podState) *containerRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, worker := range n.pods {
		if worker.pod.Namespace != namespace || worker.pod.Name != pod {
			continue
		}
		for i := range worker.pod.Spec.InitContainers {
			if worker.pod.Spec.InitContainers[i].Name == container {
				return worker, initRecord(i)
			}
		}
		for i := range worker.pod.Spec.Containers {
			if worker.pod.Spec.Containers[i].Name == container {
				return worker, mainRecord(i)
			}
		}
	}
	return nil, nil
}

func (w *podWorker) read(record func(*podState) *containerRecord) containerRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *record(&w.state)
}

// seekLastLines moves to the beginning of the last lines. Logs of tests are small enough to be read whole.
func seekLastLines(file *os.File, lines int) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	at := len(bytes.TrimSuffix(text, []byte("\n")))
	if lines == 0 {
		at = len(text)
	}
	for ; lines > 0 && at >= 0; lines-- {
		at = bytes.LastIndexByte(text[:at], '\n')
	}
	if lines == 0 && at < len(text) {
		at++
	}
	_, err = file.Seek(int64(min(max(at, 0), len(text))), io.SeekStart)
	return err
}
