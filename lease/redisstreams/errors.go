package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
)

// wrap says what failed and on which stream, and classifies the error for errors.Is. It is the one place that knows how
// Redis words its errors: a server's error begins with a code, which is part of the protocol.
func (s *Source) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	remedy, kind := classify(err)
	switch {
	case kind == nil:
		return fmt.Errorf("%s stream %q: %w", doing, s.stream, err)
	case remedy == "":
		return fmt.Errorf("%s stream %q: %w: %w", doing, s.stream, kind, err)
	}
	return fmt.Errorf("%s stream %q: %w: %w; %s", doing, s.stream, kind, err, remedy)
}

func classify(err error) (remedy string, kind error) {
	for _, c := range []struct {
		prefix string
		kind   error
		remedy string
	}{
		{"NOAUTH", lease.ErrUnauthorized, "the server wants a password in the connection string"},
		{"WRONGPASS", lease.ErrUnauthorized, "correct user and password in the connection string"},
		{"NOPERM", lease.ErrUnauthorized, "give the user the commands of streams and scripts on this key and the poison stream"},
		{"invalid password", lease.ErrUnauthorized, "correct the password in the connection string"},
		{"AUTH", lease.ErrUnauthorized, "the server has no password; leave it out of the connection string"},
		{"Client sent AUTH", lease.ErrUnauthorized, "the server has no password; leave it out of the connection string"},
		{"WRONGTYPE", lease.ErrInvalid, "the key holds something else than a stream; name another key"},
		{"DB index", lease.ErrInvalid, "correct the database number in the connection string"},
		{"invalid DB index", lease.ErrInvalid, "correct the database number in the connection string"},
		{"unknown command", lease.ErrInvalid, "Redis 6.2 or later is needed"},
		{"Unknown Redis command", lease.ErrInvalid, "Redis 6.2 or later is needed"},
		{"MOVED", lease.ErrInvalid, "Redis Cluster is not supported"},
		{"CROSSSLOT", lease.ErrInvalid, "Redis Cluster is not supported"},
		{"max number of clients", lease.ErrThrottled, ""},
	} {
		if redis.HasErrorPrefix(err, c.prefix) { // which leaves "ERR " out of account
			return c.remedy, c.kind
		}
	}
	return "", nil
}

// groupGone reports whether the stream or the group is no longer there.
func groupGone(err error) bool {
	return redis.HasErrorPrefix(err, "NOGROUP") || redis.HasErrorPrefix(err, "UNBLOCKED")
}

// noKey reports whether XINFO found no stream.
func noKey(err error) bool {
	return redis.HasErrorPrefix(err, "no such key")
}

func lost(l *lease.Lease) error {
	return fmt.Errorf("entry %s is no longer held by this lease: %w", l.ID, lease.ErrLost)
}

var quietOnce sync.Once

// quiet sends what go-redis logs for all clients of the process, by default to standard error, to slog at debug: whatever
// matters in it reaches us as an error as well.
func quiet() { quietOnce.Do(func() { redis.SetLogger(debugLogger{}) }) }

type debugLogger struct{}

func (debugLogger) Printf(ctx context.Context, format string, args ...any) {
	if !slog.Default().Enabled(ctx, slog.LevelDebug) {
		return
	}
	slog.DebugContext(ctx, "redis client", "message", fmt.Sprintf(format, args...)) //nolint:sloglint // go-redis has one logger a process
}

// isContext reports whether the error only says that the caller gave up.
func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
