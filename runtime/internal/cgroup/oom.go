package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OOMKills is how many processes of the group the kernel has killed for lack
// of memory.
func (g *Group) OOMKills() int {
	path, _ := g.oomFile()
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return oomKills(data)
}

func oomKills(data []byte) int {
	for line := range bytes.Lines(data) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "oom_kill "); ok {
			count, _ := strconv.Atoi(n)
			return count
		}
	}
	return 0
}

func (g *Group) oomFile() (path string, v2 bool) {
	if dir, ok := g.Paths["memory"]; ok {
		return filepath.Join(dir, "memory.oom_control"), false
	}
	return filepath.Join(g.Paths[Unified], "memory.events"), true
}

// WatchOOM calls f whenever the kernel kills for lack of memory, until ctx
// ends or the group is removed. Without a memory controller it does nothing.
func (g *Group) WatchOOM(ctx context.Context, f func()) {
	path, v2 := g.oomFile()
	watch, err := openOOM(path, v2)
	if err != nil {
		return
	}
	defer watch.Close()
	defer context.AfterFunc(ctx, func() { watch.Close() })()
	raw, err := watch.SyscallConn()
	if err != nil {
		return
	}
	for seen := 0; ctx.Err() == nil; {
		rerr := raw.Read(func(fd uintptr) bool {
			if v2 {
				return g.OOMKills() != seen
			}
			_, err := unix.Read(int(fd), make([]byte, 8))
			return err != unix.EAGAIN
		})
		if rerr != nil {
			return
		}
		if n := g.OOMKills(); n > seen {
			seen = n
			f()
		} else if _, err := os.Stat(path); err != nil {
			return // an event also tells that the group is gone
		}
	}
}

// openOOM opens what becomes readable by an event: the events file itself, or
// an eventfd that version 1 is told of.
func openOOM(path string, v2 bool) (*os.File, error) {
	control, err := os.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil || v2 {
		return control, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err := write(filepath.Dir(path), "cgroup.event_control", fmt.Sprintf("%d %d", fd, control.Fd())); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "oom"), nil
}
