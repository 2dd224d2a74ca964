package monitor

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/reap"
	"github.com/minke-os/minke/runtime/internal/spawn"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// keepEnded is how many ended execs of a container are remembered for
// WaitExec. Health checks run all day and nobody asks twice.
const keepEnded = 64

// process is a further process in a container. Its streams belong to the
// client alone; the monitor keeps the terminal to resize it.
type process struct {
	pidfd   *os.File // nil before it runs and after its end
	tty     *os.File
	adopted chan int // if set, it is somebody else's child; its exit code
	done    chan struct{}
	exit    *wire.Exit // when done
}

// handles are what a client keeps of it for the next monitor.
func (p *process) handles() (names []string, fds []int) {
	names, fds = []string{wire.HandlePidfd}, []int{rawFD(p.pidfd)}
	if p.tty != nil {
		names, fds = append(names, wire.HandleTTY), append(fds, rawFD(p.tty))
	}
	return names, fds
}

func (c *container) exec(ctx context.Context, req wire.Request, files []*os.File) (wire.Reply, []*os.File, error) {
	if len(files) != 1 || req.Launch == nil {
		return wire.Reply{}, nil, errdef.Invalid.Errorf("exec: incomplete request")
	}
	p := &process{done: make(chan struct{})}
	if err := c.reserve(req.ExecID, p); err != nil {
		return wire.Reply{}, nil, err
	}
	pid, names, ours, err := c.launchExec(p, req, files[0])
	if err != nil {
		c.mu.Lock()
		delete(c.execs, req.ExecID)
		c.mu.Unlock()
		return wire.Reply{}, nil, err
	}
	return wire.Reply{Pid: pid, Handles: names}, ours, nil
}

func (c *container) reserve(id string, p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.status == paused:
		return errdef.Conflict.Errorf("container %s is paused, unpause the container before exec", c.id)
	case c.status != running:
		return errdef.Conflict.Errorf("container %s is not running", c.id)
	case c.execs[id] != nil:
		return errdef.Conflict.Errorf("exec %s exists already in container %s", id, c.id)
	}
	c.execs[id] = p
	return nil
}

// launchExec returns the client's ends of the streams, with their names.
func (c *container) launchExec(p *process, req wire.Request, config *os.File) (pid int, names []string, files []*os.File, err error) {
	l := req.Launch
	var ours, theirs stdio
	if !l.Terminal {
		if ours, theirs, err = openPipes(req.Streams); err != nil {
			return 0, nil, nil, err
		}
		defer theirs.close()
	}
	if c.launch.Foreign != nil {
		pid, fd, tty, err := c.execForeign(config, req.ExecID, l.Terminal, theirs)
		theirs.close()
		if err != nil {
			ours.close()
			return 0, nil, nil, err
		}
		return c.launched(p, req, pid, pollable(fd, "pidfd"), tty, ours)
	}
	spawned := spawn.Process{Launch: l, Config: rawFD(config), Stdio: theirs.fds(), Target: rawFD(c.pidfd), User: -1}
	if c.launch.User != nil {
		theirs.give(c.launch.User)
		spawned.User = rawFD(c.pidfd)
	}
	child, err := c.clone(spawned)
	if err != nil {
		ours.close()
		return 0, nil, nil, err
	}
	defer child.Conn.Close()
	pidfd := pollable(child.Pidfd, "pidfd")
	tty, err := c.bootExec(child)
	theirs.close() // else the client would never see the end of its streams
	if err != nil {
		unix.Kill(child.Pid, unix.SIGKILL)
		reap.Wait(pidfd)
		c.m.children.forget(child.Pid)
		pidfd.Close()
		ours.close()
		return 0, nil, nil, err
	}
	return c.launched(p, req, child.Pid, pidfd, tty, ours)
}

// launched watches the new process.
func (c *container) launched(p *process, req wire.Request, pid int, pidfd, tty *os.File, ours stdio) (int, []string, []*os.File, error) {
	if tty != nil {
		tty = keep(tty)
		ours = terminalEnds(tty, req.Streams)
	}
	c.mu.Lock()
	p.pidfd, p.tty = pidfd, tty
	kept, fds := p.handles()
	c.mu.Unlock()
	c.m.tell(wire.Event{Kind: wire.EventHandles, ID: c.id, ExecID: req.ExecID, Handles: kept}, fds...)
	go func() {
		code, err := reap.Wait(pidfd)
		c.m.children.forget(pid)
		if err != nil {
			code = lostCode
		}
		c.execEnded(p, req.ExecID, code)
	}()
	names, files := ours.named()
	return pid, names, files, nil
}

// bootExec takes the process all the way to its program and returns its
// terminal, if it has one.
func (c *container) bootExec(child spawn.Child) (*os.File, error) {
	var r boot.Report
	files, err := child.Conn.Recv(&r)
	if err != nil {
		return nil, errdef.Conflict.Errorf("the process ended before it was ready; did its container stop?")
	}
	if err := r.Err.Err(); err != nil {
		closeFiles(files)
		return nil, err
	}
	err = c.group.Add(child.Pid)
	if err == nil {
		err = child.Conn.Send(boot.Word{})
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	if err := awaitExec(child.Conn); err != nil {
		closeFiles(files)
		return nil, err
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files[0], nil
}

// terminalEnds are a client's ends of a terminal: the master, both ways.
func terminalEnds(tty *os.File, want wire.Streams) stdio {
	var s stdio
	if want.Stdin {
		s.in = os.NewFile(uintptr(dup(rawFD(tty))), "terminal")
	}
	if want.Stdout {
		s.out = os.NewFile(uintptr(dup(rawFD(tty))), "terminal")
	}
	return s
}

// named lists what there is of s under its handles' names.
func (s stdio) named() (names []string, files []*os.File) {
	for _, e := range []struct {
		name string
		f    *os.File
	}{{wire.HandleStdin, s.in}, {wire.HandleStdout, s.out}, {wire.HandleStderr, s.err}} {
		if e.f != nil {
			names, files = append(names, e.name), append(files, e.f)
		}
	}
	return names, files
}

// adoptExec watches a process that a monitor before us started.
func (c *container) adoptExec(id string, h map[string]*os.File) error {
	if h[wire.HandlePidfd] == nil {
		return errdef.Invalid.Errorf("adopt exec %s of container %s: handles are missing", id, c.id)
	}
	p := &process{pidfd: keep(own(h[wire.HandlePidfd])), tty: keep(own(h[wire.HandleTTY])), adopted: make(chan int, 1), done: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[id] != nil {
		return errdef.Conflict.Errorf("exec %s of container %s is no orphan", id, c.id)
	}
	c.execs[id] = p
	go func() { c.execEnded(p, id, awaitAdopted(p.pidfd, p.adopted)) }()
	return nil
}

func (c *container) execEnded(p *process, id string, code int) {
	c.m.tell(wire.Event{Kind: wire.EventGone, ID: c.id, ExecID: id})
	c.mu.Lock()
	defer c.mu.Unlock()
	p.pidfd.Close()
	p.pidfd = nil
	p.exit = &wire.Exit{Code: code, At: time.Now().UTC()}
	if p.tty != nil {
		p.tty.Close()
		p.tty = nil
	}
	close(p.done)
	if c.ended = append(c.ended, id); len(c.ended) > keepEnded {
		delete(c.execs, c.ended[0])
		c.ended = c.ended[1:]
	}
}

func (c *container) waitExec(ctx context.Context, id string) (wire.Reply, []*os.File, error) {
	c.mu.Lock()
	p := c.execs[id]
	c.mu.Unlock()
	if p == nil {
		return wire.Reply{}, nil, errdef.NotFound.Errorf("no exec %s in container %s", id, c.id)
	}
	select {
	case <-p.done:
		return wire.Reply{Exit: p.exit}, nil, nil
	case <-ctx.Done():
		return wire.Reply{}, nil, ctx.Err()
	}
}
