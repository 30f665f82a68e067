package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// A disturbance is what a proxy does to what passes.
type disturbance int32

const (
	quiet    disturbance = iota
	delaying             // each request waits for up to a second and a half
	dropping             // connections break: now, before some requests and after the effect of others
	refusing             // most requests are answered 503, with Retry-After
	severed              // nothing gets through
)

// A disturbable proxy stands between lighterman and a server.
type disturbable interface {
	disturb(disturbance)
	close() error
}

// An httpProxy stands before an HTTP server, with or without TLS.
type httpProxy struct {
	address string
	refuse  func(http.ResponseWriter) // answers 503 as the server would

	mode   atomic.Int32
	dice   *dice
	server *http.Server
	out    *http.Transport
	served chan error

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
}

type connKey struct{}

// errDropped ends a request whose effect took place and whose answer must not arrive.
var errDropped = errors.New("dropped")

// startHTTPProxy listens on a free port. With a certificate it serves TLS and HTTP/2, and trusts what the client configuration of the
// server says; seen is told of each answer before it is passed on.
func startHTTPProxy(ctx context.Context, upstream *url.URL, serve, dial *tls.Config, dice *dice,
	refuse func(http.ResponseWriter), seen func(*http.Response) error,
) (*httpProxy, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for a proxy: %w", err)
	}
	p := &httpProxy{
		address: listener.Addr().String(), refuse: refuse, dice: dice,
		out:    &http.Transport{TLSClientConfig: dial, ForceAttemptHTTP2: dial != nil, MaxIdleConnsPerHost: 256, DisableCompression: true},
		served: make(chan error, 1), conns: make(map[net.Conn]bool),
	}
	reverse := &httputil.ReverseProxy{
		Transport:     p.out,
		FlushInterval: -1, // watches must not wait
		ErrorLog:      log.New(io.Discard, "", 0),
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(upstream) },
		ModifyResponse: func(r *http.Response) error {
			if err := seen(r); err != nil {
				return err
			}
			if p.now() == severed || p.now() == dropping && r.Request.Method != http.MethodGet && p.dice.chance(12) {
				return errDropped
			}
			return nil
		},
		// Where the server does not answer, the client must see no answer either. A client that gave a request up has not broken its
		// connection, which others use.
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, _ error) {
			if r.Context().Err() != nil {
				panic(http.ErrAbortHandler)
			}
			drop(r)
		},
	}
	p.server = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.handle(w, r, reverse) }),
		ReadHeaderTimeout: time.Minute,
		TLSConfig:         serve,
		ErrorLog:          log.New(io.Discard, "", 0),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState:         p.track,
	}
	go func() {
		if serve != nil {
			p.served <- p.server.ServeTLS(listener, "", "")
		} else {
			p.served <- p.server.Serve(listener)
		}
	}()
	return p, nil
}

func (p *httpProxy) now() disturbance { return disturbance(p.mode.Load()) }

func (p *httpProxy) handle(w http.ResponseWriter, r *http.Request, reverse http.Handler) {
	switch p.now() {
	case quiet:
	case delaying:
		select {
		case <-time.After(p.dice.between(50*time.Millisecond, 1500*time.Millisecond)):
		case <-r.Context().Done():
		}
	case dropping:
		if p.dice.chance(8) {
			drop(r)
		}
	case refusing:
		if p.dice.chance(75) {
			w.Header().Set("Retry-After", "1")
			p.refuse(w)
			return
		}
	case severed:
		drop(r)
	}
	reverse.ServeHTTP(w, r)
}

// drop breaks the connection that a request came by, and with it all others on it.
func drop(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		_ = c.Close()
	}
	panic(http.ErrAbortHandler)
}

func (p *httpProxy) track(c net.Conn, state http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch state {
	case http.StateNew:
		if p.now() == severed {
			_ = c.Close()
			return
		}
		p.conns[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(p.conns, c)
	case http.StateActive, http.StateIdle:
	}
}

func (p *httpProxy) disturb(d disturbance) {
	p.mode.Store(int32(d))
	if d == dropping || d == severed {
		p.mu.Lock()
		defer p.mu.Unlock()
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

func (p *httpProxy) close() error {
	err := p.server.Close()
	if served := <-p.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	p.out.CloseIdleConnections()
	return err
}
