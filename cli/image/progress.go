package image

import (
	"fmt"
	"strings"
	"time"

	"github.com/minke-os/minke/cli/connect"
)

// A progress shows the classic builder's output on a terminal: a line for each
// step with the time it took, below the current one the last that it printed.
// What a failed step printed is shown when it has failed.
type progress struct {
	s       *connect.Session
	now     func() time.Time
	began   time.Time
	step    string // "2/5"
	text    string // the instruction
	since   time.Time
	cached  bool
	tail    []string
	partial string
	drawn   bool // the current step's two lines are on the terminal
}

const tailLines = 50

func newProgress(s *connect.Session) *progress {
	return &progress{s: s, now: time.Now, began: time.Now()}
}

func (p *progress) write(text string) {
	text = p.partial + text
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			break
		}
		p.line(line)
		text = rest
	}
	p.partial = text
}

func (p *progress) line(line string) {
	switch {
	case strings.HasPrefix(line, "Step "):
		p.finish(32)
		step, text, _ := strings.Cut(strings.TrimPrefix(line, "Step "), " : ")
		p.step, p.text, p.since, p.cached, p.tail = step, text, p.now(), false, nil
	case line == " ---> Using cache":
		p.cached = true
	case strings.HasPrefix(line, " ---> "), strings.HasPrefix(line, "Removing intermediate container"), strings.TrimSpace(line) == "":
		return
	case strings.HasPrefix(line, "Successfully "), strings.HasPrefix(line, "[Warning]"):
		p.finish(32)
		fmt.Fprintln(p.s.Out, line)
		return
	default:
		p.tail = append(p.tail, line)
		if len(p.tail) > tailLines {
			p.tail = p.tail[1:]
		}
	}
	p.draw(36)
}

// draw shows the current step over what was shown of it.
func (p *progress) draw(color int) {
	p.erase()
	if p.step == "" {
		return
	}
	took := "cached"
	if !p.cached {
		took = fmt.Sprintf("%.1fs", p.now().Sub(p.since).Seconds())
	}
	room := p.s.Width() - len(p.step) - len(took) - 6
	fmt.Fprintf(p.s.Out, "%s %s %s\n", p.s.Paint(color, "["+p.step+"]"), clip(p.text, room), p.s.Paint(2, took))
	last := ""
	if len(p.tail) > 0 {
		last = p.tail[len(p.tail)-1]
	}
	fmt.Fprintf(p.s.Out, "  %s\n", p.s.Paint(2, clip(plain(last), p.s.Width()-3)))
	p.drawn = true
}

func (p *progress) erase() {
	if p.drawn {
		fmt.Fprint(p.s.Out, "\x1b[2A\x1b[J")
	}
	p.drawn = false
}

// finish leaves the current step's line where it is.
func (p *progress) finish(color int) {
	if p.step == "" {
		return
	}
	p.tail = nil
	p.draw(color)
	fmt.Fprint(p.s.Out, "\x1b[1A\x1b[K")
	p.step, p.drawn = "", false
}

func (p *progress) end(err error) {
	if err == nil {
		fmt.Fprintf(p.s.Out, "%s in %.1fs\n", p.s.Paint(32, "Built"), p.now().Sub(p.began).Seconds())
		return
	}
	tail := p.tail
	p.finish(31)
	for _, line := range tail {
		fmt.Fprintln(p.s.Out, line)
	}
}

func clip(s string, width int) string {
	s = strings.ReplaceAll(s, "\t", " ")
	if r := []rune(s); len(r) > width && width > 1 {
		return string(r[:width-1]) + "…"
	}
	return s
}

// plain takes colours out, which the engine adds to what goes to stderr.
func plain(s string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !ok {
			return strings.ReplaceAll(b.String(), "\r", "")
		}
		_, s, _ = strings.Cut(after, "m")
	}
}
