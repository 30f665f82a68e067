package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// A screen is where the demo speaks. On a terminal, its last line can be one that is redrawn.
type screen struct {
	io.Writer
	terminal bool
	drawn    bool      // the cursor is at the end of a line that the next output replaces
	width    int       // of the terminal
	last     time.Time // when the progress was last told
}

func newScreen(out io.Writer) *screen {
	s := &screen{Writer: out}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		s.terminal = true
		if s.width, _, _ = term.GetSize(int(file.Fd())); s.width == 0 {
			s.width = 80
		}
	}
	return s
}

// line says something that stays.
func (s *screen) line(format string, args ...any) {
	s.clear()
	_, _ = fmt.Fprintf(s.Writer, format+"\n", args...)
}

func (s *screen) clear() {
	if s.drawn {
		_, _ = fmt.Fprint(s.Writer, "\r\033[K")
		s.drawn = false
	}
}

// every is how often progress is worth telling.
func (s *screen) every() time.Duration {
	if s.terminal {
		return 200 * time.Millisecond
	}
	return 3 * time.Second
}

// progress redraws the last line, or, where that is not possible, adds one now and then. The final state is always told.
func (s *screen) progress(c counts, elapsed time.Duration, final bool) {
	now := time.Now()
	if !final && now.Sub(s.last) < s.every() {
		return
	}
	s.last = now
	text := c.format(elapsed)
	if !s.terminal || final {
		s.line("%s", text)
		return
	}
	if runes := []rune(text); len(runes) >= s.width {
		text = string(runes[:s.width-1]) // a line that wraps cannot be redrawn
	}
	_, _ = fmt.Fprintf(s.Writer, "\r\033[K%s", text)
	s.drawn = true
}

// counts are how many messages are where.
type counts struct{ queued, running, done, failed int }

func (c counts) finished() bool { return c.queued == 0 && c.running == 0 }

// format writes the numbers in columns that do not jump while they change.
func (c counts) format(elapsed time.Duration) string {
	rate := 0.0
	if seconds := elapsed.Seconds(); seconds > 0 {
		rate = float64(c.done+c.failed) / seconds
	}
	w := len(fmt.Sprint(c.queued + c.running + c.done + c.failed))
	return fmt.Sprintf("queued %*d · under way %*d · done %*d · failed %*d · %5.1f Jobs/s · %s",
		w, c.queued, w, c.running, w, c.done, w, c.failed, rate, elapsed.Truncate(100*time.Millisecond))
}
