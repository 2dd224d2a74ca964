package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osexec "os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/boot"
)

// FirstProcess is the name by which the program, mounted into a container, is
// its first process (docker run --init): it runs the container's program as a
// child, hands it the signals it gets, and collects orphans, which a program
// that was not made to be process 1 leaves as zombies.
const FirstProcess = "docker-init"

// first runs args and returns the exit code of a shell in its place.
func first(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: docker-init -- PROGRAM [ARGUMENT...]")
		return 2
	}
	// Where another process is 1, as with --pid host, orphans come here too.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "docker-init: become a reaper:", err)
	}
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	// Whoever waits for our start, see package boot, may send signals now.
	var st unix.Stat_t
	if unix.Fstat(boot.SocketFD, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		unix.Close(boot.SocketFD)
	}
	pid, err := startChild(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "docker-init: %v\n", err)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, osexec.ErrNotFound) {
			return 127
		}
		return 126
	}
	go func() {
		for s := range signals {
			if n := s.(syscall.Signal); forwarded(n) {
				syscall.Kill(pid, n)
			}
		}
	}()
	return reapUntil(pid)
}

// forwarded tells signals meant for the container from those that are our own:
// of children, of the terminal, and of Go's scheduler.
func forwarded(s syscall.Signal) bool {
	switch s {
	case syscall.SIGCHLD, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGURG, syscall.SIGPIPE:
		return false
	}
	return true
}

// startChild runs the program in a process group of its own, in front of the
// terminal if there is one.
func startChild(args []string) (pid int, err error) {
	path, err := osexec.LookPath(args[0])
	if err != nil {
		return 0, err
	}
	_, noTerminal := unix.IoctlGetTermios(0, unix.TCGETS)
	return syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: noTerminal == nil, Ctty: 0},
	})
}

// reapUntil collects every child that ends, until the one has.
func reapUntil(pid int) (code int) {
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && ended != pid:
			continue
		case err != nil:
			fmt.Fprintln(os.Stderr, "docker-init: wait:", err)
			return 1
		case status.Signaled():
			return 128 + int(status.Signal())
		}
		return status.ExitStatus()
	}
}
