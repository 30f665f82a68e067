package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// RedisOptions say how a redis-server runs. The zero value is a server without a password that forgets everything
// when it stops.
type RedisOptions struct {
	// Dir is the data folder. Empty: a temporary one, removed by Close.
	Dir string
	// Password that clients must give. Empty: none.
	Password string
	// AppendOnly writes each change to disk before it is answered, so that nothing is lost over Stop, Kill and
	// Restart.
	AppendOnly bool
	// Config holds further lines of redis.conf.
	Config []string
}

// Redis is a running redis-server. Its methods are not for concurrent use.
type Redis struct {
	opts    RedisOptions
	path    string
	port    int
	cleanup func()
	process *process
}

// StartRedis starts the redis-server found in PATH and waits until it answers.
func StartRedis(ctx context.Context, opts RedisOptions) (*Redis, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("redis-server is not installed: run `make deps`, or install the package redis-server")
	}
	r := &Redis{opts: opts, path: path}
	if r.opts.Dir, r.cleanup, err = workFolder(opts.Dir, "lighterman-redis-"); err != nil {
		return nil, err
	}
	err = onFreePorts(ctx, 1, func(ports []int) error {
		r.port = ports[0]
		return r.Restart(ctx)
	})
	if err != nil {
		r.cleanup()
		return nil, err
	}
	return r, nil
}

// RunRedis starts a redis-server that ends with the test, which fails if there is none.
func RunRedis(t TB, opts RedisOptions) *Redis {
	t.Helper()
	r, err := StartRedis(t.Context(), opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(r.Close)
	return r
}

// Addr is the server's host:port.
func (r *Redis) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// URL is the connection string of the server, password included.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", Host: r.Addr(), Path: "/0"}
	if r.opts.Password != "" {
		u.User = url.UserPassword("", r.opts.Password)
	}
	return u.String()
}

// Stop ends the server in good order.
func (r *Redis) Stop() error { return r.process.stop() }

// Kill ends the server without a chance to save anything.
func (r *Redis) Kill() { r.process.kill() }

// Restart stops the server, if it runs, and starts it again on the same port and data.
func (r *Redis) Restart(ctx context.Context) error {
	if err := r.process.stop(); err != nil {
		return err
	}
	conf := []string{
		"bind 127.0.0.1",
		"port " + strconv.Itoa(r.port),
		"dir " + strconv.Quote(r.opts.Dir),
		`save ""`,
		"daemonize no",
	}
	if r.opts.AppendOnly {
		conf = append(conf, "appendonly yes", "appendfsync always")
	}
	if r.opts.Password != "" {
		conf = append(conf, "requirepass "+strconv.Quote(r.opts.Password))
	}
	conf = append(conf, r.opts.Config...)
	// By standard input, so that the password does not show up in the list of processes.
	stdin := strings.NewReader(strings.Join(conf, "\n") + "\n")
	p, err := launch(ctx, "redis-server", r.opts.Dir, stdin, r.ping, r.path, "-")
	if err != nil {
		return err
	}
	r.process = p
	return nil
}

// Close stops the server and removes its temporary folder.
func (r *Redis) Close() {
	_ = r.process.stop()
	r.cleanup()
}

// ping asks the server whether it has loaded its data, in the plain protocol, since this package needs no client.
func (r *Redis) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", r.Addr())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	in := bufio.NewReader(conn)
	commands := [][]string{{"PING"}}
	if r.opts.Password != "" {
		commands = [][]string{{"AUTH", r.opts.Password}, {"PING"}}
	}
	for _, command := range commands {
		var out strings.Builder
		fmt.Fprintf(&out, "*%d\r\n", len(command))
		for _, word := range command {
			fmt.Fprintf(&out, "$%d\r\n%s\r\n", len(word), word)
		}
		if _, err := conn.Write([]byte(out.String())); err != nil {
			return err
		}
		answer, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(answer, "+") {
			return fmt.Errorf("it answers %q", strings.TrimSpace(answer))
		}
	}
	return nil
}
