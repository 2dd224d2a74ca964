package engine

import (
	"context"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/minke-os/minke/engine/internal/logs"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/jsonlog"
)

// LogOptions are those of docker logs.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Tail           int // lines; negative: all
	Since, Until   time.Time
	Timestamps     bool
	Details        bool // attributes before each line
}

// Logs is a container's log, ready to be copied.
type Logs struct {
	TTY bool
	// Copy writes the log until its end, or with Follow until the container
	// stops, the client is gone or ctx ends.
	Copy func(ctx context.Context, stdout, stderr io.Writer) error
}

// ContainerLogs checks what can be checked before the first byte.
func (e *Engine) ContainerLogs(name string, o LogOptions) (Logs, error) {
	if !o.Stdout && !o.Stderr {
		return Logs{}, errdef.Invalid.Errorf("Bad parameters: you must choose at least one stream")
	}
	c, err := e.find(name)
	if err != nil {
		return Logs{}, err
	}
	r := c.snapshot()
	read, err := e.logReader(&r)
	if err != nil {
		return Logs{}, err
	}
	return Logs{TTY: r.Config.Tty, Copy: func(ctx context.Context, stdout, stderr io.Writer) error {
		opts := logs.Options{Tail: o.Tail, Since: o.Since, Until: o.Until}
		if o.Follow {
			c.mu.Lock()
			opts.Follow = c.logsDone
			c.mu.Unlock()
		}
		return read(ctx, opts, o.printer(stdout, stderr))
	}}, nil
}

// logReader is how the log of a container is read back.
func (e *Engine) logReader(r *record) (func(context.Context, logs.Options, func(jsonlog.Entry) error) error, error) {
	switch path := e.logPath(r); {
	case r.Host.LogConfig.Type == "journald":
		if err := logs.HasJournal(); err != nil {
			return nil, errdef.Unsupported.Errorf("configured logging driver does not support reading: %w", err)
		}
		return func(ctx context.Context, o logs.Options, each func(jsonlog.Entry) error) error {
			return logs.ReadJournal(ctx, r.ID, o, each)
		}, nil
	case path == "" || uncached(r.Host.LogConfig.Config):
		return nil, errdef.Unsupported.Errorf("configured logging driver does not support reading")
	default:
		return func(ctx context.Context, o logs.Options, each func(jsonlog.Entry) error) error {
			return logs.Read(ctx, path, o, each)
		}, nil
	}
}

// printer writes entries as docker logs shows them.
func (o LogOptions) printer(stdout, stderr io.Writer) func(jsonlog.Entry) error {
	return func(entry jsonlog.Entry) error {
		w := stdout
		switch {
		case entry.Stream == "stderr" && o.Stderr:
			w = stderr
		case entry.Stream == "stderr" || !o.Stdout:
			return nil
		}
		line := entry.Line
		if o.Details {
			line = append([]byte(details(entry.Attrs)+" "), line...)
		}
		if o.Timestamps {
			line = append([]byte(entry.Time.UTC().Format(rfc3339Nano)+" "), line...)
		}
		_, err := w.Write(line)
		return err
	}
}

// details is a=b,c=d with everything odd escaped, as Docker has it.
func details(attrs map[string]string) string {
	pairs := make([]string, 0, len(attrs))
	for _, k := range sortedKeys(attrs) {
		pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(attrs[k]))
	}
	return strings.Join(pairs, ",")
}

// rfc3339Nano has all nine digits, so that columns line up as Docker's do.
const rfc3339Nano = "2006-01-02T15:04:05.000000000Z07:00"
