package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A redisProxy stands before redis-server. It knows nothing of the protocol: it delays and breaks what passes.
type redisProxy struct {
	address  string
	upstream string
	dice     *dice
	listener net.Listener
	mode     atomic.Int32
	closing  chan struct{}
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
}

func startRedisProxy(ctx context.Context, upstream string, dice *dice) (*redisProxy, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for a proxy: %w", err)
	}
	p := &redisProxy{
		address: listener.Addr().String(), upstream: upstream, dice: dice, listener: listener,
		closing: make(chan struct{}), conns: make(map[net.Conn]bool),
	}
	p.wg.Go(p.accept)
	return p, nil
}

func (p *redisProxy) now() disturbance { return disturbance(p.mode.Load()) }

func (p *redisProxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // it was closed
		}
		if p.now() == severed {
			_ = client.Close()
			continue
		}
		p.wg.Go(func() { p.carry(client) })
	}
}

// carry passes everything on between a client and a connection of its own to the server.
func (p *redisProxy) carry(client net.Conn) {
	defer func() { _ = client.Close() }()
	dialer := net.Dialer{Timeout: 5 * time.Second}
	server, err := dialer.DialContext(context.Background(), "tcp", p.upstream)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	if !p.keep(client, server) {
		return
	}
	defer p.forget(client, server)
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client) })
	both.Go(func() { p.pump(client, server) })
	both.Wait()
}

// keep remembers connections, unless the proxy is closing.
func (p *redisProxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closing:
		return false
	default:
	}
	for _, c := range conns {
		p.conns[c] = true
	}
	return true
}

func (p *redisProxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// pump carries one direction until either side ends. A break in the direction of the client loses answers whose effect took place.
func (p *redisProxy) pump(to, from net.Conn) {
	defer func() { _ = to.Close() }()
	defer func() { _ = from.Close() }()
	buffer := make([]byte, 32*1024)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		switch p.now() {
		case delaying:
			select {
			case <-time.After(p.dice.between(20*time.Millisecond, 800*time.Millisecond)):
			case <-p.closing:
				return
			}
		case dropping:
			if p.dice.chance(4) {
				return
			}
		case severed:
			return
		case quiet, refusing:
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (p *redisProxy) disturb(d disturbance) {
	p.mode.Store(int32(d))
	if d == dropping || d == severed {
		p.breakAll()
	}
}

func (p *redisProxy) breakAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *redisProxy) close() error {
	p.mu.Lock()
	close(p.closing)
	p.mu.Unlock()
	err := p.listener.Close()
	p.breakAll()
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
