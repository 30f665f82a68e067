package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
)

// klog has one destination a process, so these subtests share it one after the other.
func TestKlogArrivesInOurStream(t *testing.T) {
	t.Cleanup(klog.ClearLogger)
	for name, tc := range map[string]struct {
		level string
		log   func()
		want  []map[string]any
	}{
		"an error": {
			level: "info",
			log:   func() { klog.ErrorS(errors.New("connection refused"), "Failed to renew lease", "lease", "a/b") },
			want: []map[string]any{{
				"level": "ERROR", "msg": "Failed to renew lease", "err": "connection refused", "lease": "a/b", "component": "client-go",
			}},
		},
		"an unstructured error": {
			level: "info",
			log:   func() { klog.Errorf("watch of %s ended", "Jobs") },
			want:  []map[string]any{{"level": "ERROR", "msg": "watch of Jobs ended", "component": "client-go"}},
		},
		"information is noise": {
			level: "info",
			log:   func() { klog.Infof("Waiting for caches to sync"); klog.InfoS("Acquired lease") },
		},
		"noise, asked for": {
			level: "debug",
			log: func() {
				klog.Infof("Waiting for caches to sync")
				klog.Background().WithName("reflector").WithValues("type", "Job").Info("Listing")
			},
			want: []map[string]any{
				{"level": "DEBUG", "msg": "Waiting for caches to sync", "component": "client-go"},
				{"level": "DEBUG", "msg": "Listing", "type": "Job", "logger": "reflector", "component": "client-go"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			logger, err := newLogger(&out, "json", tc.level)
			if err != nil {
				t.Fatal(err)
			}
			adoptKlog(logger)
			tc.log()
			klog.Flush()

			var got []map[string]any
			for line := range strings.Lines(out.String()) {
				var record map[string]any
				if err := json.Unmarshal([]byte(line), &record); err != nil {
					t.Fatalf("not JSON: %q: %v", line, err)
				}
				delete(record, "time")
				got = append(got, record)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewLogger(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, err := newLogger(&out, "text", "warn")
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("kept quiet")
	logger.Warn("queue is slow", slog.String("queue", "tasks"))
	if got := out.String(); !strings.HasSuffix(got, "level=WARN msg=\"queue is slow\" queue=tasks\n") || strings.Contains(got, "kept quiet") {
		t.Errorf("the stream reads %q", got)
	}

	for _, bad := range [][2]string{{"xml", "info"}, {"text", "loud"}, {"", "info"}, {"json", ""}} {
		if _, err := newLogger(&out, bad[0], bad[1]); err == nil {
			t.Errorf("format %q and level %q were accepted", bad[0], bad[1])
		}
	}
}
