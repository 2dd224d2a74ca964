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

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/wire"
)

func socketPath(dir string) string { return filepath.Join(dir, "monitor.sock") }

// A keeper watches the monitor: it holds duplicates of the containers'
// descriptors, hears events, and starts another monitor when the present one
// dies.
type keeper struct {
	opts Options
	done chan struct{} // closed when run has ended

	mu     sync.Mutex
	conn   *wire.Conn    // the watch
	up     chan struct{} // closed when a monitor answers
	ending bool
	err    error // why there is no monitor and will be none
}

func startKeeper(ctx context.Context, o Options) (*keeper, error) {
	k := &keeper{opts: o, done: make(chan struct{}), up: make(chan struct{})}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	conn, err := watch(o.Dir)
	if err != nil {
		if err := startMonitor(o); err != nil {
			return nil, err
		}
		if conn, err = watch(o.Dir); err != nil {
			return nil, err
		}
	}
	k.conn = conn
	close(k.up)
	go k.run()
	return k, nil
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

func (k *keeper) run() {
	defer close(k.done)
	for {
		var e wire.Event
		files, err := k.conn.Recv(&e)
		if err != nil {
			return
		}
		closeFiles(files)
		if e.Kind == wire.EventOOM && k.opts.OnOOM != nil {
			k.opts.OnOOM(e.ID)
		}
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
