package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/reap"
	"github.com/minke-os/minke/runtime/internal/wire"
)

func socketPath(dir string) string { return filepath.Join(dir, "monitor.sock") }

// A keeper watches the monitor: it holds duplicates of the containers'
// descriptors, hears events, and starts another monitor when the present one
// dies. It does so until it is closed.
type keeper struct {
	opts Options
	done chan struct{}     // closed when run has ended
	held map[owner]handles // run's alone

	mu     sync.Mutex
	conn   *wire.Conn    // the watch
	up     chan struct{} // closed when a monitor answers
	ending bool
	err    error         // why there is no monitor and will be none
	codes  map[owner]int // exit codes of those that became our children; a monitor may die before it hears of them
}

// An owner of handles is a container, or an execution in one.
type owner struct{ id, exec string }

// handles are descriptors by name.
type handles map[string]*os.File

func (h handles) close() {
	for _, f := range h {
		f.Close()
	}
}

func startKeeper(o Options) (*keeper, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	// When a monitor dies its containers become our children: their exit
	// codes can then be had.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("become a subreaper", err)
	}
	k := &keeper{opts: o, done: make(chan struct{}), up: make(chan struct{}), held: map[owner]handles{}, codes: map[owner]int{}}
	if err := k.connect(); err != nil {
		return nil, err
	}
	close(k.up)
	go k.run()
	return k, nil
}

// connect finds or starts a monitor and gives it the containers that are held.
func (k *keeper) connect() error {
	conn, err := watch(k.opts.Dir)
	if err != nil {
		if err := startMonitor(k.opts); err != nil && !errdef.Is(err, errdef.Busy) {
			return err
		}
		if conn, err = watch(k.opts.Dir); err != nil {
			return fmt.Errorf("connect to the monitor: %w", err)
		}
	}
	k.mu.Lock()
	k.conn = conn
	k.mu.Unlock()
	for _, execs := range []bool{false, true} { // after their containers
		for o, h := range k.held {
			if (o.exec != "") == execs {
				k.hand(o, h)
			}
		}
	}
	return k.tell(wire.Request{Op: wire.Settle})
}

// hand gives a container or an execution to the monitor. If another client was faster, the
// monitor refuses, and that is well.
func (k *keeper) hand(o owner, h handles) {
	req := wire.Request{Op: wire.Adopt, ID: o.id, ExecID: o.exec}
	var files []*os.File
	for name, f := range h {
		req.Handles, files = append(req.Handles, name), append(files, f)
	}
	if err := k.tell(req, files...); err != nil {
		return
	}
	k.mu.Lock()
	code, known := k.codes[o]
	k.mu.Unlock()
	if known {
		k.tell(wire.Request{Op: wire.Exited, ID: o.id, ExecID: o.exec, Code: code})
		return
	}
	pidfd, err := unix.FcntlInt(h[wire.HandlePidfd].Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return
	}
	go func() {
		defer unix.Close(pidfd)
		if code, ok := reapOrphan(pidfd); ok {
			k.mu.Lock()
			k.codes[o] = code
			k.mu.Unlock()
			k.tell(wire.Request{Op: wire.Exited, ID: o.id, ExecID: o.exec, Code: code})
		}
	}()
}

// reapOrphan waits for a process that became our child, if it did.
func reapOrphan(pidfd int) (code int, ok bool) {
	for {
		// Go's runtime serves other goroutines meanwhile. A pidfd that is
		// non-blocking would not wait; poll does.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != nil && err != unix.EINTR {
			return 0, false
		}
		code, done, err := reap.Collect(pidfd)
		if done || err != nil {
			return code, err == nil
		}
	}
}

// tell makes a request of which only success matters.
func (k *keeper) tell(req wire.Request, files ...*os.File) error {
	conn, err := wire.Dial(socketPath(k.opts.Dir))
	if err != nil {
		return err
	}
	defer conn.Close()
	r, got, err := exchange(conn, req, files)
	closeFiles(got)
	if err != nil {
		return err
	}
	return r.Err.Err()
}

// watch connects and returns once the monitor has registered the watch.
func watch(dir string) (*wire.Conn, error) {
	conn, err := wire.Dial(socketPath(dir))
	if err != nil {
		return nil, err
	}
	if err := conn.Send(wire.Request{Op: wire.Watch}); err != nil {
		conn.Close()
		return nil, err
	}
	var r wire.Reply
	if _, err := conn.Recv(&r); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// startMonitor returns when the new monitor accepts connections.
func startMonitor(o Options) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		w.Close()
		return err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=2"},
		Files: []uintptr{null.Fd(), 2, 2, w.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	pid, err := syscall.ForkExec(o.Binary, []string{"minke-runtime", "monitor", o.Dir}, attr)
	w.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", o.Binary, err)
	}
	go func() { // collect it when it ends
		var ws syscall.WaitStatus
		for _, err := syscall.Wait4(pid, &ws, 0, nil); err == syscall.EINTR; {
			_, err = syscall.Wait4(pid, &ws, 0, nil)
		}
	}()
	if text, _ := io.ReadAll(r); len(text) > 0 {
		return errdef.Unavailable.Errorf("start the monitor: %s", text)
	}
	return nil
}

// run hears events until the keeper is closed.
func (k *keeper) run() {
	defer close(k.done)
	defer k.drop()
	for k.hear(); k.lost(); k.hear() {
		if !k.restart() {
			return
		}
	}
}

// lost prepares for a new monitor, unless the end of the old one was wanted.
func (k *keeper) lost() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ending {
		return false
	}
	k.conn.Close()
	k.up = make(chan struct{})
	return true
}

// restart brings a monitor back. One that dies at once is not tried for ever.
func (k *keeper) restart() bool {
	k.opts.Logger.Warn("the container monitor died; starting another", "processes", len(k.held))
	var err error
	for attempt := range 5 {
		time.Sleep(time.Duration(attempt*attempt) * 100 * time.Millisecond)
		if err = k.connect(); err == nil {
			break
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.err == nil {
		k.err = errdef.Unavailable.Errorf("the container monitor died and cannot be started again: %w", err)
	}
	close(k.up)
	return err == nil && !k.ending // closed meanwhile, perhaps, with the old connection
}

// hear takes events until the connection breaks.
func (k *keeper) hear() {
	for {
		var e wire.Event
		files, err := k.conn.Recv(&e)
		if err != nil {
			return
		}
		switch e.Kind {
		case wire.EventHandles:
			k.hold(e, files)
		case wire.EventStdin:
			h := k.held[owner{id: e.ID}]
			if f := h[wire.HandleStdin]; f != nil {
				f.Close()
				delete(h, wire.HandleStdin)
			}
		case wire.EventGone:
			k.forget(e)
		case wire.EventOOM:
			if k.opts.OnOOM != nil {
				k.opts.OnOOM(e.ID)
			}
		}
	}
}

// forget drops what is gone, with a container its executions.
func (k *keeper) forget(e wire.Event) {
	for o, h := range k.held {
		if o.id != e.ID || e.ExecID != "" && o.exec != e.ExecID {
			continue
		}
		h.close()
		delete(k.held, o)
		k.mu.Lock()
		delete(k.codes, o)
		k.mu.Unlock()
	}
}

func (k *keeper) hold(e wire.Event, files []*os.File) {
	o := owner{e.ID, e.ExecID}
	k.held[o].close()
	h := handles{}
	for i, f := range files {
		if i < len(e.Handles) {
			h[e.Handles[i]] = f
		}
	}
	k.held[o] = h
}

func (k *keeper) drop() {
	for _, h := range k.held {
		h.close()
	}
}

// ready waits until a monitor answers.
func (k *keeper) ready(ctx context.Context) error {
	k.mu.Lock()
	up, err := k.up, k.err
	k.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// expectEnd says whether the end of the monitor is wanted.
func (k *keeper) expectEnd(yes bool) {
	k.mu.Lock()
	k.ending = yes
	k.mu.Unlock()
}

func (k *keeper) close() error {
	k.mu.Lock()
	k.ending = true
	if k.err == nil {
		k.err = errdef.Unavailable.Wrap(errors.New("the connection to the monitor is closed"))
	}
	k.conn.Interrupt()
	k.mu.Unlock()
	<-k.done
	return k.conn.Close()
}
