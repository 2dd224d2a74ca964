package engine

import (
	"context"
	"io"
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
	if r.Host.LogConfig.Type == "none" {
		return Logs{}, errdef.Unsupported.Errorf("configured logging driver does not support reading")
	}
	return Logs{TTY: r.Config.Tty, Copy: func(ctx context.Context, stdout, stderr io.Writer) error {
		return e.copyLogs(ctx, c, o, stdout, stderr)
	}}, nil
}

func (e *Engine) copyLogs(ctx context.Context, c *Container, o LogOptions, stdout, stderr io.Writer) error {
	opts := logs.Options{Tail: o.Tail, Since: o.Since, Until: o.Until}
	if o.Follow {
		c.mu.Lock()
		opts.Follow = c.logsDone
		c.mu.Unlock()
	}
	err := logs.Read(ctx, e.logPath(c.ID), opts, func(entry jsonlog.Entry) error {
		w := stdout
		switch {
		case entry.Stream == "stderr" && o.Stderr:
			w = stderr
		case entry.Stream == "stderr" || !o.Stdout:
			return nil
		}
		line := entry.Line
		if o.Timestamps {
			line = append([]byte(entry.Time.UTC().Format(rfc3339Nano)+" "), line...)
		}
		_, err := w.Write(line)
		return err
	})
	return err
}

// rfc3339Nano has all nine digits, so that columns line up as Docker's do.
const rfc3339Nano = "2006-01-02T15:04:05.000000000Z07:00"
