// Package logs gives one stream of what an application's containers and the
// supervisor itself say.
//
// The engine already keeps the containers' output, so this package keeps none
// of it: a listener's history and its live lines come from the engine, and a
// device that nobody watches spends nothing. Only the supervisor's own
// messages live here, in a ring of fixed size, lost at a restart.
//
// A Hub's methods are safe for concurrent use. Stream returns when its context
// ends, after all it started has ended.
package logs

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/plan"
)

// An Engine is the part of a Docker API client that reading logs needs.
type Engine interface {
	ContainerLogs(context.Context, string, client.ContainerLogsOptions) (client.ContainerLogsResult, error)
}

// A Message is one line, as /v2/local/logs sends it.
type Message struct {
	ServiceName string `json:"serviceName,omitempty"`
	Message     string `json:"message"`
	IsSystem    bool   `json:"isSystem,omitempty"`
	IsStdErr    bool   `json:"isStdErr,omitempty"`
	Timestamp   int64  `json:"timestamp,omitempty"` // ms
	ServiceID   int    `json:"serviceId,omitempty"`
}

const (
	ringSize = 200
	maxLine  = 10_000 // bytes, of which ellipsis is the end of a line that was longer
	ellipsis = "[...]"
)

// A Hub collects messages and lets listeners follow.
type Hub struct {
	engine Engine
	now    func() time.Time

	mu         sync.Mutex // guards the fields below
	ring       []Message
	containers []plan.Container
	changed    chan struct{} // closed and replaced when anything above changes
	total      int           // system messages ever
}

// New makes a hub without listeners.
func New(e Engine) *Hub {
	return &Hub{engine: e, now: time.Now, changed: make(chan struct{})}
}

// System records a message of the supervisor.
func (h *Hub) System(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring = append(h.ring, Message{Message: text, IsSystem: true, Timestamp: h.now().UnixMilli()})
	if len(h.ring) > ringSize {
		h.ring = slices.Delete(h.ring, 0, len(h.ring)-ringSize)
	}
	h.total++
	h.wakeLocked()
}

// Containers tells the hub which containers exist now.
func (h *Hub) Containers(list []plan.Container) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.containers = list
	h.wakeLocked()
}

func (h *Hub) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Hub) snapshot() (ring []Message, total int, containers []plan.Container, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ring), h.total, h.containers, h.changed
}

// Options choose what Stream sends.
type Options struct {
	Follow bool
	Tail   int       // lines of history for each container and the supervisor, -1 for all
	Since  time.Time // no history from before; zero for any
}

// Stream sends history, then new lines as they come. emit is never called
// twice at the same time; its error ends the stream.
func (h *Hub) Stream(ctx context.Context, o Options, emit func(Message) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	ring, seen, containers, changed := h.snapshot()
	history := tail(slices.DeleteFunc(ring, func(m Message) bool { return m.Timestamp <= o.Since.UnixMilli() }), o.Tail)
	for _, c := range containers {
		history = append(history, h.history(ctx, c, o)...)
	}
	order.By(history, func(a, b Message) int { return int(a.Timestamp - b.Timestamp) })
	for _, m := range history {
		if err := emit(m); err != nil {
			return err
		}
	}
	if !o.Follow {
		return nil
	}

	since := h.now()
	if n := len(history); n > 0 {
		since = time.UnixMilli(history[n-1].Timestamp)
	}
	lines := make(chan Message, 64)
	ended := make(chan string, 8)
	following := map[string]bool{}
	for {
		for _, c := range containers {
			if c.State != "running" || following[c.ID] {
				continue
			}
			following[c.ID] = true
			from := since
			if c.Created.After(since) {
				from = time.Time{}
			}
			wg.Go(func() {
				h.follow(ctx, c, from, lines)
				// It exited, or the engine went away: either is news that
				// arrives on its own, or soon enough.
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
				select {
				case ended <- c.ID:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case m := <-lines:
			if err := emit(m); err != nil {
				return err
			}
			since = time.UnixMilli(max(since.UnixMilli(), m.Timestamp))
		case id := <-ended:
			delete(following, id)
			_, _, containers, changed = h.snapshot()
		case <-changed:
			var total int
			ring, total, containers, changed = h.snapshot()
			for _, m := range tail(ring, total-seen) {
				if err := emit(m); err != nil {
					return err
				}
			}
			seen = total
		}
	}
}

func tail(list []Message, n int) []Message {
	if n < 0 || n >= len(list) {
		return list
	}
	return list[len(list)-n:]
}

// history is what a container said before. A container whose log cannot be
// read has none: the others' lines are worth more than an error.
func (h *Hub) history(ctx context.Context, c plan.Container, o Options) []Message {
	if o.Tail == 0 {
		return nil
	}
	want := client.ContainerLogsOptions{Tail: "all"}
	if o.Tail > 0 {
		want.Tail = strconv.Itoa(o.Tail)
	}
	if !o.Since.IsZero() {
		want.Since = fraction(o.Since)
	}
	var out []Message
	h.read(ctx, c, want, func(m Message) { out = append(out, m) })
	return out
}

func (h *Hub) follow(ctx context.Context, c plan.Container, since time.Time, lines chan<- Message) {
	o := client.ContainerLogsOptions{Follow: true}
	if !since.IsZero() {
		o.Since = fraction(since)
	}
	h.read(ctx, c, o, func(m Message) {
		select {
		case lines <- m:
		case <-ctx.Done():
		}
	})
}

// fraction is just after a time of a line, in seconds: our times end at the
// millisecond, the engine's do not, and its since includes the very moment.
func fraction(t time.Time) string {
	return fmt.Sprintf("%d.%03d999999", t.Unix(), t.Nanosecond()/1e6)
}

func (h *Hub) read(ctx context.Context, c plan.Container, o client.ContainerLogsOptions, emit func(Message)) {
	o.ShowStdout, o.ShowStderr, o.Timestamps = true, true, true
	stream, err := h.engine.ContainerLogs(ctx, c.ID, o)
	if err != nil {
		return
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	line := func(text string, stderr bool) {
		m := parse(text)
		m.ServiceName, m.ServiceID, m.IsStdErr = c.Service, c.ServiceID, stderr
		emit(m)
	}
	if c.TTY {
		readRaw(stream, line)
		return
	}
	readFrames(stream, line)
}

// parse takes the engine's time stamp off a line.
func parse(text string) Message {
	text = strings.TrimRight(text, "\r\n")
	stamp, rest, _ := strings.Cut(text, " ")
	t, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return Message{Message: cut(text)}
	}
	return Message{Message: cut(rest), Timestamp: t.UnixMilli()}
}

func cut(s string) string {
	if len(s) > maxLine {
		return s[:maxLine-len(ellipsis)] + ellipsis
	}
	return s
}

// readRaw reads the output of a container with a terminal.
func readRaw(r io.Reader, emit func(string, bool)) {
	br := bufio.NewReaderSize(r, 4096)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			emit(line, false)
		}
		if err != nil {
			return
		}
	}
}

// maxFrame bounds what one frame may make us allocate; the engine's are 16 KiB.
const maxFrame = 1 << 20

// readFrames reads Docker's multiplexed form: a byte for the stream, three of
// nothing, four of length, then that much text. One frame is one line, or a
// part of one.
func readFrames(r io.Reader, emit func(string, bool)) {
	br := bufio.NewReaderSize(r, 4096)
	var head [8]byte
	for {
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(head[4:])
		if head[0] > 2 || size > maxFrame {
			return
		}
		buf := make([]byte, size)
		if _, err := io.ReadFull(br, buf); err != nil {
			return
		}
		for line := range strings.Lines(string(buf)) {
			emit(line, head[0] == 2)
		}
	}
}
