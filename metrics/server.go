package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is one condition of being healthy or ready. Do is called on every request, concurrently, and must be quick.
type Check struct {
	Name string
	Do   func() error
}

// ServerConfig is what a Server serves.
type ServerConfig struct {
	// Addr is where to listen, as host:port. Port 0 picks a free one; see Server.Addr.
	Addr     string
	Gatherer prometheus.Gatherer
	// Healthy are the checks of /healthz: one that fails means that only a restart helps.
	Healthy []Check
	// Ready are the checks of /readyz: one that fails means that there is something to wait for.
	Ready  []Check
	Logger *slog.Logger
}

// Server tells metrics (/metrics) and health (/healthz, /readyz) over HTTP.
type Server struct {
	listener net.Listener
	server   *http.Server
}

// shutdownTimeout is how long a scrape may take to end when the process does. It is short, as messages wait for another
// dispatcher meanwhile.
const shutdownTimeout = 2 * time.Second

// NewServer listens already, so that an address that is taken is known before anything else begins. Nothing is answered until
// Run, which also closes the listener.
func NewServer(ctx context.Context, config ServerConfig) (*Server, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", config.Addr)
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(config.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(config.Logger.Handler(), slog.LevelError),
		// One bad collector should not hide all others.
		ErrorHandling:     promhttp.ContinueOnError,
		EnableOpenMetrics: true,
	}))
	mux.Handle("GET /healthz", checks(config.Healthy))
	mux.Handle("GET /readyz", checks(config.Ready))
	return &Server{listener: listener, server: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(config.Logger.Handler(), slog.LevelWarn),
	}}, nil
}

// Addr is the address that the server listens on, with the port it was given.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run answers requests until ctx ends, lets those under way finish, and returns nil then.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving metrics: %w", err)
	case <-ctx.Done():
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := s.server.Shutdown(shutdown)
	if err != nil {
		// A client that does not finish must not hold up the process.
		err = s.server.Close()
	}
	if serving := <-served; !errors.Is(serving, http.ErrServerClosed) {
		err = errors.Join(err, serving)
	}
	if err != nil {
		return fmt.Errorf("closing the metrics server: %w", err)
	}
	return nil
}

// checks answers 200 if all are passed and 503 otherwise, with a line for each.
func checks(all []Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var body strings.Builder
		status := http.StatusOK
		for _, check := range all {
			if err := check.Do(); err != nil {
				status = http.StatusServiceUnavailable
				fmt.Fprintf(&body, "[-] %s: %v\n", check.Name, err)
				continue
			}
			fmt.Fprintf(&body, "[+] %s\n", check.Name)
		}
		if status == http.StatusOK {
			body.WriteString("ok\n")
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body.String())) // The client is gone: nobody is left to be told.
	})
}
