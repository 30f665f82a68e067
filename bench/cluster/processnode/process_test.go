package processnode

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/lighterman-dev/lighterman/bench/cluster/build"
	"github.com/lighterman-dev/lighterman/bench/cluster/sandbox/spec"
)

// BenchmarkContainer measures from the start of a process to its reported end: what namespaces and mounts cost.
func BenchmarkContainer(b *testing.B) {
	sandbox, err := build.Sandbox(b.Context(), b.Output())
	if err != nil {
		b.Fatal(err)
	}
	for name, mounts := range map[string][]spec.Mount{
		"host":       nil,
		"namespaces": {{Source: b.TempDir(), Target: "/dev/termination"}},
		"volumes": {
			{Source: b.TempDir(), Target: "/dev/termination"},
			{Source: b.TempDir(), Target: tokenMount},
			{Source: b.TempDir(), Target: "/etc/lighterman-test", ReadOnly: true},
		},
	} {
		b.Run(name, func(b *testing.B) {
			node := New(Config{Dir: b.TempDir(), Sandbox: sandbox, Log: slog.New(slog.DiscardHandler), HostFilesystem: mounts == nil})
			if node.isolationErr = node.probeIsolation(); !node.isolated() && mounts != nil {
				b.Skip(node.isolationErr)
			}
			log, err := os.Create(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = log.Close() }()
			for b.Loop() {
				p, err := node.launch(launchSpec{
					args: []string{"true"}, env: []string{"PATH=" + defaultPath}, hostname: "bench", log: log,
					scratch: filepath.Join(node.Dir, "root"), mounts: mounts,
				})
				if err != nil {
					b.Fatal(err)
				}
				if code := p.wait(context.Background(), newStopper()); code != 0 {
					b.Fatalf("exit code %d", code)
				}
			}
		})
	}
}
