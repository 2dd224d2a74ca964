package monitor

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/reap"
	"github.com/minke-os/minke/runtime/internal/spawn"
)

// children tells the processes that somebody waits for from those that were
// left to us by their dead parents, which nobody else would collect. These
// come from containers without a pid namespace of their own.
type children struct {
	mu     sync.Mutex
	waited map[int]bool
}

// adoptOrphans makes this process the parent of its descendants' orphans and
// collects them when they end.
func (c *children) adoptOrphans() error {
	c.waited = map[int]bool{}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("become a subreaper", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for range signals {
			c.collect()
		}
	}()
	return nil
}

// start clones while nothing is collected, so that a process which ends at
// once is known.
func (c *children) start(p spawn.Process) (child spawn.Child, err error) {
	_, err = c.fork(func() (int, error) {
		child, err = spawn.Start(p)
		return child.Pid, err
	})
	return child, err
}

// fork is start for any way to make a process.
func (c *children) fork(f func() (pid int, err error)) (pid int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pid, err = f(); err == nil {
		c.waited[pid] = true
	}
	return pid, err
}

// run runs a program of ours that is not a container's.
func (c *children) run(cmd *exec.Cmd) error {
	pid, err := c.fork(func() (int, error) {
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		return err
	}
	defer c.forget(pid)
	return cmd.Wait()
}

// forget is called when the process has been waited for.
func (c *children) forget(pid int) {
	c.mu.Lock()
	delete(c.waited, pid)
	c.mu.Unlock()
}

// collect stops at a child that somebody is about to collect; behind it more
// orphans may wait for the next signal.
func (c *children) collect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != nil || info.Signo == 0 {
			return
		}
		pid := reap.Pid(&info)
		if c.waited[pid] {
			return
		}
		unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}
