package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// freezeTime is how long the kernel may take to stop all processes; one that
// waits for a dead disk cannot be stopped.
const freezeTime = 5 * time.Second

// Freeze stops all processes where they are and returns when they stand.
func (g *Group) Freeze() error {
	if err := g.setFrozen(true); err != nil {
		g.Thaw()
		return err
	}
	return nil
}

// Thaw lets them go on.
func (g *Group) Thaw() error { return g.setFrozen(false) }

// Frozen reports whether Freeze was asked for last.
func (g *Group) Frozen() bool {
	if v, err := os.ReadFile(filepath.Join(g.Paths[Unified], "cgroup.freeze")); g.Paths[Unified] != "" && err == nil {
		return strings.TrimSpace(string(v)) == "1"
	}
	v, err := os.ReadFile(filepath.Join(g.Paths["freezer"], "freezer.state"))
	return g.Paths["freezer"] != "" && err == nil && strings.TrimSpace(string(v)) != "THAWED"
}

func (g *Group) setFrozen(frozen bool) error {
	if dir, ok := g.Paths[Unified]; ok {
		err := freezeUnified(dir, frozen)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if dir, ok := g.Paths["freezer"]; ok {
		return freezeV1(dir, frozen)
	}
	return errdef.Unsupported.Errorf("this kernel cannot freeze processes: it has neither cgroup.freeze nor the freezer controller")
}

func freezeUnified(dir string, frozen bool) error {
	value, want := "0", "frozen 0"
	if frozen {
		value, want = "1", "frozen 1"
	}
	if err := write(dir, "cgroup.freeze", value); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256)
	for deadline := time.Now().Add(freezeTime); ; {
		n, err := unix.Pread(int(f.Fd()), buf, 0)
		if err != nil {
			return os.NewSyscallError("read cgroup.events", err)
		}
		if strings.Contains(string(buf[:n]), want) {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return errdef.Busy.Errorf("processes do not stop; do they wait for a device?")
		}
		// The kernel wakes pollers when the file changes.
		unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, int(left.Milliseconds())+1)
	}
}

func freezeV1(dir string, frozen bool) error {
	want := "THAWED"
	if frozen {
		want = "FROZEN"
	}
	for deadline := time.Now().Add(freezeTime); ; time.Sleep(time.Millisecond) {
		// Writing again helps when a process was born meanwhile.
		if err := write(dir, "freezer.state", want); err != nil {
			return err
		}
		state, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(state)) == want {
			return nil
		}
		if time.Now().After(deadline) {
			return errdef.Busy.Errorf("processes do not stop; do they wait for a device?")
		}
	}
}
