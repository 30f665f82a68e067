package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestDemo(t *testing.T) {
	for source, left := range map[string]string{
		"redis":               "nothing is left: XLEN 0, XPENDING 0, poisoned 0",
		"azure-storage-queue": "nothing is left: 0 messages, poisoned 0",
		"azure-event-hubs":    "nothing is left: checkpoints/last events 4/4, 4/4, 4/4, 4/4, poisoned 0",
	} {
		t.Run(source, func(t *testing.T) {
			folder := ownTempFolder(t)
			var out bytes.Buffer
			if status := command(t.Context(), []string{"-source", source, "-tasks", "20", "-timeout", "3m"}, &out); status != 0 {
				t.Errorf("exit status %d, want 0", status)
			}
			for _, want := range []string{"20 of 20 done", left, "p99"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the output lacks %q", want)
				}
			}
			nothingIsLeft(t, folder)
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}

// Ctrl-C, at the moment that the demo says something.
func TestInterrupt(t *testing.T) {
	for name, moment := range map[string]string{
		"build":         "building lighterman",
		"cluster start": "starting a cluster",
		"dispatch":      "queued",
	} {
		t.Run(name, func(t *testing.T) {
			folder := ownTempFolder(t)
			ctx, interrupt := context.WithCancel(t.Context())
			out := &trigger{word: moment, fire: interrupt}
			if status := command(ctx, []string{"-tasks", "200", "-timeout", "3m"}, out); status != 130 {
				t.Errorf("exit status %d, want 130", status)
			}
			nothingIsLeft(t, folder)
			if t.Failed() {
				t.Log(out.text.String())
			}
		})
	}
}

// A lighterman that dies ends the demo at once, and its log is kept.
func TestLightermanDies(t *testing.T) {
	folder := ownTempFolder(t)
	out := &trigger{word: "queued", fire: func() { killLighterman(t, folder) }}
	began := time.Now()
	if status := command(t.Context(), []string{"-tasks", "500", "-timeout", "3m"}, out); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("it took %v", took)
	}
	logs, _ := filepath.Glob(filepath.Join(folder, "*", "lighterman.log"))
	if len(logs) != 1 {
		t.Fatalf("logs: %v, want one", logs)
	}
	for _, want := range []string{"lighterman has ended: signal: killed", "of 500 messages are done", logs[0]} {
		if !strings.Contains(out.text.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.text.String())
	}
}

// A trigger fires at a word, once, from a goroutine of its own.
type trigger struct {
	word string
	fire func()
	once sync.Once
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (w *trigger) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.Contains(p, []byte(w.word)) {
		w.once.Do(w.fire)
	}
	return w.text.Write(p)
}

func ownTempFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	t.Setenv("TMPDIR", folder)
	return folder
}

func nothingIsLeft(t *testing.T, folder string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		t.Errorf("left in the folder for temporary files: %s", entry.Name())
	}
	for pid, name := range children(t) {
		t.Errorf("process %d is left: %s", pid, name)
	}
}

func killLighterman(t *testing.T, folder string) {
	for pid, name := range children(t) {
		if strings.HasPrefix(name, folder) && strings.Contains(name, "/lighterman run") {
			process, err := os.FindProcess(pid)
			if err == nil {
				err = process.Kill()
			}
			if err != nil {
				t.Errorf("killing lighterman: %v", err)
			}
			return
		}
	}
	t.Errorf("no lighterman among the children %v", children(t))
}

// children are the child processes of this one with their command lines.
func children(t *testing.T) map[int]string {
	found := map[int]string{}
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Errorf("the system does not tell which children there are (%v)", err)
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Errorf("%s: %v", list, err)
				continue
			}
			line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
			found[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}
