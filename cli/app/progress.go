package app

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/device"
	"github.com/minke-os/minke/compose"
)

// poll is how often the supervisor is asked; it answers from memory.
const poll = 250 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(poll):
		return nil
	}
}

// A progress shows one line for each service: redrawn on a terminal, else
// printed when it changes.
type progress struct {
	s     *connect.Session
	last  map[string]string
	drawn int // lines on the terminal that will be redrawn
	note  string
}

func newProgress(s *connect.Session) *progress { return &progress{s: s, last: map[string]string{}} }

func (p *progress) update(project *compose.Project, st device.Status) {
	width := 0
	for _, svc := range project.Services {
		width = max(width, len(svc.Name))
	}
	var lines []string
	for _, svc := range project.Services {
		word := p.word(st, svc.Name)
		line := fmt.Sprintf("  %-*s  %s", width, svc.Name, word)
		if !p.s.Live && p.last[svc.Name] != word {
			fmt.Fprintln(p.s.Err, line)
		}
		p.last[svc.Name] = word
		lines = append(lines, line)
	}
	if st.Error != "" {
		if !p.s.Live && p.note != st.Error {
			fmt.Fprintf(p.s.Err, "  %s\n", st.Error)
		}
		lines = append(lines, "  "+p.s.Paint(33, clip(st.Error, p.s.Width()-4)))
	}
	p.note = st.Error
	if p.s.Live {
		p.draw(lines)
	}
}

func clip(s string, width int) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > width && width > 1 {
		return string(r[:width-1]) + "…"
	}
	return s
}

func (p *progress) draw(lines []string) {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	p.drawn = len(lines)
	fmt.Fprint(p.s.Err, b.String())
}

// end leaves the last lines where they are.
func (p *progress) end() { p.drawn = 0 }

// word is what a service is doing, in one or two words.
func (p *progress) word(st device.Status, service string) string {
	for _, i := range st.Images {
		if i.ServiceName == service && i.DownloadProgress != nil {
			return fmt.Sprintf("%s %3d %%", p.s.Paint(36, "downloading"), *i.DownloadProgress)
		}
	}
	c, ok := container(st, service)
	switch {
	case !ok:
		return p.s.Paint(2, "waiting")
	case c.Health == "healthy":
		return p.s.Paint(32, "healthy")
	case c.Health == "unhealthy":
		return p.s.Paint(31, "unhealthy")
	case c.Health == "starting":
		return p.s.Paint(33, "checking health")
	case c.Status == "Running":
		return p.s.Paint(32, "running")
	case c.Status == "exited" && c.ExitCode != nil:
		return fmt.Sprintf("exited (%d)", *c.ExitCode)
	}
	return p.s.Paint(33, strings.ToLower(c.Status))
}

// A buildProgress shows a build: its current step on a terminal, else all it
// says. What went before a failure is shown in any case.
type buildProgress struct {
	s       *connect.Session
	service string
	started time.Time
	tail    []string
	partial string
}

func newBuildProgress(s *connect.Session, service string) *buildProgress {
	b := &buildProgress{s: s, service: service, started: time.Now()}
	if s.Live {
		fmt.Fprintf(s.Err, "%s %s", s.Paint(36, "build"), service)
	}
	return b
}

const tailLines = 20

func (b *buildProgress) line(text string) {
	text = b.partial + text
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			break
		}
		text = rest
		if strings.TrimSpace(line) != "" {
			b.show(line)
		}
	}
	b.partial = text
}

func (b *buildProgress) show(line string) {
	b.tail = append(b.tail, line)
	if len(b.tail) > tailLines {
		b.tail = b.tail[1:]
	}
	if !b.s.Live {
		fmt.Fprintf(b.s.Err, "build %s: %s\n", b.service, line)
		return
	}
	fmt.Fprintf(b.s.Err, "\r\x1b[K%s %s  %s", b.s.Paint(36, "build"), b.service,
		b.s.Paint(2, clip(line, b.s.Width()-len(b.service)-10)))
}

func (b *buildProgress) end(err error) {
	took := time.Since(b.started).Round(100 * time.Millisecond)
	switch {
	case !b.s.Live:
	case err == nil:
		fmt.Fprintf(b.s.Err, "\r\x1b[K%s %s in %v\n", b.s.Paint(32, "built"), b.service, took)
	default:
		fmt.Fprintf(b.s.Err, "\r\x1b[K%s\n", strings.Join(b.tail, "\n"))
	}
}

// address is the URL of a published port such as "8080:80", "" for one that
// no browser opens.
func address(s *connect.Session, port string) string {
	if strings.Contains(port, "/") { // udp
		return ""
	}
	host := "localhost"
	if u, err := url.Parse(s.SupervisorURL()); err == nil && u.Hostname() != "127.0.0.1" {
		host = u.Hostname()
	}
	parts := strings.Split(port, ":")
	published := parts[0]
	if len(parts) > 2 {
		published, host = parts[len(parts)-2], strings.Join(parts[:len(parts)-2], ":")
	}
	switch published {
	case "443":
		return "https://" + host
	case "80":
		return "http://" + host
	}
	return "http://" + host + ":" + published
}
