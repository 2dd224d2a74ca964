// Package monitor is the parent of all containers.
//
// It listens on a socket in its directory; what it can be asked is in package
// wire, one connection for each request. It keeps of a container only what it
// needs to watch it: pidfd, pipes, log, cgroup. The container's configuration
// passes through unread, on a descriptor, to the init.
//
// One monitor at a time serves a directory; a lock file sees to it. Everything
// a next monitor needs is in the container's state file, or is a descriptor of
// which the watching client has a duplicate.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// SocketName and LockName are files in the monitor's directory.
const (
	SocketName = "monitor.sock"
	LockName   = "monitor.lock"
)

// Monitor is the server.
type Monitor struct {
	dir      string
	listener *wire.Listener
	trim     trimmer
	children children

	mu         sync.Mutex
	containers map[string]*container
	watchers   map[*watcher]bool
	closing    bool
}

// Run serves dir until it is asked to shut down. It calls ready once when
// clients can connect.
func Run(dir string, ready func()) error {
	debug.SetGCPercent(25) // garbage is collected at 1 MB, not at 4
	lock, err := acquire(filepath.Join(dir, LockName))
	if err != nil {
		return err
	}
	defer lock.Close()
	l, err := wire.Listen(filepath.Join(dir, SocketName))
	if err != nil {
		return err
	}
	m := &Monitor{dir: dir, listener: l, containers: map[string]*container{}, watchers: map[*watcher]bool{}}
	if err := m.children.adoptOrphans(); err != nil {
		return err
	}
	if err := m.load(); err != nil {
		return fmt.Errorf("load the containers' state: %w", err)
	}
	ready()
	m.trim.busy()
	return m.serve()
}

func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// One that was just killed may still be closing its files.
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, errdef.Busy.Errorf("another monitor serves %s", filepath.Dir(path))
		}
	}
}

func (m *Monitor) serve() error {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		conn, err := m.listener.Accept()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		calls.Go(func() {
			defer conn.Close()
			m.call(conn)
		})
	}
}

// call reads a request and answers it. Whether the client is still there is
// seen by reading on: it sends nothing more, but for Attach.
func (m *Monitor) call(conn *wire.Conn) {
	var req wire.Request
	files, err := conn.Recv(&req)
	if err != nil {
		return
	}
	m.trim.busy()
	defer closeFiles(files)
	switch req.Op {
	case wire.Watch:
		m.watch(conn)
		return
	case wire.Attach:
		m.attach(conn, req)
		return
	}
	ctx, stop := untilHangup(conn)
	reply, send, err := m.do(ctx, req, files)
	if err != nil {
		reply = wire.Reply{Err: wire.ErrorOf(err)}
	}
	conn.Send(reply, fdsOf(send)...)
	closeFiles(send)
	stop()
}

// untilHangup returns a context that ends when the client closes conn. After
// stop nothing reads from conn any more.
func untilHangup(conn *wire.Conn) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		var ignored struct{}
		conn.Recv(&ignored)
	}()
	return ctx, func() {
		conn.Interrupt()
		<-done
	}
}

// do answers all requests that have one answer. The files it returns are sent
// along and closed.
func (m *Monitor) do(ctx context.Context, req wire.Request, files []*os.File) (wire.Reply, []*os.File, error) {
	switch req.Op {
	case wire.Create:
		return m.create(req, files)
	case wire.List:
		return m.list(), nil, nil
	case wire.Shutdown:
		return wire.Reply{}, nil, m.shutdown()
	case wire.Adopt:
		return wire.Reply{}, nil, m.adopt(req, files)
	case wire.Settle:
		return wire.Reply{}, nil, m.settle()
	}
	c, err := m.container(req.ID)
	if err != nil {
		return wire.Reply{}, nil, err
	}
	// Who asks may have been faster than the one who brings the handles back.
	select {
	case <-c.settled:
	case <-ctx.Done():
		return wire.Reply{}, nil, ctx.Err()
	}
	switch req.Op {
	case wire.Start:
		return wire.Reply{}, nil, c.start(ctx)
	case wire.Kill:
		return wire.Reply{}, nil, c.kill(unix.Signal(req.Signal), req.All)
	case wire.Wait:
		return c.wait(ctx)
	case wire.Pause:
		return wire.Reply{}, nil, c.pause()
	case wire.Resume:
		return wire.Reply{}, nil, c.resume()
	case wire.Update:
		return wire.Reply{}, nil, c.update(req.Resources)
	case wire.Delete:
		return wire.Reply{}, nil, m.remove(ctx, c)
	case wire.Exited:
		return wire.Reply{}, nil, c.exited(req.ExecID, req.Code)
	case wire.Exec:
		return c.exec(ctx, req, files)
	case wire.WaitExec:
		return c.waitExec(ctx, req.ExecID)
	case wire.Resize:
		return wire.Reply{}, nil, c.resize(ctx, req)
	}
	return wire.Reply{}, nil, errdef.Unsupported.Errorf("the monitor does not know the operation %q; is it of another version?", req.Op)
}

func (m *Monitor) container(id string) (*container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[id]; c != nil {
		return c, nil
	}
	return nil, errdef.NotFound.Errorf("no container %s", id)
}

func (m *Monitor) list() wire.Reply {
	m.mu.Lock()
	defer m.mu.Unlock()
	var r wire.Reply
	for _, c := range m.containers {
		r.States = append(r.States, c.state())
	}
	return r
}

func (m *Monitor) shutdown() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.containers); n > 0 {
		return errdef.Conflict.Errorf("the monitor still has %d containers; delete them first", n)
	}
	m.closing = true
	m.listener.Close()
	for w := range m.watchers {
		w.conn.Interrupt()
	}
	return nil
}

// A watcher is a client that keeps handles and hears events.
type watcher struct {
	conn *wire.Conn
	mu   sync.Mutex // one sender at a time
}

func (m *Monitor) watch(conn *wire.Conn) {
	w := &watcher{conn: conn}
	w.mu.Lock()
	m.mu.Lock()
	m.watchers[w] = true
	var all []*container
	for _, c := range m.containers {
		all = append(all, c)
	}
	m.mu.Unlock()
	conn.Send(wire.Reply{})
	w.mu.Unlock()
	for _, c := range all {
		c.sendHandles(w)
		c.sendExecHandles(w)
	}
	var ignored struct{}
	_, err := conn.Recv(&ignored)
	for err == nil {
		_, err = conn.Recv(&ignored)
	}
	m.mu.Lock()
	delete(m.watchers, w)
	m.mu.Unlock()
}

// tell sends an event to all watchers. A watcher that is gone is noticed by
// its reader.
func (m *Monitor) tell(e wire.Event, fds ...int) {
	m.mu.Lock()
	var all []*watcher
	for w := range m.watchers {
		all = append(all, w)
	}
	m.mu.Unlock()
	for _, w := range all {
		w.send(e, fds...)
	}
}

func (w *watcher) send(e wire.Event, fds ...int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn.Send(e, fds...)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func fdsOf(files []*os.File) []int {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = rawFD(f)
	}
	return fds
}

// rawFD is f's descriptor; File.Fd would make it blocking for everybody.
func rawFD(f *os.File) int {
	fd := -1
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(x uintptr) { fd = int(x) })
	}
	return fd
}
