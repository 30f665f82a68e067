package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"k8s.io/klog/v2"
)

// newLogger makes the one log stream of the process. The format is text or json; the level debug, info, warn or error.
func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var options slog.HandlerOptions
	var lowest slog.Level
	if err := lowest.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q is none of debug, info, warn, error", level)
	}
	options.Level = lowest
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &options)), nil
	}
	return nil, fmt.Errorf("log format %q is neither text nor json", format)
}

// adoptKlog sends what client-go logs into logger. klog has one destination a process, so this is called once, before any client
// is made.
func adoptKlog(logger *slog.Logger) {
	klog.SetSlogLogger(slog.New(demoting{logger.With("component", "client-go").Handler()}))
}

// demoting passes everything that is no error as debug: what client-go tells as information (a lock acquired, a cache that waits)
// we tell ourselves where it matters.
type demoting struct{ slog.Handler }

func demoted(level slog.Level) slog.Level {
	if level < slog.LevelError {
		return min(level, slog.LevelDebug)
	}
	return level
}

func (d demoting) Enabled(ctx context.Context, level slog.Level) bool {
	return d.Handler.Enabled(ctx, demoted(level))
}

func (d demoting) Handle(ctx context.Context, record slog.Record) error {
	record.Level = demoted(record.Level)
	return d.Handler.Handle(ctx, record)
}

func (d demoting) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoting{d.Handler.WithAttrs(attrs)}
}

func (d demoting) WithGroup(name string) slog.Handler { return demoting{d.Handler.WithGroup(name)} }
