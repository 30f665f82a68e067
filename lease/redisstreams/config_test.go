package redisstreams

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
)

func TestNewRefuses(t *testing.T) {
	const secret = "s3cr3t-of-nothing"
	for name, test := range map[string]struct {
		config Config
		says   string
	}{
		"no stream":             {Config{ConnectionString: "redis://h:1"}, "stream is empty"},
		"poison is the stream":  {Config{ConnectionString: "redis://h:1", Stream: "s", PoisonStream: "s"}, "stream itself"},
		"reserved consumer":     {Config{ConnectionString: "redis://h:1", Stream: "s", Consumer: returnedConsumer}, "reserved"},
		"short lease":           {Config{ConnectionString: "redis://h:1", Stream: "s", LeaseDuration: time.Millisecond}, "1ms"},
		"empty":                 {Config{Stream: "s"}, "is empty"},
		"no scheme":             {Config{ConnectionString: secret + "@h:6379", Stream: "s"}, "not a Redis URL"},
		"other scheme":          {Config{ConnectionString: "https://:" + secret + "@h:6379", Stream: "s"}, "not a Redis URL"},
		"StackExchange.Redis":   {Config{ConnectionString: "h:6380,password=" + secret + ",ssl=True", Stream: "s"}, "StackExchange.Redis"},
		"slash in the password": {Config{ConnectionString: "redis://:a/" + secret + "@h:6379", Stream: "s"}, "percent-encoded"},
		"percent in it":         {Config{ConnectionString: "redis://:%zz" + secret + "@h:6379", Stream: "s"}, "percent-encoded"},
		"question mark in it":   {Config{ConnectionString: "redis://:a?" + secret + "@h:6379", Stream: "s"}, "percent-encoded"},
		"no host":               {Config{ConnectionString: "redis://:" + secret + "@/0", Stream: "s"}, "no host"},
		"port":                  {Config{ConnectionString: "redis://:" + secret + "@h:99999/0", Stream: "s"}, "port"},
		"database":              {Config{ConnectionString: "redis://:" + secret + "@h:6379/tasks", Stream: "s"}, "database"},
		"parameter":             {Config{ConnectionString: "redis://:" + secret + "@h:6379/0?colour=" + secret, Stream: "s"}, "parameter"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(test.config)
			if !errors.Is(err, lease.ErrInvalid) {
				t.Fatalf("New: %v, want lease.ErrInvalid", err)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("New: %v; want it to speak of %q", err, test.says)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("New tells the password: %v", err)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	for name, test := range map[string]struct {
		config Config
		want   string
	}{
		"defaults": {
			Config{ConnectionString: "redis://h", Stream: "tasks"},
			"redis-streams://h:6379/0/tasks?group=lighterman",
		},
		"credentials and TLS do not count": {
			Config{ConnectionString: "rediss://user:pw@H:6379/0?pool_size=3", Stream: "tasks"},
			"redis-streams://h:6379/0/tasks?group=lighterman",
		},
		"everything": {
			Config{ConnectionString: "redis://[::1]:7000/4", Stream: "a/b c?", Group: "g&h"},
			"redis-streams://[::1]:7000/4/a%2Fb%20c%3F?group=g%26h",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := newSource(t, test.config).Identity(); got != test.want {
				t.Errorf("Identity() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestClassification(t *testing.T) {
	s := newSource(t, Config{ConnectionString: "redis://h", Stream: "tasks"})
	for text, want := range map[string]string{
		"NOAUTH Authentication required.":                                              "unauthorized",
		"WRONGPASS invalid username-password pair or user is disabled.":                "unauthorized",
		"NOPERM this user has no permissions to run the 'xreadgroup' command":          "unauthorized",
		"ERR AUTH <password> called without any password configured":                   "unauthorized",
		"WRONGTYPE Operation against a key holding the wrong kind of value":            "invalid",
		"ERR DB index is out of range":                                                 "invalid",
		"ERR unknown command `xautoclaim`, with args beginning with: ":                 "invalid",
		"MOVED 3999 127.0.0.1:6381":                                                    "invalid",
		"ERR max number of clients reached":                                            "throttled",
		"LOADING Redis is loading the dataset in memory":                               "other",
		"BUSY Redis is busy running a script":                                          "other",
		"READONLY You can't write against a read only replica.":                        "other",
		"TRYAGAIN Multiple keys request during rehashing of slot":                      "other",
		"OOM command not allowed when used memory > 'maxmemory'.":                      "other",
		"MISCONF Redis is configured to save RDB snapshots, but it is unable to do so": "other",
	} {
		err := s.wrap("testing", serverError(text))
		if got := lease.Class(err); got != want {
			t.Errorf("Class(%v) = %q, want %q", err, got, want)
		}
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v does not say what the server said", err)
		}
	}
}

func TestFindGroup(t *testing.T) {
	// As Redis 6.2 answers in protocol 2: no lag, which must not pass for zero.
	old := []any{[]any{"name", "g", "consumers", int64(1), "pending", int64(3), "last-delivered-id", "5-1"}}
	if got, found := findGroup(old, "g"); !found || got != (groupInfo{pending: 3, lag: -1, lastID: "5-1"}) {
		t.Errorf("findGroup = %+v, %t", got, found)
	}
	// As Redis 7 in protocol 3, with a lag that it does not know.
	unknown := []any{map[any]any{"name": "g", "pending": int64(3), "last-delivered-id": "5-1", "entries-read": int64(4), "lag": nil}}
	if got, found := findGroup(unknown, "g"); !found || got.lag != -1 {
		t.Errorf("findGroup = %+v, %t; want an unknown lag", got, found)
	}
	known := []any{
		map[any]any{"name": "other", "pending": int64(9)},
		map[any]any{"name": "g", "pending": int64(3), "last-delivered-id": "5-1", "entries-read": int64(4), "lag": int64(7)},
	}
	if got, found := findGroup(known, "g"); !found || got != (groupInfo{pending: 3, lag: 7, lastID: "5-1"}) {
		t.Errorf("findGroup = %+v, %t", got, found)
	}
	if _, found := findGroup(known, "missing"); found {
		t.Error("findGroup found a group that is not there")
	}
}

func TestCompareIDs(t *testing.T) {
	ordered := []string{"0-1", "9-2", "10-0", "10-2", "10-10", "1700000000000-0"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := compareIDs(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compareIDs(%s, %s) = %d", a, b, got)
			}
		}
	}
}

func FuzzConnectionString(f *testing.F) {
	f.Add("redis://user:password@localhost:6379/3?dial_timeout=3")
	f.Add("rediss://h")
	f.Add("h:6380,password=x,ssl=True")
	f.Fuzz(func(t *testing.T, s string) {
		opts, err := parseConnectionString(s)
		if err != nil {
			if !errors.Is(err, lease.ErrInvalid) {
				t.Errorf("%v is not lease.ErrInvalid", err)
			}
			return
		}
		id := identity(opts, "tasks", "g")
		u, err := url.Parse(id)
		if err != nil || u.Scheme != "redis-streams" || u.User != nil {
			t.Errorf("Identity() = %q: %v", id, err)
		}
		if again, err := redis.ParseURL(strings.TrimSpace(s)); err != nil || identity(again, "tasks", "g") != id {
			t.Errorf("Identity() is not stable: %q", id)
		}
	})
}
