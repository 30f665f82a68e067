package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const asCommand = "LIGHTERMAN_TEST_AS_COMMAND"

// TestMain lets the test binary stand in for the command.
func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Stderr = t.Output()
	return cmd
}

// running returns the ids of all processes whose command line names the cluster's folder.
func running(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(dir)) {
			found = append(found, filepath.Base(filepath.Dir(file)))
		}
	}
	return found
}

func untilNoneRuns(t *testing.T, dir string) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, 10*time.Second, true,
		func(context.Context) (bool, error) { return len(running(t, dir)) == 0, nil })
	if err != nil {
		t.Errorf("processes are left: %v", running(t, dir))
	}
}

func TestUpEndsWithItsProcess(t *testing.T) {
	for name, test := range map[string]struct {
		signal syscall.Signal
		clean  bool
	}{
		"Ctrl-C":  {syscall.SIGINT, true},
		"SIGTERM": {syscall.SIGTERM, true},
		"SIGKILL": {syscall.SIGKILL, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := testState(t)
			cmd := command(t, "up", "--name", s.name)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if want := "export KUBECONFIG=" + filepath.Join(s.data(), "kubeconfig") + "\n"; err != nil || line != want {
				t.Errorf("up printed %q, %v; want %q", line, err, want)
			}
			if len(running(t, s.data())) < 4 {
				t.Errorf("only %v are running", running(t, s.data()))
			}
			if err := cmd.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); (err == nil) != test.clean {
				t.Errorf("up ended with %v", err)
			}
			untilNoneRuns(t, s.data())
			if _, err := os.Stat(s.data()); test.clean != os.IsNotExist(err) {
				t.Errorf("the data folder: %v", err)
			}
		})
	}
}

func TestDetached(t *testing.T) {
	s := testState(t)
	if err := command(t, "down", "--name", s.name).Run(); err == nil {
		t.Error("down of a cluster that does not run succeeded")
	}
	out, err := command(t, "up", "--detach", "--name", s.name).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "export KUBECONFIG=" + filepath.Join(s.data(), "kubeconfig"); strings.TrimSpace(string(out)) != want {
		t.Errorf("up printed %q, want %q", out, want)
	}
	for _, args := range [][]string{{"up", "--name", s.name}, {"up", "--detach", "--name", s.name}} {
		var message bytes.Buffer
		again := command(t, args...)
		again.Stderr = &message
		if err := again.Run(); err == nil || !strings.Contains(message.String(), "is running already; stop it with 'down --name "+s.name) {
			t.Errorf("%v of a running cluster: %v, %q", args, err, message.String())
		}
	}
	if err := command(t, "down", "--name", s.name).Run(); err != nil {
		t.Error(err)
	}
	untilNoneRuns(t, s.data())
}

// An owner file that names a living process which is not the cluster must not get that process killed.
func TestDownSparesStrangers(t *testing.T) {
	s := testState(t)
	stranger := exec.CommandContext(t.Context(), "sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = stranger.Process.Kill(), stranger.Wait() }()
	if err := s.writeOwner(""); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.ownerFile())
	if err != nil {
		t.Fatal(err)
	}
	own := []byte(`"pid":` + strconv.Itoa(os.Getpid()))
	text = bytes.Replace(text, own, []byte(`"pid":`+strconv.Itoa(stranger.Process.Pid)), 1)
	text = bytes.Replace(text, []byte(`"started":"`), []byte(`"started":"1`), 1)
	if err := os.WriteFile(s.ownerFile(), text, 0o600); err != nil { //nolint:gosec // the test's own
		t.Fatal(err)
	}
	if err := s.stop(t.Context()); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("down: %v, want that the cluster is not running", err)
	}
	if _, err := startTime(stranger.Process.Pid); err != nil {
		t.Errorf("the stranger: %v", err)
	}
}

func testState(t *testing.T) state {
	t.Helper()
	name := "test-" + strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(t.Name(), "/", "-"), "#", ""))
	s, err := openState(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	return s
}

func TestNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", ".hidden"} {
		if _, err := openState(name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}
