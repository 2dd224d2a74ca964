package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/term"
)

const defaultDetach = "ctrl-p,ctrl-q"

// errDetached is that a person left a container running.
var errDetached = errors.New("detached")

// A session connects the terminal with a process in a container.
type session struct {
	s      *connect.Session
	conn   client.HijackedResponse
	tty    bool
	stdin  bool
	resize func(width, height uint) // tell the process the terminal's size
	detach []byte
}

// run copies until the process closes its output, or the person detaches.
func (x session) run(ctx context.Context) error {
	defer x.conn.Close()
	if x.tty && x.stdin {
		restore, err := x.s.Raw()
		if err != nil {
			return err
		}
		defer restore()
	}
	if x.tty {
		x.fit()
		defer term.OnResize(x.fit)()
	}
	defer context.AfterFunc(ctx, func() { x.conn.Close() })()
	left := make(chan error, 1)
	if x.stdin {
		// Ends with the process: a read from a terminal cannot be interrupted.
		go func() { left <- x.input() }()
	}
	ended := make(chan error, 1)
	go func() { ended <- x.output() }()
	for {
		select {
		case err := <-ended:
			return err
		case err := <-left:
			if errors.Is(err, errDetached) {
				return err
			}
			left = nil // end of input; output may go on
		}
	}
}

func (x session) fit() {
	if w, h, ok := x.s.Size(); ok {
		x.resize(uint(w), uint(h))
	}
}

func (x session) output() error {
	var err error
	if x.tty {
		_, err = io.Copy(x.s.Out, x.conn.Reader)
	} else {
		_, err = stdcopy.StdCopy(x.s.Out, x.s.Err, x.conn.Reader)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("read output: %w", err)
	}
	return nil
}

func (x session) input() error {
	var in io.Reader = x.s.In
	if x.tty {
		in = &detachReader{in: x.s.In, keys: x.detach}
	}
	_, err := io.Copy(x.conn.Conn, in)
	if errors.Is(err, errDetached) {
		return err
	}
	return x.conn.CloseWrite()
}

// A detachReader watches for the keys that leave a container. Keys that turn
// out to be something else are passed on.
type detachReader struct {
	in   io.Reader
	keys []byte
	seen int
}

func (d *detachReader) Read(p []byte) (int, error) {
	if len(p) <= len(d.keys) {
		return d.in.Read(p)
	}
	n, err := d.in.Read(p[:len(p)-len(d.keys)])
	var out []byte
	for _, b := range p[:n] {
		switch {
		case len(d.keys) > 0 && b == d.keys[d.seen]:
			d.seen++
			if d.seen == len(d.keys) {
				return 0, errDetached
			}
		default:
			out = append(append(out, d.keys[:d.seen]...), b)
			d.seen = 0
		}
	}
	return copy(p, out), err
}

// parseKeys reads "ctrl-p,ctrl-q" or single characters.
func parseKeys(text string) ([]byte, error) {
	if text == "" {
		text = defaultDetach
	}
	var out []byte
	for _, k := range strings.Split(text, ",") {
		c, ctrl := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		switch {
		case ctrl && len(c) == 1 && c[0] >= '@' && c[0] <= '_' || ctrl && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			out = append(out, c[0]&0x1f)
		case !ctrl && len(k) == 1:
			out = append(out, k[0])
		default:
			return nil, fmt.Errorf("--detach-keys %q: want characters or ctrl-<letter>, separated by commas", text)
		}
	}
	return out, nil
}

// forward passes signals to the container until stop is called.
func forward(ctx context.Context, engine *client.Client, id string) (stop func()) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, forwarded...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sig := range ch {
			// A container that is gone needs no signal.
			engine.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: signalName(sig)})
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
		<-done
	}
}
