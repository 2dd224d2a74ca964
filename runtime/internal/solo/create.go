package solo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/cgroup"
	"github.com/minke-os/minke/runtime/internal/plan"
	"github.com/minke-os/minke/runtime/internal/spawn"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Options are what a caller may choose for a new process.
type Options struct {
	NoPivot     bool
	PreserveFDs int // descriptors from 3 on that the program gets
}

func (o Options) extra() (fds []int) {
	for i := range o.PreserveFDs {
		fds = append(fds, 3+i)
	}
	return fds
}

type hookList = boot.HookList

// Create makes a container whose program is not running yet, with our 0–2 as
// its own. The terminal, if the configuration has one, is the caller's.
func (r Root) Create(id, bundle string, spec *specs.Spec, o Options) (c *Container, tty *os.File, warnings []string, err error) {
	filters := plan.Filters{Dir: filepath.Join(string(r), "seccomp")}
	launch, cfg, warnings, err := plan.Divide(plan.Container{ID: id, Bundle: bundle, Spec: spec}, &filters)
	if err != nil {
		return nil, nil, nil, err
	}
	cfg.NoPivot, cfg.PreserveFDs = o.NoPivot, o.PreserveFDs
	c = &Container{root: r, saved: saved{
		Version: savedVersion, ID: id, Bundle: bundle, Rootfs: cfg.Root, Created: time.Now().UTC(),
		Annotations: spec.Annotations, Launch: launch, Hooks: spec.Hooks,
	}}
	if h := spec.Hooks; h != nil {
		cfg.Hooks = boot.Hooks{CreateContainer: h.CreateContainer, StartContainer: h.StartContainer}
		cfg.BeforePivot = len(h.Prestart)+len(h.CreateRuntime) > 0
	}
	if err := os.MkdirAll(string(r), 0o711); err != nil {
		return nil, nil, nil, err
	}
	if err := os.Mkdir(r.dir(id), 0o700); errors.Is(err, fs.ErrExist) {
		return nil, nil, nil, errdef.Conflict.Errorf("container %s exists already", id)
	} else if err != nil {
		return nil, nil, nil, err
	}
	files, err := plan.Files(spec, cfg)
	if err != nil {
		return nil, nil, nil, errors.Join(err, os.RemoveAll(r.dir(id)))
	}
	defer closeAll(files)
	more, tty, err := c.create(cfg, files, o)
	if err != nil {
		return nil, nil, nil, errors.Join(err, os.RemoveAll(r.dir(id)))
	}
	return c, tty, append(warnings, more...), nil
}

func (c *Container) create(cfg *boot.Config, files []*os.File, o Options) (warnings []string, tty *os.File, err error) {
	config, err := plan.ConfigFile(cfg)
	if err != nil {
		return nil, nil, err
	}
	defer config.Close()
	path := c.Launch.CgroupsPath
	if path == "" {
		path = "/minke/" + c.ID
	}
	if c.group, warnings, err = cgroup.Create(path, c.Launch.Resources); err != nil {
		return nil, nil, err
	}
	c.Cgroups = c.group.Paths
	p := spawn.Process{Launch: c.Launch, Config: int(config.Fd()), Stdio: [3]int{0, 1, 2}, Target: -1, User: -1}
	if c.Launch.User != nil {
		p.User, files = int(files[0].Fd()), files[1:]
	}
	for _, f := range files {
		p.Extra = append(p.Extra, int(f.Fd()))
	}
	p.Extra = append(p.Extra, o.extra()...)
	child, err := c.clone(p)
	if err != nil {
		return nil, nil, errors.Join(err, c.group.Remove())
	}
	defer child.Conn.Close()
	defer unix.Close(child.Pidfd)
	c.Pid, c.Started = child.Pid, startTime(child.Pid)
	if tty, err = c.raise(child); err != nil {
		discard(child)
		return nil, nil, errors.Join(err, c.group.Kill(), c.group.Remove())
	}
	return warnings, tty, nil
}

// discard ends a process that is our child.
func discard(child spawn.Child) {
	unix.Kill(child.Pid, unix.SIGKILL)
	unix.Wait4(child.Pid, nil, 0, nil)
}

// clone starts a process in the container's cgroups.
func (c *Container) clone(p spawn.Process) (spawn.Child, error) {
	dir, err := c.group.Dir()
	if err != nil {
		return spawn.Child{}, err
	}
	p.Cgroup, p.Enter = -1, c.group.Enter
	if dir != nil {
		defer dir.Close()
		p.Cgroup = int(dir.Fd())
	}
	child, err := spawn.Start(p)
	if err != nil {
		return child, err
	}
	if p.Launch.OOMScoreAdj != nil {
		err = spawn.SetOOMScore(child.Pid, *p.Launch.OOMScoreAdj)
	}
	if err == nil {
		err = boot.SetRlimits(child.Pid, p.Launch.Limits)
	}
	if err != nil {
		discard(child)
	}
	return child, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// raise takes a new init to where it waits to be started, and writes the state.
func (c *Container) raise(child spawn.Child) (tty *os.File, err error) {
	state := c.State()
	state.Status, state.Pid = specs.StateCreating, c.Pid
	if err := boot.SendFirst(child.Conn, c.Launch, &state); err != nil {
		return nil, fmt.Errorf("the container's init ended before it was ready: %w", err)
	}
	for ready := false; !ready; {
		var r boot.Report
		files, err := child.Conn.Recv(&r)
		switch {
		case err != nil:
			return nil, errors.New("the container's init ended before it was ready")
		case r.Err != nil:
			return nil, r.Err.Err()
		case r.Built:
			if err := c.hooksBeforePivot(&state); err != nil {
				return nil, err
			}
			if err := child.Conn.Send(boot.Word{}); err != nil {
				return nil, err
			}
		default:
			ready = true
			if len(files) == 1 {
				tty = files[0]
			}
		}
	}
	socket, err := c.listen()
	if err != nil {
		return tty, err
	}
	defer unix.Close(socket)
	if err := child.Conn.Send(boot.Word{Listen: true}, socket); err != nil {
		return tty, err
	}
	return tty, c.save()
}

func (c *Container) hooksBeforePivot(state *specs.State) error {
	if err := hookList(c.Hooks.Prestart).Run(state, (*exec.Cmd).Run); err != nil {
		return err
	}
	return hookList(c.Hooks.CreateRuntime).Run(state, (*exec.Cmd).Run)
}

// listen makes the socket on which the init waits. Addresses of sockets are
// short; the directory's descriptor makes them so.
func (c *Container) listen() (int, error) {
	dir, err := os.Open(c.root.dir(c.ID))
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketIn(dir)}); err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make %s: %w", c.path("start.sock"), err)
	}
	return fd, nil
}

func socketIn(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d/start.sock", dir.Fd()) }

// Start lets the init run the program. A *wire.ProgramError says that it could
// not be run.
func (c *Container) Start() error {
	if s := c.status(); s != specs.StateCreated {
		return errdef.Conflict.Errorf("cannot start a container in the %s state", s)
	}
	dir, err := os.Open(c.root.dir(c.ID))
	if err != nil {
		return err
	}
	defer dir.Close()
	conn, err := wire.Dial(socketIn(dir))
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	defer conn.Close()
	if err := c.group.Add(c.Pid); err != nil {
		return err
	}
	state := c.State()
	if err := conn.Send(boot.Word{State: &state}); err != nil {
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	if err := awaitExec(conn); err != nil {
		return err
	}
	if err := os.Remove(c.path("start.sock")); err != nil {
		return err
	}
	if c.Hooks == nil || len(c.Hooks.Poststart) == 0 {
		return nil
	}
	state.Status = specs.StateRunning
	if err := hookList(c.Hooks.Poststart).Run(&state, (*exec.Cmd).Run); err != nil {
		c.Kill(unix.SIGKILL, true)
		return err
	}
	return nil
}

// awaitExec returns nil when the process became the program.
func awaitExec(conn *wire.Conn) error {
	for {
		var r boot.Report
		switch _, err := conn.Recv(&r); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case r.Err != nil:
			return r.Err.Err()
		}
	}
}

// Exec starts a further process with our 0–2, unless it has a terminal. It is
// our child.
func (c *Container) Exec(p *specs.Process, o Options) (pid int, tty *os.File, err error) {
	if what := plan.Refused(p); what != "" {
		return 0, nil, errdef.Unsupported.Errorf("this runtime does not do %s", what)
	}
	switch s := c.status(); s {
	case specs.StateStopped:
		return 0, nil, errdef.Conflict.Errorf("cannot exec in a stopped container")
	case Paused:
		return 0, nil, errdef.Conflict.Errorf("cannot exec in a paused container")
	}
	target, err := c.pidfd()
	if err != nil {
		return 0, nil, err
	}
	defer unix.Close(target)
	config, err := plan.ConfigFile(&boot.Config{Process: p, PreserveFDs: o.PreserveFDs})
	if err != nil {
		return 0, nil, err
	}
	defer config.Close()
	user := -1
	if c.Launch.User != nil {
		user = target
	}
	child, err := c.clone(spawn.Process{
		Launch: &wire.Launch{Terminal: p.Terminal, OOMScoreAdj: p.OOMScoreAdj, Limits: p.Rlimits}, Config: int(config.Fd()),
		Stdio: [3]int{0, 1, 2}, Target: target, User: user, Extra: o.extra(),
	})
	if err != nil {
		return 0, nil, err
	}
	defer child.Conn.Close()
	defer unix.Close(child.Pidfd)
	if tty, err = c.join(child); err != nil {
		discard(child)
		return 0, nil, err
	}
	return child.Pid, tty, nil
}

// join takes a further process all the way to its program.
func (c *Container) join(child spawn.Child) (tty *os.File, err error) {
	if err := boot.SendFirst(child.Conn, c.Launch, nil); err != nil {
		return nil, err
	}
	var r boot.Report
	files, err := child.Conn.Recv(&r)
	if err != nil {
		return nil, errdef.Conflict.Errorf("the process ended before it was ready; did its container stop?")
	}
	if err := r.Err.Err(); err != nil {
		return nil, err
	}
	if len(files) == 1 {
		tty = files[0]
	}
	if err := c.group.Add(child.Pid); err != nil {
		return tty, err
	}
	if err := child.Conn.Send(boot.Word{}); err != nil {
		return tty, err
	}
	return tty, awaitExec(child.Conn)
}
