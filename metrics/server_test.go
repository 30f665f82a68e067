package metrics_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lighterman-dev/lighterman/metrics"
)

// start runs a server on a free port until the test ends, and returns its URL.
func start(t *testing.T, config metrics.ServerConfig) string {
	t.Helper()
	config.Addr, config.Logger = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	server, err := metrics.NewServer(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return "http://" + server.Addr()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	status, body, err := request(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func request(ctx context.Context, url string) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

func TestServer(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	metrics.New(reg).SetLeader("lighterman-0", true)
	var ready atomic.Bool
	url := start(t, metrics.ServerConfig{
		Gatherer: reg,
		Healthy:  []metrics.Check{{Name: "loop", Do: func() error { return nil }}},
		Ready: []metrics.Check{
			{Name: "informers", Do: func() error {
				if !ready.Load() {
					return errors.New("not synced yet")
				}
				return nil
			}},
			{Name: "leader lock", Do: func() error { return nil }},
		},
	})

	if status, body := get(t, url+"/metrics"); status != http.StatusOK || !strings.Contains(body, `lighterman_leader{shard="lighterman-0"} 1`) {
		t.Errorf("/metrics answered %d:\n%s", status, body)
	}
	if status, body := get(t, url+"/healthz"); status != http.StatusOK || body != "[+] loop\nok\n" {
		t.Errorf("/healthz answered %d:\n%s", status, body)
	}
	if status, body := get(t, url+"/readyz"); status != http.StatusServiceUnavailable || body != "[-] informers: not synced yet\n[+] leader lock\n" {
		t.Errorf("/readyz answered %d before being ready:\n%s", status, body)
	}
	ready.Store(true)
	if status, body := get(t, url+"/readyz"); status != http.StatusOK || body != "[+] informers\n[+] leader lock\nok\n" {
		t.Errorf("/readyz answered %d when ready:\n%s", status, body)
	}
	if status, _ := get(t, url+"/other"); status != http.StatusNotFound {
		t.Errorf("/other answered %d", status)
	}
}

func TestServerAddressTaken(t *testing.T) {
	t.Parallel()
	url := start(t, metrics.ServerConfig{Gatherer: prometheus.NewRegistry()})
	_, err := metrics.NewServer(t.Context(), metrics.ServerConfig{
		Addr: strings.TrimPrefix(url, "http://"), Gatherer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("listening where another does: %v", err)
	}
}

// A scrape that is under way when the process ends is answered.
func TestServerShutdown(t *testing.T) {
	t.Parallel()
	arrived, finish := make(chan struct{}), make(chan struct{})
	server, err := metrics.NewServer(t.Context(), metrics.ServerConfig{
		Addr: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
		Ready: []metrics.Check{{Name: "slow", Do: func() error {
			close(arrived)
			<-finish
			return nil
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	answered := make(chan string, 1)
	go func() {
		_, body, err := request(t.Context(), "http://"+server.Addr()+"/readyz")
		if err != nil {
			body = err.Error()
		}
		answered <- body
	}()
	<-arrived
	cancel()
	close(finish)
	if got := <-answered; got != "[+] slow\nok\n" {
		t.Errorf("the request under way was answered %q", got)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Run did not return")
	}
}
