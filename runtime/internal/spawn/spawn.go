// Package spawn clones processes into containers.
//
// The caller gives a Launch and descriptors; a Child comes back whose process
// runs package boot and waits for its configuration's start. Namespaces that
// must exist before the process does are made here: all new ones by clone, but a
// user namespace, which is entered first so that it owns the others (user.go);
// and the pid namespace that is joined, because only children enter it. It is born
// into its cgroups, too.
//
// The program that runs is this one, executed from a read-only mount that has
// no path, so that a container which gets at /proc/<pid>/exe cannot write to
// the host's file (CVE-2019-5736).
package spawn

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/fork"
	"github.com/minke-os/minke/internal/thread"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// A Process says what to clone.
type Process struct {
	Launch *wire.Launch
	Config int    // descriptor of the boot configuration
	Stdio  [3]int // the program's 0–2
	Cgroup int    // descriptor of a version 2 cgroup, or -1
	Target int    // for a further process: pidfd of the container's first, else -1
	User   int    // descriptor of a user namespace, or of a process in it, or -1
	Extra  []int  // descriptors that the program gets from 3 on

	// Enter puts the calling thread into the container's cgroups of version 1.
	Enter func() error
}

// A Child is a process that was cloned.
type Child struct {
	Pid   int
	Pidfd int
	Conn  *wire.Conn // to package boot in the child
}

// Start clones the process. The descriptors in p stay the caller's.
func Start(p Process) (Child, error) {
	exe, err := executable()
	if err != nil {
		return Child{}, fmt.Errorf("protect the runtime's program: %w", err)
	}
	attr, pidns, err := attributes(p)
	if err != nil {
		return Child{}, err
	}
	if pidns >= 0 {
		defer unix.Close(pidns)
	}
	conn, sock, err := wire.Pair()
	if err != nil {
		return Child{}, err
	}
	defer unix.Close(sock)
	pidfd := -1
	attr.Sys.PidFD = &pidfd
	applet := "init"
	attr.Files = []uintptr{uintptr(p.Stdio[0]), uintptr(p.Stdio[1]), uintptr(p.Stdio[2]), uintptr(sock), uintptr(p.Config)}
	if p.Target >= 0 {
		applet = "join"
		attr.Files = append(attr.Files, uintptr(p.Target))
		pidns = p.Target
	}
	for _, fd := range p.Extra {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	argv := []string{"minke-runtime", applet}
	pid, err := forkFrom(func() error { return enter(p, pidns) }, func() (int, error) {
		if p.User >= 0 {
			return startInUser(p, exe, argv, attr)
		}
		return syscall.ForkExec(exe, argv, attr)
	})
	if err != nil {
		conn.Close()
		if errors.Is(err, unix.EINVAL) && newTime(p.Launch.Namespaces) {
			// The clone shares our memory until it execs, which older kernels
			// refuse when the clocks differ.
			return Child{}, errdef.Unsupported.Errorf("this kernel is too old for a time namespace of a container's own")
		}
		return Child{}, fmt.Errorf("clone the container's process: %w", err)
	}
	return Child{pid, pidfd, conn}, nil
}

// attributes also returns a descriptor of the pid namespace to join, or -1.
func attributes(p Process) (*syscall.ProcAttr, int, error) {
	sys := &syscall.SysProcAttr{Setsid: true}
	if p.Cgroup >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, p.Cgroup
	}
	pidns := -1
	for _, ns := range p.Launch.Namespaces {
		flag, err := boot.NamespaceFlag(ns.Type)
		if err != nil {
			return nil, -1, errdef.Invalid.Wrap(err)
		}
		switch {
		case ns.Type == specs.UserNamespace: // see user.go
		case ns.Path == "" && ns.Type != specs.CgroupNamespace && ns.Type != specs.TimeNamespace:
			sys.Cloneflags |= flag
		case ns.Path != "" && ns.Type == specs.PIDNamespace:
			if pidns, err = unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return nil, -1, &os.PathError{Op: "open pid namespace", Path: ns.Path, Err: err}
			}
		}
	}
	return &syscall.ProcAttr{Dir: "/", Env: env, Sys: sys}, pidns, nil
}

// env keeps the short-lived Go program small: one thread's worth of work and
// nothing to collect.
var env = []string{"GOMAXPROCS=1", "GOGC=off"}

// enter makes the calling thread one whose children are born where the process
// belongs.
func enter(p Process, pidns int) error {
	if pidns >= 0 {
		if err := unix.Setns(pidns, unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("join the pid namespace: %w", err)
		}
	}
	for _, ns := range p.Launch.Namespaces {
		if ns.Type == specs.TimeNamespace {
			if err := enterTime(ns.Path, p.Launch.TimeOffsets); err != nil {
				return fmt.Errorf("time namespace: %w", err)
			}
		}
	}
	return p.Enter()
}

func newTime(namespaces []specs.LinuxNamespace) bool {
	for _, ns := range namespaces {
		if ns.Type == specs.TimeNamespace {
			return true
		}
	}
	return false
}

// enterTime makes a time namespace; like that of process IDs it is the
// children's. Only a program of one thread may join one, which ours is not.
func enterTime(path string, offsets map[string]specs.LinuxTimeOffset) error {
	if path != "" {
		return errdef.Unsupported.Errorf("this runtime makes new ones only and cannot join %s", path)
	}
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return err
	}
	for clock, o := range offsets {
		line := fmt.Sprintf("%s %d %d", clock, o.Secs, o.Nanosecs)
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid()), []byte(line), 0); err != nil {
			return err
		}
	}
	return nil
}

// forkFrom clones from a thread of its own that was prepared for it. A process
// that is moved to a cgroup after its birth makes the kernel wait for all
// processors to take notice, 10 ms; a thread that moves itself does not.
func forkFrom(prepare func() error, clone func() (int, error)) (pid int, err error) {
	err = thread.Run(func() error {
		if err := prepare(); err != nil {
			return err
		}
		pid, err = clone()
		return err
	})
	return pid, err
}

// executable is a name for this program on a read-only mount.
var executable = sync.OnceValues(func() (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return "", os.NewSyscallError("mount_setattr", err)
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, fork.High)
	if err != nil {
		return "", os.NewSyscallError("dup", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", high), nil
})

// SetOOMScore goes as low as this process may where it may not go lower; the
// warning is the creator's.
func SetOOMScore(pid, score int) error {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	err := os.WriteFile(path, []byte(fmt.Sprint(score)), 0)
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	return err
}
