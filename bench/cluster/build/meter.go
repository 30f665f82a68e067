package build

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// A meter says how a build goes on: on a terminal, one line that is rewritten each second; elsewhere, a line each
// fifteen seconds, so that a log shows life without being flooded.
type meter struct {
	out      io.Writer
	title    string
	terminal bool
	start    time.Time
	quit     chan struct{}
	finished sync.WaitGroup

	mu       sync.Mutex
	packages int    // guarded by mu
	last     string // guarded by mu; the latest download, shown until a package is compiled
}

func startMeter(out io.Writer, title string) *meter {
	m := &meter{out: out, title: title, terminal: isTerminal(out), start: time.Now(), quit: make(chan struct{})}
	every := 15 * time.Second
	if m.terminal {
		every = time.Second
	} else {
		_, _ = fmt.Fprintf(out, "building %s (once; later starts find it built)\n", title)
	}
	m.finished.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-m.quit:
				return
			case <-ticker.C:
				m.print()
			}
		}
	})
	return m
}

func (m *meter) compiled() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.packages++
	m.last = ""
}

func (m *meter) note(line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if download, ok := strings.CutPrefix(line, "go: downloading "); ok {
		m.last = ", downloading " + download
	}
}

func (m *meter) print() {
	m.mu.Lock()
	packages, last := m.packages, m.last
	m.mu.Unlock()
	line := fmt.Sprintf("building %s: %s, %d packages compiled%s", m.title, time.Since(m.start).Round(time.Second), packages, last)
	if m.terminal {
		_, _ = fmt.Fprintf(m.out, "\r\033[K%s", line)
	} else {
		_, _ = fmt.Fprintln(m.out, line)
	}
}

func (m *meter) stop(err error) {
	close(m.quit)
	m.finished.Wait()
	if m.terminal {
		_, _ = fmt.Fprint(m.out, "\r\033[K")
	}
	if err == nil {
		_, _ = fmt.Fprintf(m.out, "built %s in %s\n", m.title, time.Since(m.start).Round(time.Second/10))
	}
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
