package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/cgroup"
	"github.com/minke-os/minke/runtime/internal/forward"
	"github.com/minke-os/minke/runtime/internal/reap"
	"github.com/minke-os/minke/runtime/internal/spawn"
	"github.com/minke-os/minke/runtime/internal/wire"
	"github.com/minke-os/minke/runtime/jsonlog"
)

// container is one container from its creation until it is deleted.
type container struct {
	m       *Monitor
	id      string
	launch  *wire.Launch
	pid     int
	pidfd   *os.File
	group   *cgroup.Group
	log     *jsonlog.Writer // nil: discarded
	queue   *queue          // of output on its way to the log; nil if the container waits for it
	journal *journal
	copies  sync.WaitGroup // of output into the log

	booted  chan struct{} // closed when bootErr is known and tty is set
	bootErr error
	adopted chan int      // if set, the process is somebody else's child; its exit code
	stopped chan struct{} // closed when the first process has ended
	drained chan struct{} // closed when, besides, all output is written

	mu     sync.Mutex
	conn   *wire.Conn // to an init that was not started, else nil
	status string
	exit   *wire.Exit
	stdin  *os.File // our end
	tty    *os.File
	out    *output
	err    *output
	execs  map[string]*process
	ended  []string // execs that ended, oldest first
	orphan *saved   // until it is adopted or lost

	settled chan struct{} // closed when it is no orphan

	isDrained bool
}

const (
	created = "created"
	running = "running"
	paused  = "paused"
	stopped = "stopped"
)

func (m *Monitor) newContainer(id string, l *wire.Launch) *container {
	return &container{
		m: m, id: id, launch: l, status: created,
		booted: make(chan struct{}), stopped: make(chan struct{}), drained: make(chan struct{}),
		execs: map[string]*process{}, group: &cgroup.Group{}, settled: closed,
	}
}

// closed is for what need not be waited for.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (m *Monitor) create(req wire.Request, files []*os.File) (wire.Reply, []*os.File, error) {
	if len(files) == 0 || req.Launch == nil || req.ID == "" || req.Launch.User != nil && len(files) < 2 {
		return wire.Reply{}, nil, errdef.Invalid.Errorf("create: incomplete request")
	}
	c := m.newContainer(req.ID, req.Launch)
	m.mu.Lock()
	taken := m.containers[c.id] != nil
	if !taken {
		m.containers[c.id] = c
	}
	m.mu.Unlock()
	if taken {
		return wire.Reply{}, nil, errdef.Conflict.Errorf("container %s exists already", c.id)
	}
	warnings, err := c.launchInit(files)
	if err != nil {
		m.forget(c)
		return wire.Reply{}, nil, err
	}
	c.m.tellHandles(c)
	return wire.Reply{Pid: c.pid, Warnings: warnings}, nil, nil
}

func (m *Monitor) forget(c *container) {
	m.mu.Lock()
	delete(m.containers, c.id)
	m.mu.Unlock()
}

// launchInit clones the init and begins to watch it.
func (c *container) launchInit(files []*os.File) (warnings []string, err error) {
	if c.launch.Foreign != nil {
		return nil, c.launchForeign(files[0])
	}
	if c.group, warnings, err = cgroup.Create(c.cgroupPath(), c.launch.Resources); err != nil {
		return nil, err
	}
	if err := c.spawnInit(files); err != nil {
		c.group.Remove()
		return nil, err
	}
	c.save()
	go c.awaitBoot()
	go c.awaitEnd()
	return warnings, nil
}

// launchForeign is launchInit by another runtime, which makes the cgroup, too.
func (c *container) launchForeign(config *os.File) error {
	err := c.createForeign(config)
	var group *cgroup.Group
	if err == nil {
		group, err = cgroup.Existing(c.cgroupPath())
	}
	if err != nil {
		c.runForeign([]string{"delete", "--force"}, stdio{}, nil, nil) // if it knows it at all
		return errors.Join(err, os.RemoveAll(c.bundle()))
	}
	c.mu.Lock()
	c.group = group
	c.mu.Unlock()
	c.save()
	go c.awaitEnd()
	return nil
}

func (c *container) cgroupPath() string {
	if c.launch.CgroupsPath != "" {
		return c.launch.CgroupsPath
	}
	return "/minke/" + c.id
}

func (c *container) spawnInit(files []*os.File) error {
	if err := c.openLog(); err != nil {
		return err
	}
	ours, theirs, err := openStdio(c.launch)
	if err != nil {
		return err
	}
	defer theirs.close()
	theirs.give(c.launch.User)
	p := spawn.Process{Launch: c.launch, Config: rawFD(files[0]), Stdio: theirs.fds(), Target: -1, User: -1}
	if files = files[1:]; c.launch.User != nil {
		p.User, files = rawFD(files[0]), files[1:]
	}
	p.Extra = fdsOf(files)
	child, err := c.clone(p)
	if err != nil {
		ours.close()
		return err
	}
	c.pid, c.pidfd, c.conn, c.stdin = child.Pid, pollable(child.Pidfd, "pidfd"), child.Conn, keep(ours.in)
	c.copies.Add(1) // for the terminal that boot may bring, or nothing
	if ours.out != nil {
		c.out, c.err = c.copyFrom(keep(ours.out), 0), c.copyFrom(keep(ours.err), 1)
	}
	return nil
}

// clone starts a process in the container's cgroup and gives it leave to
// become the container's.
func (c *container) clone(p spawn.Process) (spawn.Child, error) {
	dir, err := c.group.Dir()
	if err != nil {
		return spawn.Child{}, err
	}
	p.Cgroup, p.Enter = -1, c.group.Enter
	if dir != nil {
		defer dir.Close()
		p.Cgroup = int(dir.Fd())
	}
	child, err := c.m.children.start(p)
	if err != nil {
		return child, err
	}
	if err := c.admit(p.Launch, child); err != nil {
		unix.Kill(child.Pid, unix.SIGKILL)
		unix.Wait4(child.Pid, nil, 0, nil)
		c.m.children.forget(child.Pid)
		unix.Close(child.Pidfd)
		child.Conn.Close()
		return child, err
	}
	return child, nil
}

func (c *container) admit(l *wire.Launch, child spawn.Child) error {
	if l.OOMScoreAdj != nil {
		if err := spawn.SetOOMScore(child.Pid, *l.OOMScoreAdj); err != nil {
			return err
		}
	}
	if err := boot.SetRlimits(child.Pid, l.Limits); err != nil {
		return err
	}
	return boot.SendFirst(child.Conn, c.launch, c.hookState(child.Pid))
}

func (c *container) openLog() (err error) {
	if l := c.launch.Log; l.Path != "" || l.Forward != nil {
		o := jsonlog.Options{Path: l.Path, MaxSize: l.MaxSize, MaxFiles: l.MaxFiles, Compress: l.Compress, Attrs: l.Attrs}
		if l.Forward != nil {
			o.Sink = forward.New(*l.Forward)
		}
		if c.log, err = jsonlog.Open(o); err != nil {
			return fmt.Errorf("open the log: %w", err)
		}
		if l.Buffer > 0 {
			c.queue = newQueue(l.Buffer)
		}
	}
	if c.journal == nil {
		c.journal, err = newJournal()
	}
	return err
}

// awaitBoot waits for the init to be ready to exec.
func (c *container) awaitBoot() {
	defer c.copies.Done()
	defer close(c.booted)
	var r boot.Report
	files, err := c.conn.Recv(&r)
	if err == nil && r.Built {
		if c.bootErr = c.runHooks(); c.bootErr != nil {
			unix.PidfdSendSignal(rawFD(c.pidfd), unix.SIGKILL, nil, 0)
			return
		}
		r = boot.Report{}
		files, err = c.conn.Recv(&r)
	}
	if err != nil {
		c.bootErr = errors.New("the container's init ended before it was ready")
		return
	}
	if c.bootErr = r.Err.Err(); c.bootErr != nil || len(files) == 0 {
		closeFiles(files)
		return
	}
	c.useTerminal(files[0])
}

// hookState is what hooks are told, nil where there are none.
func (c *container) hookState(pid int) *specs.State {
	if c.launch.Hooks == nil {
		return nil
	}
	s := c.launch.Hooks.State
	s.Pid, s.Status = pid, specs.StateCreating
	return &s
}

// runHooks runs those that see the host, while the init waits before it enters
// the root.
func (c *container) runHooks() error {
	if h := c.launch.Hooks; h != nil {
		if err := boot.HookList(h.List).Run(c.hookState(c.pid), c.m.children.run); err != nil {
			return err
		}
	}
	return c.conn.Send(boot.Word{})
}

func (c *container) useTerminal(f *os.File) {
	tty := keep(f)
	c.mu.Lock()
	c.tty = tty
	c.mu.Unlock()
	out := c.copyFrom(tty, 0)
	c.mu.Lock()
	c.out = out
	c.mu.Unlock()
	c.m.tellHandles(c)
}

// awaitEnd waits for the first process's end and collects it.
func (c *container) awaitEnd() {
	ctx, cancel := context.WithCancel(context.Background())
	if c.limitsMemory() {
		go c.group.WatchOOM(ctx, func() { c.m.tell(wire.Event{Kind: wire.EventOOM, ID: c.id}) })
	}
	code := c.awaitCode()
	cancel()
	if !c.ownsPids() {
		c.group.Kill() // the kernel does it for a pid namespace
	}
	c.mu.Lock()
	if c.exit == nil { // an earlier monitor may have seen it
		c.exit = &wire.Exit{Code: code, At: time.Now().UTC(), OOM: c.group.OOMKills() > 0}
	}
	c.status = stopped
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
	out, errs := c.out, c.err
	c.saveLocked()
	c.mu.Unlock()
	close(c.stopped)
	out.hurry()
	errs.hurry()
	c.copies.Wait()
	c.queue.finish()
	if c.log != nil {
		c.log.Close()
	}
	c.mu.Lock()
	c.isDrained = true
	c.journal.close()
	c.saveLocked()
	c.mu.Unlock()
	close(c.drained)
}

func (c *container) limitsMemory() bool {
	r := c.launch.Resources
	return r != nil && r.Memory != nil && r.Memory.Limit != nil && *r.Memory.Limit > 0
}

func (c *container) ownsPids() bool {
	for _, ns := range c.launch.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path == ""
		}
	}
	return false
}

func (c *container) awaitCode() int {
	if c.exit != nil {
		return c.exit.Code
	}
	if c.adopted != nil {
		return awaitAdopted(c.pidfd, c.adopted)
	}
	code, err := reap.Wait(c.pidfd)
	c.m.children.forget(c.pid)
	if err != nil {
		return lostCode // somebody else collected our child
	}
	return code
}

func (c *container) start(ctx context.Context) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	if c.launch.Foreign != nil {
		return c.startForeign()
	}
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn == nil {
		return errdef.Conflict.Errorf("container %s was started already", c.id)
	}
	defer conn.Close()
	if err := c.group.Add(c.pid); err != nil {
		return err
	}
	if err := conn.Send(boot.Word{}); err != nil {
		return fmt.Errorf("start container %s: its init is gone: %w", c.id, err)
	}
	if err := awaitExec(conn); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == created {
		c.status = running
		return c.saveLocked()
	}
	return nil
}

// awaitExec returns nil when the process became the program. A report that is
// still there says nothing new.
func awaitExec(conn *wire.Conn) error {
	for {
		var r boot.Report
		files, err := conn.Recv(&r)
		closeFiles(files)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || r.Err != nil {
			return cmp.Or(err, r.Err.Err())
		}
	}
}

// ready waits until the init can be started or has failed.
func (c *container) ready(ctx context.Context) error {
	select {
	case <-c.booted:
		return c.bootErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *container) kill(sig unix.Signal, all bool) error {
	select {
	case <-c.stopped:
		return errdef.Conflict.Errorf("container %s is not running", c.id)
	default:
	}
	if all {
		if err := c.group.Signal(sig); err != nil {
			return fmt.Errorf("kill all of container %s: %w", c.id, err)
		}
	}
	if err := unix.PidfdSendSignal(rawFD(c.pidfd), sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("send %v to container %s: %w", sig, c.id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if sig == unix.SIGKILL && c.status == paused {
		c.status = running
		return c.group.Thaw() // version 1 lets nobody die frozen
	}
	return nil
}

func (c *container) pause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.status {
	case paused:
		return errdef.Conflict.Errorf("container %s is already paused", c.id)
	case running:
	default:
		return errdef.Conflict.Errorf("container %s is not running", c.id)
	}
	if err := c.group.Freeze(); err != nil {
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	c.status = paused
	return nil
}

func (c *container) resume() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status != paused {
		return errdef.Conflict.Errorf("container %s is not paused", c.id)
	}
	if err := c.group.Thaw(); err != nil {
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	c.status = running
	return nil
}

func (c *container) update(r *specs.LinuxResources) error {
	_, err := c.group.Set(r)
	if err == nil && r != nil {
		err = c.group.ChangeDevices(r.Devices)
	}
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) wait(ctx context.Context) (wire.Reply, []*os.File, error) {
	select {
	case <-c.drained:
		return wire.Reply{Exit: c.exit}, nil, nil
	case <-ctx.Done():
		return wire.Reply{}, nil, ctx.Err()
	}
}

func (c *container) state() wire.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.State{ID: c.id, Pid: c.pid, Bundle: c.launch.Bundle, Status: c.status, Exit: c.exit, Cgroups: c.group.Paths}
}

func (m *Monitor) remove(ctx context.Context, c *container) error {
	c.mu.Lock()
	status := c.status
	c.mu.Unlock()
	if status == running || status == paused {
		return errdef.Conflict.Errorf("container %s is %s; stop it first", c.id, status)
	}
	if c.pidfd != nil {
		unix.PidfdSendSignal(rawFD(c.pidfd), unix.SIGKILL, nil, 0)
	}
	if err := c.group.Kill(); err != nil {
		return fmt.Errorf("kill what is left of container %s: %w", c.id, err)
	}
	<-c.drained
	if c.launch.Foreign != nil {
		if err := c.deleteForeign(); err != nil {
			return fmt.Errorf("delete container %s: %w", c.id, err)
		}
	}
	if err := c.group.Remove(); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := c.removeState(); err != nil {
		return err
	}
	m.forget(c)
	if c.pidfd != nil {
		c.pidfd.Close()
	}
	m.tell(wire.Event{Kind: wire.EventGone, ID: c.id})
	return nil
}

func (c *container) resize(ctx context.Context, req wire.Request) error {
	tty, err := c.terminal(ctx, req.ExecID)
	if err != nil {
		return err
	}
	w := unix.Winsize{Col: req.Width, Row: req.Height}
	return os.NewSyscallError("resize terminal", unix.IoctlSetWinsize(rawFD(tty), unix.TIOCSWINSZ, &w))
}

func (c *container) terminal(ctx context.Context, execID string) (*os.File, error) {
	if err := c.ready(ctx); execID == "" && err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	tty := c.tty
	if execID != "" {
		p := c.execs[execID]
		if p == nil {
			return nil, errdef.NotFound.Errorf("no exec %s in container %s", execID, c.id)
		}
		tty = p.tty
	}
	if tty == nil {
		return nil, errdef.Conflict.Errorf("container %s: the process has no terminal", c.id)
	}
	return tty, nil
}
