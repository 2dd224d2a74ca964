package runtime

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/plan"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// A Monitor is a connection to the monitor process. Its methods may be called
// from many goroutines at once. All errors of unknown containers are of kind
// errdef.NotFound.
type Monitor struct {
	opts    Options
	keeper  *keeper
	filters plan.Filters
}

// Open finds the monitor of o.Dir, or starts one.
func Open(ctx context.Context, o Options) (*Monitor, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Monitor{opts: o, filters: plan.Filters{Dir: filepath.Join(o.Dir, "seccomp"), Hash: sha256.Sum256}}
	k, err := startKeeper(o)
	if err != nil {
		return nil, err
	}
	m.keeper = k
	return m, nil
}

// Close leaves the monitor process and all containers running.
func (m *Monitor) Close() error { return m.keeper.close() }

// Shutdown ends the monitor process and waits for its end; it fails with
// errdef.Conflict while it still has containers.
func (m *Monitor) Shutdown(ctx context.Context) error {
	m.keeper.expectEnd(true)
	if _, err := m.ask(ctx, wire.Request{Op: wire.Shutdown}); err != nil {
		m.keeper.expectEnd(false)
		return err
	}
	select {
	case <-m.keeper.done: // the connection breaks when the process ends
	case <-ctx.Done():
	}
	return m.Close()
}

// Create clones the container's init into new namespaces and its cgroup
// and returns as soon as these exist, with warnings a person should see
// (capabilities the host lacks, cgroup controllers that are missing). The
// init builds the root meanwhile and waits for Start. The engine uses the
// pid to set up the network in /proc/<pid>/ns/net.
func (m *Monitor) Create(ctx context.Context, c Container) (pid int, warnings []string, err error) {
	launch, files, warnings, err := m.plan(c)
	if err != nil {
		return 0, nil, err
	}
	defer closeFiles(files)
	r, err := m.ask(ctx, wire.Request{Op: wire.Create, ID: c.ID, Launch: launch}, files...)
	if err != nil {
		return 0, nil, err
	}
	return r.Pid, append(warnings, r.Warnings...), nil
}

// Start lets the init run the program. A *StartError says that the image's
// program could not be run.
func (m *Monitor) Start(ctx context.Context, id string) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Start, ID: id})
	return err
}

// Kill sends a signal to the first process, or to every process in the
// container's cgroup.
func (m *Monitor) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Kill, ID: id, Signal: int(sig), All: all})
	return err
}

// Wait returns when the container has stopped and all its output has been
// written to its log. It may be called by many, before and after the end.
func (m *Monitor) Wait(ctx context.Context, id string) (Exit, error) {
	r, err := m.ask(ctx, wire.Request{Op: wire.Wait, ID: id})
	return exitOf(r), err
}

// Pause freezes all processes of the container.
func (m *Monitor) Pause(ctx context.Context, id string) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Pause, ID: id})
	return err
}

// Resume thaws what Pause froze.
func (m *Monitor) Resume(ctx context.Context, id string) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Resume, ID: id})
	return err
}

// Update changes limits of a live container; zero fields stay as they are.
// Device rules, if there are any, replace all that it had.
func (m *Monitor) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Update, ID: id, Resources: r})
	return err
}

// Delete forgets a stopped or created container, killing what is left of
// it, and removes its cgroup.
func (m *Monitor) Delete(ctx context.Context, id string) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Delete, ID: id})
	return err
}

// List returns all containers, in no particular order.
func (m *Monitor) List(ctx context.Context) ([]State, error) {
	r, err := m.ask(ctx, wire.Request{Op: wire.List})
	var states []State
	for _, s := range r.States {
		states = append(states, State{ID: s.ID, Pid: s.Pid, Bundle: s.Bundle, Status: Status(s.Status), Exit: toExit(s.Exit), Cgroups: s.Cgroups})
	}
	return states, err
}

// WaitExec returns when the process has ended. Of a container's ended
// processes the last 64 are remembered.
func (m *Monitor) WaitExec(ctx context.Context, id, execID string) (Exit, error) {
	r, err := m.ask(ctx, wire.Request{Op: wire.WaitExec, ID: id, ExecID: execID})
	return exitOf(r), err
}

// Resize sets the terminal of the container, or of execID if not empty.
func (m *Monitor) Resize(ctx context.Context, id, execID string, w WindowSize) error {
	_, err := m.ask(ctx, wire.Request{Op: wire.Resize, ID: id, ExecID: execID, Width: w.Width, Height: w.Height})
	return err
}

func exitOf(r wire.Reply) Exit {
	if e := toExit(r.Exit); e != nil {
		return *e
	}
	return Exit{}
}

func toExit(e *wire.Exit) *Exit {
	if e == nil {
		return nil
	}
	return &Exit{Code: e.Code, At: e.At, OOM: e.OOM}
}

// ask makes a request that has no descriptors in its answer.
func (m *Monitor) ask(ctx context.Context, req wire.Request, files ...*os.File) (wire.Reply, error) {
	conn, r, got, err := m.call(ctx, req, files...)
	if err != nil {
		return wire.Reply{}, err
	}
	closeFiles(got)
	return r, conn.Close()
}

// call sends a request and returns the answer and its descriptors, which are
// the caller's, as is the connection. While a new monitor is being started it
// waits; a request that changes nothing is made again if the monitor died
// under it.
func (m *Monitor) call(ctx context.Context, req wire.Request, files ...*os.File) (*wire.Conn, wire.Reply, []*os.File, error) {
	for {
		if err := m.keeper.ready(ctx); err != nil {
			return nil, wire.Reply{}, nil, err
		}
		conn, r, got, err := m.once(ctx, req, files)
		if err == nil {
			return conn, r, got, nil
		}
		if !errors.Is(err, errLost) || !repeatable(req.Op) || ctx.Err() != nil {
			return nil, wire.Reply{}, nil, err
		}
		select {
		case <-time.After(5 * time.Millisecond): // until the keeper has noticed, too
		case <-ctx.Done():
			return nil, wire.Reply{}, nil, ctx.Err()
		}
	}
}

var errLost = errdef.Unavailable.Wrap(errors.New("the monitor ended before it answered"))

func repeatable(op wire.Op) bool {
	switch op {
	case wire.List, wire.Wait, wire.WaitExec, wire.Resize, wire.Pause, wire.Resume, wire.Update:
		return true
	}
	return false
}

func (m *Monitor) once(ctx context.Context, req wire.Request, files []*os.File) (*wire.Conn, wire.Reply, []*os.File, error) {
	conn, err := wire.Dial(socketPath(m.opts.Dir))
	if err != nil {
		return nil, wire.Reply{}, nil, errLost
	}
	stop := context.AfterFunc(ctx, conn.Interrupt)
	defer stop()
	r, got, err := exchange(conn, req, files)
	if err == nil {
		err = fromWire(r.Err)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, wire.Reply{}, nil, err
	}
	return conn, r, got, nil
}

func exchange(conn *wire.Conn, req wire.Request, files []*os.File) (r wire.Reply, got []*os.File, err error) {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	if err := conn.Send(req, fds...); err != nil {
		return r, nil, errLost
	}
	if got, err = conn.Recv(&r); err != nil {
		return r, nil, errLost
	}
	return r, got, nil
}

// fromWire turns a program error into the StartError that callers know.
func fromWire(e *wire.Error) error {
	err := e.Err()
	if p, ok := errors.AsType[*wire.ProgramError](err); ok {
		return &StartError{Code: p.Code, Err: errors.New(p.Text)}
	}
	return err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
