package runtime

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/plan"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Exec starts a process in a container and returns its pid. Attached
// streams come back at once, so no output is lost.
func (m *Monitor) Exec(ctx context.Context, id string, e Exec) (pid int, s *Streams, err error) {
	if e.Process == nil || e.ID == "" {
		return 0, nil, errdef.Invalid.Errorf("exec in container %s: no process or no ID", id)
	}
	var cfg any = &boot.Config{Process: e.Process}
	if e.Foreign {
		cfg = &wire.ForeignConfig{Process: e.Process}
	}
	config, err := plan.ConfigFile(cfg)
	if err != nil {
		return 0, nil, err
	}
	defer config.Close()
	req := wire.Request{
		Op: wire.Exec, ID: id, ExecID: e.ID,
		Launch:  &wire.Launch{Terminal: e.Process.Terminal, OOMScoreAdj: e.Process.OOMScoreAdj, Limits: e.Process.Rlimits},
		Streams: wire.Streams{Stdin: e.Stdin, Stdout: e.Stdout, Stderr: e.Stderr},
	}
	conn, r, files, err := m.call(ctx, req, config)
	if err != nil {
		return 0, nil, err
	}
	conn.Close()
	return r.Pid, newStreams(nil, r.Handles, files), nil
}

// Attach connects to a container from Created on. A slow reader holds
// up the container's output, as a pipe would; closing the Streams ends it.
func (m *Monitor) Attach(ctx context.Context, id string, stdin, stdout, stderr bool) (*Streams, error) {
	req := wire.Request{Op: wire.Attach, ID: id, Streams: wire.Streams{Stdin: stdin, Stdout: stdout, Stderr: stderr}}
	conn, r, files, err := m.call(ctx, req)
	if err != nil {
		return nil, err
	}
	return newStreams(conn, r.Handles, files), nil
}

func newStreams(conn *wire.Conn, names []string, files []*os.File) *Streams {
	s := &Streams{conn: conn}
	for i, f := range files {
		f = nonblocking(f)
		switch names[i] {
		case wire.HandleStdin:
			s.Stdin = &input{f, conn}
		case wire.HandleStdout:
			s.Stdout = reader{f}
		case wire.HandleStderr:
			s.Stderr = reader{f}
		}
	}
	return s
}

// nonblocking makes reads of f end when it is closed.
func nonblocking(f *os.File) *os.File {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return f
	}
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), f.Name())
}

// Close detaches.
func (s *Streams) Close() error {
	if s.conn != nil {
		s.conn.Send(wire.Request{Op: wire.Detach}) // if it is gone, so are we
		s.conn.Close()
	}
	if in, ok := s.Stdin.(*input); ok {
		in.File.Close()
	}
	for _, r := range []io.Closer{s.Stdout, s.Stderr} {
		if r != nil {
			r.Close()
		}
	}
	return nil
}

// input is the writing end of standard input. Others have it, too, so for an
// attachment the monitor must be told about its end.
type input struct {
	*os.File
	conn *wire.Conn
}

func (i *input) Close() error {
	err := i.File.Close()
	if i.conn != nil && err == nil {
		i.conn.Send(wire.Request{Op: wire.CloseStdin})
	}
	return err
}

// reader turns the error by which a terminal ends into EOF.
type reader struct{ *os.File }

func (r reader) Read(p []byte) (int, error) {
	n, err := r.File.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// WriteTo hides File's own, which would skip Read.
func (r reader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{r})
}
