package servers

import (
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRedisComesAndGoes(t *testing.T) {
	r := RunRedis(t, RedisOptions{Password: `a "quoted" password`, AppendOnly: true})
	addr := r.Addr()
	if err := r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.Addr() != addr {
		t.Errorf("Addr() = %s after a restart, want %s", r.Addr(), addr)
	}
	r.Kill()
	if err := r.Restart(t.Context()); err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	refused(t, addr)
}

func TestAzuriteComesAndGoes(t *testing.T) {
	a := RunAzurite(t, AzuriteOptions{Blob: true})
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestRedisWithABadConfigurationSaysWhy(t *testing.T) {
	_, err := StartRedis(t.Context(), RedisOptions{Config: []string{"no-such-directive yes"}})
	if err == nil {
		t.Fatal("StartRedis succeeded with a configuration that makes no sense")
	}
	t.Log(err)
}

func refused(t *testing.T, addr string) {
	t.Helper()
	d := net.Dialer{Timeout: time.Second}
	if conn, err := d.DialContext(t.Context(), "tcp", addr); err == nil {
		_ = conn.Close()
		t.Errorf("%s still answers after Stop", addr)
	}
}
