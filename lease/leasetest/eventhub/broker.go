package eventhub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// maxConnections bounds how many peers are served at the same time.
const maxConnections = 4096

// acceptPause keeps a lack of files from becoming a busy loop.
const acceptPause = 10 * time.Millisecond

// Broker is a running broker. Its methods may be called at the same time.
type Broker struct {
	opts   Options
	addr   string
	faults faults

	mu       sync.Mutex
	hubs     map[string]*hub // by name in lower case
	listener net.Listener    // nil while stopped
	conns    map[*conn]struct{}
	closed   bool

	running sync.WaitGroup // the listening goroutine and one for each connection
}

// Start starts a broker without hubs. The context is for the start alone; Close ends the broker.
func Start(ctx context.Context, o Options) (*Broker, error) {
	b := &Broker{opts: o.withDefaults(), hubs: map[string]*hub{}, conns: map[*conn]struct{}{}}
	b.addr = b.opts.Addr
	b.faults.nullRefusals.Store(o.NullAttachRefusals)
	if err := b.Restart(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// Run starts a broker that ends with the test, which fails if it cannot start.
func Run(t TB, o Options) *Broker {
	t.Helper()
	b, err := Start(t.Context(), o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(b.Close)
	return b
}

// Addr is the host and port of the broker. It stays the same.
func (b *Broker) Addr() string { return b.addr }

// ConnectionString is that of the first policy. It names no hub.
func (b *Broker) ConnectionString() string { return b.connectionString(b.opts.Policies[0]) }

// ConnectionStringFor is that of a policy, or empty if there is no such policy.
func (b *Broker) ConnectionStringFor(policy string) string {
	if p := b.policy(policy); p != nil {
		return b.connectionString(*p)
	}
	return ""
}

func (b *Broker) connectionString(p Policy) string {
	s := fmt.Sprintf("Endpoint=sb://%s/;SharedAccessKeyName=%s;SharedAccessKey=%s", b.addr, p.Name, p.Key)
	if b.opts.TLS == nil {
		s += ";UseDevelopmentEmulator=true"
	}
	return s
}

func (b *Broker) policy(name string) *Policy {
	i := slices.IndexFunc(b.opts.Policies, func(p Policy) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &b.opts.Policies[i]
}

// Close ends the broker, and with it all connections. It returns once nothing runs any more.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.Stop()
}

// Stop closes all connections without a word and listens no longer, as if the process had been killed. Hubs and events stay.
func (b *Broker) Stop() {
	b.mu.Lock()
	if b.listener != nil {
		_ = b.listener.Close()
		b.listener = nil
	}
	conns := b.connections()
	b.mu.Unlock()
	for _, c := range conns {
		c.abort()
	}
	b.running.Wait()
}

// Restart stops the broker, if it runs, and has it listen again on the same port.
func (b *Broker) Restart(ctx context.Context) error {
	b.Stop()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", b.addr)
	if err != nil {
		return fmt.Errorf("starting the event hub broker: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.listener != nil {
		_ = l.Close()
		return errors.New("starting the event hub broker: it was closed, or started by somebody else")
	}
	b.addr = l.Addr().String()
	b.listener = l
	b.running.Go(func() { b.accept(l) })
	return nil
}

// accept serves connections until the listener is closed.
func (b *Broker) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause) // of the one connection, or too many open files: the next may do better
			continue
		}
		if b.opts.TLS != nil {
			nc = tls.Server(nc, b.opts.TLS)
		}
		c := newConn(b, nc)
		b.mu.Lock()
		if b.listener != l || len(b.conns) >= maxConnections {
			b.mu.Unlock()
			_ = nc.Close()
			continue
		}
		b.conns[c] = struct{}{}
		b.running.Go(func() {
			c.serve()
			b.mu.Lock()
			delete(b.conns, c)
			b.mu.Unlock()
		})
		b.mu.Unlock()
	}
}

// connections returns those that are open. The caller holds the lock.
func (b *Broker) connections() []*conn {
	conns := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	return conns
}
