package engine

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

// AttachOptions are those of docker attach. Without Stream only the logs are
// replayed.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Logs, Stream          bool
	DetachKeys            string
}

// An Attachment is a client's connection to the streams of a container or of
// an execution. Run copies; Close gives up an attachment that is not run.
type Attachment struct {
	TTY bool

	e       *Engine
	c       *Container
	options AttachOptions
	keys    []byte
	streams chan *runtime.Streams // one, or closed if it never starts
	replay  func(ctx context.Context, stdout, stderr io.Writer) error
	onEnd   func() // of an execution: waits for its exit code
	exec    *execution
}

// Attach connects to a container, running or not: to one that does not run yet
// from its first byte on.
func (e *Engine) Attach(ctx context.Context, name string, o AttachOptions) (*Attachment, error) {
	keys, err := parseDetachKeys(o.DetachKeys)
	if err != nil {
		return nil, err
	}
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	r := c.snapshot()
	if r.Paused {
		return nil, errdef.Conflict.Errorf("container %s is paused, unpause the container before attach", r.ID)
	}
	a := &Attachment{TTY: r.Config.Tty, e: e, c: c, options: o, keys: keys, streams: make(chan *runtime.Streams, 1)}
	if o.Logs && (o.Stdout || o.Stderr) {
		logs, err := e.ContainerLogs(c.ID, LogOptions{Stdout: o.Stdout, Stderr: o.Stderr, Tail: -1})
		if err != nil {
			return nil, err
		}
		a.replay = logs.Copy
	}
	if !o.Stream {
		close(a.streams)
		return a, nil
	}
	c.mu.Lock()
	running := c.runs()
	if !running {
		c.pending = append(c.pending, a)
	}
	c.mu.Unlock()
	if running {
		s, err := e.rt.Attach(ctx, c.ID, o.Stdin && r.Config.OpenStdin, o.Stdout, o.Stderr)
		if err != nil {
			return nil, err
		}
		a.streams <- s
	}
	e.publish(events.ActionAttach, &r, nil)
	return a, nil
}

// connectPending gives the streams of a container that is about to start to
// those who attached before.
func (e *Engine) connectPending(ctx context.Context, c *Container) error {
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	stdin := c.Config.OpenStdin
	c.mu.Unlock()
	for _, a := range pending {
		s, err := e.rt.Attach(ctx, c.ID, a.options.Stdin && stdin, a.options.Stdout, a.options.Stderr)
		if err != nil {
			close(a.streams)
			return err
		}
		a.streams <- s
	}
	return nil
}

// dropPending ends attachments to a container that will not start.
func (e *Engine) dropPending(c *Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.pending {
		close(a.streams)
	}
	c.pending = nil
}

// Close releases an attachment that is not run.
func (a *Attachment) Close() {
	if a.c == nil {
		return
	}
	a.c.mu.Lock()
	for i, p := range a.c.pending {
		if p == a {
			a.c.pending = append(a.c.pending[:i], a.c.pending[i+1:]...)
			break
		}
	}
	a.c.mu.Unlock()
	select {
	case s := <-a.streams:
		closeStreams(s)
	default:
	}
}

// ErrDetached is Run's result when the client typed the detach keys.
var ErrDetached = errors.New("detached")

// Run copies until the process has closed its output, the client is gone, or
// ctx ends. stdin may be nil; it must return an error when the client leaves.
func (a *Attachment) Run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	if a.replay != nil {
		if err := a.replay(ctx, stdout, stderr); err != nil {
			return err
		}
	}
	var s *runtime.Streams
	select {
	case s = <-a.streams:
	case <-ctx.Done():
		a.Close()
		return ctx.Err()
	}
	if s == nil {
		return nil
	}
	err := a.copy(ctx, s, stdin, stdout, stderr)
	if a.onEnd != nil && err == nil { // else the client is gone, or detached
		a.onEnd()
	}
	return err
}

// copy moves bytes both ways. It returns when output has ended; input is
// carried by a goroutine that ends with the client's connection.
func (a *Attachment) copy(ctx context.Context, s *runtime.Streams, stdin io.Reader, stdout, stderr io.Writer) error {
	var once sync.Once
	release := func() { once.Do(func() { closeStreams(s) }) }
	defer release()
	stop := context.AfterFunc(ctx, release)
	defer stop()

	detached := make(chan struct{})
	if s.Stdin != nil && stdin != nil {
		go func() {
			err := copyInput(s.Stdin, stdin, a.keys, a.TTY)
			if errors.Is(err, ErrDetached) {
				close(detached)
				release()
				return
			}
			s.Stdin.Close()
		}()
	}
	var wg sync.WaitGroup
	var failed error
	var mu sync.Mutex
	output := func(w io.Writer, r io.ReadCloser) {
		if r == nil || w == nil {
			return
		}
		wg.Go(func() {
			if _, err := io.Copy(w, r); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
				release() // the client is gone: do not hold up the container
			}
		})
	}
	output(stdout, s.Stdout)
	output(stderr, s.Stderr)
	wg.Wait()
	select {
	case <-detached:
		if a.exec != nil {
			a.e.publishExec(events.ActionExecDetach, a.exec, nil)
		} else {
			r := a.c.snapshot()
			a.e.publish(events.ActionDetach, &r, nil)
		}
		return ErrDetached
	default:
		return failed
	}
}

func closeStreams(s *runtime.Streams) {
	if s == nil {
		return
	}
	// Input is not closed here: its end belongs to the process's other clients.
	for _, r := range []io.ReadCloser{s.Stdout, s.Stderr} {
		if r != nil {
			r.Close()
		}
	}
}

// copyInput copies until the end of input or the detach keys, which only a
// terminal has.
func copyInput(dst io.Writer, src io.Reader, keys []byte, tty bool) error {
	if !tty {
		_, err := io.Copy(dst, src)
		return err
	}
	buf := make([]byte, 1024)
	matched := 0
	for {
		n, err := src.Read(buf)
		out := make([]byte, 0, n+matched)
		for _, b := range buf[:n] {
			switch {
			case b == keys[matched]:
				if matched++; matched == len(keys) {
					dst.Write(out)
					return ErrDetached
				}
				continue
			case matched > 0: // it was not the sequence: hand over what was held back
				out = append(out, keys[:matched]...)
				matched = 0
				if b == keys[0] {
					matched = 1
					continue
				}
			}
			out = append(out, b)
		}
		if len(out) > 0 {
			if _, werr := dst.Write(out); werr != nil {
				return werr
			}
		}
		if err != nil {
			return err
		}
	}
}

// parseDetachKeys reads "ctrl-p,ctrl-q", Docker's default.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		s = "ctrl-p,ctrl-q"
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		c, isCtrl := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		switch {
		case !isCtrl && len(k) == 1:
			keys = append(keys, k[0])
		case isCtrl && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			keys = append(keys, c[0]-'a'+1)
		case isCtrl && len(c) == 1 && strings.Contains(`@[\]^_`, c):
			keys = append(keys, c[0]-'@')
		default:
			return nil, errdef.Invalid.Errorf("invalid detach keys (%s) provided", s)
		}
	}
	return keys, nil
}

// ContainerResize sets the size of a running container's terminal.
func (e *Engine) ContainerResize(ctx context.Context, name string, height, width uint16) error {
	c, r, err := e.findRunning(name)
	if err != nil {
		return err
	}
	if err := e.rt.Resize(ctx, c.ID, "", runtime.WindowSize{Width: width, Height: height}); err != nil {
		return err
	}
	e.publish(events.ActionResize, &r, nil)
	return nil
}
