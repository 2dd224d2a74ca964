package spawn

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/fork"
	"github.com/minke-os/minke/runtime/internal/boot"
)

// startInUser is ForkExec for a process that enters a user namespace first and
// becomes root there. New namespaces are made after that, so that they belong
// to it. A new pid namespace takes a second clone, for only children are in it.
func startInUser(p Process, exe string, argv []string, attr *syscall.ProcAttr) (int, error) {
	var held []any // memory that calls point to
	text := func(s string) uintptr {
		b, _ := syscall.BytePtrFromString(s) // ours have no zeros
		held = append(held, b)
		return uintptr(unsafe.Pointer(b))
	}
	texts := func(list []string) uintptr {
		l, _ := syscall.SlicePtrFromStrings(list)
		held = append(held, l)
		return uintptr(unsafe.Pointer(&l[0]))
	}
	var calls []fork.Call
	call := func(name string, trap uintptr, args ...uintptr) {
		c := fork.Call{Name: name, Trap: trap}
		copy(c.Args[:], args)
		calls = append(calls, c)
	}
	dir := attr.Dir
	if u := p.Launch.User; u != nil && u.Dir != "" {
		dir = u.Dir
	}
	call("enter "+dir, unix.SYS_CHDIR, text(dir)) // while we may
	call("join the user namespace", unix.SYS_SETNS, uintptr(p.User), unix.CLONE_NEWUSER)
	call("become its root (setgroups)", boot.SysSetgroups, 0, 0)
	call("become its root (setresgid)", boot.SysSetresgid, 0, 0, 0)
	call("become its root (setresuid)", boot.SysSetresuid, 0, 0, 0)
	if attr.Sys.Cloneflags&unix.CLONE_NEWPID != 0 {
		call("clone", unix.SYS_CLONE, attr.Sys.Cloneflags|unix.CLONE_PARENT|uintptr(unix.SIGCHLD))
		calls[len(calls)-1].Fork = true
	} else if attr.Sys.Cloneflags != 0 {
		call("unshare", unix.SYS_UNSHARE, attr.Sys.Cloneflags)
	}
	call("setsid", unix.SYS_SETSID)
	// First above all that come, so that none is overwritten before its turn.
	var above []uintptr
	for _, fd := range attr.Files {
		high, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, len(attr.Files))
		if err != nil {
			return 0, os.NewSyscallError("dup", err)
		}
		defer unix.Close(high)
		above = append(above, uintptr(high))
	}
	for i, fd := range above {
		call("dup", unix.SYS_DUP3, fd, uintptr(i), 0)
	}
	call("exec", unix.SYS_EXECVE, text(exe), texts(argv), texts(attr.Env))

	var o fork.Options
	if attr.Sys.UseCgroupFD {
		fd, err := unix.FcntlInt(uintptr(attr.Sys.CgroupFD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, os.NewSyscallError("dup", err)
		}
		o.Cgroup = os.NewFile(uintptr(fd), "cgroup")
		defer o.Cgroup.Close()
	}
	child, err := fork.Start(o, calls)
	if err != nil {
		return 0, err
	}
	err = child.Wait(calls)
	runtime.KeepAlive(held)
	if err != nil {
		return 0, err
	}
	if *attr.Sys.PidFD, err = unix.PidfdOpen(child.Pid, 0); err != nil {
		return 0, fmt.Errorf("process %d: %w", child.Pid, os.NewSyscallError("pidfd_open", err))
	}
	return child.Pid, nil
}
