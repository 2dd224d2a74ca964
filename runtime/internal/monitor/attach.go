package monitor

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// attach gives a client ends of the container's streams. The connection stays
// open as long as the client is attached; when it breaks, the client died and
// its input ended.
func (m *Monitor) attach(conn *wire.Conn, req wire.Request) {
	c, err := m.container(req.ID)
	if err == nil {
		<-c.settled // whoever asks has its handles, or hears that nobody has
	}
	var files []*os.File
	var names []string
	if err == nil {
		files, names, err = c.attachStreams(req.Streams)
	}
	if err != nil {
		conn.Send(wire.Reply{Err: wire.ErrorOf(err)})
		return
	}
	err = conn.Send(wire.Reply{Handles: names}, fdsOf(files)...)
	closeFiles(files)
	for err == nil {
		var more wire.Request
		if _, err = conn.Recv(&more); more.Op == wire.Detach {
			return
		}
		if req.Streams.Stdin && c.launch.StdinOnce {
			c.closeStdin()
		}
	}
}

func (c *container) attachStreams(want wire.Streams) (files []*os.File, names []string, err error) {
	if c.launch.Terminal {
		<-c.booted // the terminal is made by the init, which always ends or boots
		if c.bootErr != nil {
			return nil, nil, c.bootErr
		}
		want.Stderr = false
	}
	hand := func(name string, f *os.File) {
		files, names = append(files, f), append(names, name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if want.Stdin {
		in, err := c.inputLocked()
		if err != nil {
			return nil, nil, err
		}
		hand(wire.HandleStdin, in)
	}
	for _, s := range []struct {
		want bool
		name string
		out  *output
	}{{want.Stdout, wire.HandleStdout, c.out}, {want.Stderr, wire.HandleStderr, c.err}} {
		if !s.want {
			continue
		}
		r, w, err := pipe()
		if err != nil {
			closeFiles(files)
			return nil, nil, err
		}
		hand(s.name, r)
		if sink := keep(w); s.out != nil {
			s.out.add(sink)
		} else {
			sink.Close()
		}
	}
	return files, names, nil
}

// inputLocked is a duplicate of where the container's input goes in.
func (c *container) inputLocked() (*os.File, error) {
	in := c.stdin
	if c.launch.Terminal {
		in = c.tty
	}
	if in == nil {
		return nil, errdef.Conflict.Errorf("container %s has no open standard input; create it with one (-i)", c.id)
	}
	fd := dup(rawFD(in))
	if fd < 0 {
		return nil, os.NewSyscallError("dup", unix.EMFILE)
	}
	return os.NewFile(uintptr(fd), "stdin"), nil
}

func (c *container) closeStdin() {
	c.mu.Lock()
	in := c.stdin
	c.stdin = nil
	c.mu.Unlock()
	if in == nil {
		return
	}
	in.Close()
	c.m.tell(wire.Event{Kind: wire.EventStdin, ID: c.id})
}

// handlesLocked is what a client keeps for the next monitor.
func (c *container) handlesLocked() (names []string, fds []int) {
	add := func(name string, f *os.File) {
		if f == nil {
			return
		}
		if fd := rawFD(f); fd >= 0 {
			names, fds = append(names, name), append(fds, fd)
		}
	}
	add(wire.HandlePidfd, c.pidfd)
	add(wire.HandleStdin, c.stdin)
	add(wire.HandleJournal, c.journal.f)
	add(wire.HandleTTY, c.tty)
	if c.tty == nil {
		add(wire.HandleStdout, c.out.source())
		add(wire.HandleStderr, c.err.source())
	}
	if c.conn != nil {
		names, fds = append(names, wire.HandleInit), append(fds, c.conn.FD())
	}
	return names, fds
}

func (o *output) source() *os.File {
	if o == nil {
		return nil
	}
	return o.src
}

func (c *container) sendHandles(w *watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isDrained || c.pidfd == nil || c.journal == nil {
		return
	}
	names, fds := c.handlesLocked()
	w.send(wire.Event{Kind: wire.EventHandles, ID: c.id, Handles: names}, fds...)
}

// sendExecHandles tells a new watcher of what runs besides.
func (c *container) sendExecHandles(w *watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.execs {
		if p.pidfd != nil {
			names, fds := p.handles()
			w.send(wire.Event{Kind: wire.EventHandles, ID: c.id, ExecID: id, Handles: names}, fds...)
		}
	}
}

func (m *Monitor) tellHandles(c *container) {
	m.mu.Lock()
	var all []*watcher
	for w := range m.watchers {
		all = append(all, w)
	}
	m.mu.Unlock()
	for _, w := range all {
		c.sendHandles(w)
	}
}
