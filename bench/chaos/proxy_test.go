package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// behindProxy is a server that counts requests, and a client that goes through a proxy.
func behindProxy(t *testing.T) (p *httpProxy, requests *atomic.Int64, get func(method string) (int, error)) {
	t.Helper()
	requests = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	t.Cleanup(server.Close)
	upstream, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	p, err = startHTTPProxy(t.Context(), upstream, nil, nil, newDice(1, "test"), refuseAsAzure, func(*http.Response) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	t.Cleanup(client.CloseIdleConnections)
	return p, requests, func(method string) (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.address, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := client.Do(request)
		if err != nil {
			return 0, err
		}
		defer func() { _ = reply.Body.Close() }()
		if reply.StatusCode == http.StatusServiceUnavailable && reply.Header.Get("Retry-After") == "" {
			t.Error("a 503 without Retry-After")
		}
		return reply.StatusCode, nil
	}
}

func TestHTTPProxy(t *testing.T) {
	p, requests, get := behindProxy(t)
	if status, err := get(http.MethodPost); status != http.StatusOK || requests.Load() != 1 {
		t.Fatalf("an undisturbed request: %d, %v, %d arrived", status, err, requests.Load())
	}

	p.disturb(refusing)
	refused := 0
	for range 40 {
		status, err := get(http.MethodPost)
		if err != nil {
			t.Fatalf("a refused request: %v", err)
		}
		if status == http.StatusServiceUnavailable {
			refused++
		}
	}
	if arrived := int(requests.Load()) - 1; refused == 0 || arrived != 40-refused {
		t.Errorf("of 40 requests %d were refused and %d arrived", refused, arrived)
	}

	p.disturb(dropping)
	requests.Store(0)
	answered := 0
	for range 100 {
		// The client repeats what is safe to repeat; a POST is not.
		if _, err := get(http.MethodPost); err == nil {
			answered++
		}
	}
	if arrived := int(requests.Load()); arrived == 100 || answered >= arrived {
		t.Errorf("of 100 requests %d arrived and %d were answered; some must be lost, and some answers", arrived, answered)
	}

	p.disturb(severed)
	requests.Store(0)
	if _, err := get(http.MethodPost); err == nil || requests.Load() != 0 {
		t.Errorf("a severed request: %v, %d arrived", err, requests.Load())
	}

	p.disturb(quiet)
	if status, err := get(http.MethodPost); status != http.StatusOK {
		t.Errorf("a request after all: %d, %v", status, err)
	}
}

// echo is a server that sends back what it is sent.
func echo(t *testing.T) string {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the other end is closed
			}()
		}
	}()
	return listener.Addr().String()
}

func TestRedisProxy(t *testing.T) {
	p, err := startRedisProxy(t.Context(), echo(t), newDice(1, "test"))
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		var dialer net.Dialer
		c, err := dialer.DialContext(context.Background(), "tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	say := func(c net.Conn) error {
		if _, err := io.WriteString(c, "PING\r\n"); err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && strings.TrimSpace(line) != "PING" {
			t.Errorf("PING came back as %q", line)
		}
		return err
	}
	before := dial()
	if err := say(before); err != nil {
		t.Fatalf("an undisturbed connection: %v", err)
	}
	p.disturb(delaying)
	began := time.Now()
	if err := say(before); err != nil || time.Since(began) < 40*time.Millisecond {
		t.Errorf("a delayed connection: %v after %v", err, time.Since(began))
	}
	p.disturb(dropping)
	if err := say(before); err == nil {
		t.Error("a connection outlived the beginning of drops")
	}
	p.disturb(severed)
	if err := say(dial()); err == nil {
		t.Error("a severed connection answers")
	}
	p.disturb(quiet)
	if err := say(dial()); err != nil {
		t.Errorf("a connection after all: %v", err)
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if err := say(before); err == nil {
		t.Error("a connection outlived the proxy")
	}
}
