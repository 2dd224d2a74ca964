package boot

import (
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal in the container's own devpts, connects 0–2 to
// it, binds it at /dev/console, and returns its master; -1 without terminal.
//
// Everything goes by descriptor: a path like /dev/pts/0 or /dev/console could
// have been replaced by the image or by a container that shares the directory
// (CVE-2025-52565).
func openTerminal(root *os.File, p *specs.Process) (int, error) {
	if p == nil || !p.Terminal {
		return -1, nil
	}
	master, slave, err := newTerminal(root)
	if err != nil {
		return -1, fmt.Errorf("terminal: %w", err)
	}
	defer unix.Close(slave)
	if err := bindConsole(root, slave); err != nil {
		return -1, fmt.Errorf("bind the terminal at /dev/console: %w", err)
	}
	if err := useTerminal(slave, p); err != nil {
		return -1, fmt.Errorf("terminal: %w", err)
	}
	return master, nil
}

func newTerminal(root *os.File) (master, slave int, err error) {
	at, err := openIn(root, "/dev/pts/ptmx")
	if err != nil {
		return -1, -1, fmt.Errorf("the container has no devpts: %w", err)
	}
	defer at.Close()
	if err := checkDevice(at, unix.Mkdev(5, 2)); err != nil {
		return -1, -1, err
	}
	master, err = unix.Open(fdPath(at), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, os.NewSyscallError("open ptmx", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, -1, os.NewSyscallError("unlock", err)
	}
	fd, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return -1, -1, os.NewSyscallError("open the slave", e)
	}
	return master, int(fd), nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/thread-self/fd/%d", f.Fd()) }

func bindConsole(root *os.File, slave int) error {
	at, err := openIn(root, "/dev/console")
	if errors.Is(err, os.ErrNotExist) {
		at, err = makeFile(root, "/dev/console")
	}
	if err != nil {
		return err
	}
	defer at.Close()
	return cloneOnto(slave, at)
}

func useTerminal(slave int, p *specs.Process) error {
	if s := p.ConsoleSize; s != nil && s.Width > 0 && s.Height > 0 {
		w := unix.Winsize{Col: uint16(s.Width), Row: uint16(s.Height)}
		if err := unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, &w); err != nil {
			return os.NewSyscallError("set size", err)
		}
	}
	if err := unix.Fchown(slave, int(p.User.UID), -1); err != nil {
		return os.NewSyscallError("chown", err)
	}
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return os.NewSyscallError("make it the controlling terminal", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return os.NewSyscallError("dup", err)
		}
	}
	return nil
}

// joinTerminal is openTerminal for a further process: it gets a terminal of
// its own and leaves /dev/console alone.
func joinTerminal(p *specs.Process) (int, error) {
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	master, slave, err := newTerminal(root)
	if err != nil {
		return -1, fmt.Errorf("terminal: %w", err)
	}
	defer unix.Close(slave)
	if err := useTerminal(slave, p); err != nil {
		return -1, fmt.Errorf("terminal: %w", err)
	}
	return master, nil
}
