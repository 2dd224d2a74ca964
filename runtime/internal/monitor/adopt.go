package monitor

import (
	"fmt"
	"os"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/reap"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// lostCode is what a container is said to have ended with when nobody was
// left to see it, as after SIGKILL.
const lostCode = 137

// adopt gives an orphan back its descriptors, which a client kept while there
// was no monitor.
func (m *Monitor) adopt(req wire.Request, files []*os.File) error {
	c, err := m.container(req.ID)
	if err != nil {
		return err
	}
	handles := map[string]*os.File{}
	for i, f := range files {
		if i < len(req.Handles) {
			handles[req.Handles[i]] = f
		}
	}
	if req.ExecID != "" {
		return c.adoptExec(req.ExecID, handles)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orphan == nil {
		return errdef.Conflict.Errorf("container %s is no orphan", c.id)
	}
	if handles[wire.HandlePidfd] == nil || handles[wire.HandleJournal] == nil {
		return errdef.Invalid.Errorf("adopt container %s: handles are missing", c.id)
	}
	if err := c.resumeLocked(handles); err != nil {
		return err
	}
	c.orphan = nil
	close(c.settled)
	return nil
}

// resumeLocked continues where the dead monitor stopped.
func (c *container) resumeLocked(h map[string]*os.File) (err error) {
	if c.journal, err = openJournal(own(h[wire.HandleJournal])); err != nil {
		return err
	}
	if err := c.openLog(); err != nil {
		return err
	}
	for i := 0; i < 2 && c.log != nil; i++ {
		if err := c.journal.stream(i).undo(c.log); err != nil {
			return fmt.Errorf("recover the log: %w", err)
		}
	}
	c.pidfd, c.stdin = keep(own(h[wire.HandlePidfd])), keep(own(h[wire.HandleStdin]))
	c.adopted = make(chan int, 1)
	if f := h[wire.HandleInit]; f != nil && c.status == created {
		if c.conn, err = wire.NewConn(dup(rawFD(f))); err != nil {
			return err
		}
		// The dead monitor may have taken the report with it. If the init
		// died, awaitBoot will see it.
		c.conn.Send(boot.Word{Report: true})
	}
	if out := keep(own(h[wire.HandleStdout])); out != nil {
		c.out = c.copyFrom(out, 0)
	}
	if errs := keep(own(h[wire.HandleStderr])); errs != nil {
		c.err = c.copyFrom(errs, 1)
	}
	if tty := keep(own(h[wire.HandleTTY])); tty != nil && c.conn == nil {
		c.tty, c.out = tty, c.copyFrom(tty, 0)
	}
	if c.conn != nil {
		c.copies.Add(1)
		go c.awaitBoot()
	} else {
		close(c.booted)
	}
	go c.awaitEnd()
	return nil
}

// own duplicates f, which its receiver will close.
func own(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	return os.NewFile(uintptr(dup(rawFD(f))), f.Name())
}

// exited takes the exit code of an adopted container, or of an execution in it,
// from the client, whose child it became.
func (c *container) exited(execID string, code int) error {
	adopted := c.adopted
	if execID != "" {
		adopted = nil
		c.mu.Lock()
		if p := c.execs[execID]; p != nil {
			adopted = p.adopted
		}
		c.mu.Unlock()
	}
	if adopted == nil {
		return errdef.Conflict.Errorf("container %s is not adopted", c.id)
	}
	select {
	case adopted <- code:
	default:
	}
	return nil
}

// awaitAdopted is reap for a process that is not our child.
func awaitAdopted(pidfd *os.File, told <-chan int) int {
	if err := reap.Ended(pidfd); err != nil {
		return lostCode
	}
	timeout := time.After(5 * time.Second)
	for {
		if code, ok := reap.Recorded(rawFD(pidfd)); ok {
			return code
		}
		select {
		case code := <-told:
			return code
		case <-time.After(10 * time.Millisecond): // until whoever is its parent reaps it
		case <-timeout:
			return lostCode
		}
	}
}

// settle ends the orphans that nobody adopted. Their output has no reader and
// their exit no witness, so they cannot go on.
func (m *Monitor) settle() error {
	m.mu.Lock()
	var lost []*container
	for _, c := range m.containers {
		c.mu.Lock()
		if c.orphan != nil {
			c.orphan = nil
			lost = append(lost, c)
		}
		c.mu.Unlock()
	}
	m.mu.Unlock()
	for _, c := range lost {
		c.lose()
	}
	return nil
}

func (c *container) lose() {
	c.group.Kill()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if pids, err := c.group.Pids(); err != nil || len(pids) == 0 {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status, c.isDrained = stopped, true
	if c.exit == nil {
		c.exit = &wire.Exit{Code: lostCode, At: time.Now().UTC()}
	}
	c.saveLocked()
	close(c.settled)
	close(c.booted)
	close(c.stopped)
	close(c.drained)
}
