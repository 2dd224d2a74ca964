// Package reap finds out, by pidfd, how processes ended: of our children by
// collecting them, of others by asking the kernel.
//
// Exit codes are a shell's: 0–255, and 128+n for signal n.
package reap

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wait waits for a child and collects it. The descriptor must be pollable.
func Wait(pidfd *os.File) (code int, err error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	done := false
	rerr := raw.Read(func(fd uintptr) bool {
		code, done, err = Collect(int(fd))
		return done || err != nil
	})
	if err == nil {
		err = rerr
	}
	return code, err
}

// Collect collects a child if it has ended. ECHILD says that it is not, or no
// longer, our child.
func Collect(pidfd int) (code int, done bool, err error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN: // a non-blocking pidfd says so
			return 0, false, nil
		case err != nil:
			return 0, false, os.NewSyscallError("waitid", err)
		}
		return exitCode(&info), info.Signo != 0, nil
	}
}

// Ended waits until the process, whoever its parent is, has ended.
func Ended(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// Recorded asks for the code of a process that somebody else collected; Linux
// 6.15 and newer keep it as long as a pidfd is open.
func Recorded(pidfd int) (code int, ok bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	ws := unix.WaitStatus(info.Exit_code)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), true
	}
	return ws.ExitStatus(), true
}

const cldExited = 1 // CLD_EXITED; the other codes of waitid mean a signal

func exitCode(info *unix.Siginfo) int {
	status := int(field(info, 8))
	if info.Code == cldExited {
		return status & 0xff
	}
	return 128 + status&0x7f
}

// Pid is the process that waitid tells of.
func Pid(info *unix.Siginfo) int { return int(field(info, 0)) }

// field reads from the part of the structure that package unix leaves unnamed:
// pid, uid and status lie at its start on all architectures.
func field(info *unix.Siginfo, offset uintptr) int32 {
	union := unsafe.Offsetof(info.Code) + 4
	if unsafe.Sizeof(uintptr(0)) == 8 {
		union += 4 // it is aligned for pointers
	}
	return *(*int32)(unsafe.Add(unsafe.Pointer(info), union+offset))
}
