package monitor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/thread"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Another OCI runtime makes the container's process and goes; the monitor,
// being a subreaper, becomes its parent and watches it like one of its own. The
// same runtime is asked to start it, for further processes, and to delete what
// it keeps; signals, limits and freezing go by pidfd and cgroup.
//
//	<dir>/foreign/state        the runtimes' own --root
//	<dir>/foreign/<id>         bundle: config.json, mount point, pid files, console sockets

// foreignVersion is the specification's version that all runtimes take; older
// ones refuse what is newer, even where it changes nothing.
const foreignVersion = "1.0.2"

func (m *Monitor) foreignDir() string { return filepath.Join(m.dir, "foreign") }

func (c *container) bundle() string { return filepath.Join(c.m.foreignDir(), c.id) }

// createForeign is spawnInit by another runtime; the process is ready to start
// when it returns.
func (c *container) createForeign(config *os.File) error {
	f, err := readForeign(config)
	if err != nil {
		return err
	}
	root := filepath.Join(c.bundle(), "rootfs")
	if err := os.MkdirAll(root, 0o711); err != nil {
		return err
	}
	f.Spec.Root.Path, f.Spec.Version = root, foreignVersion
	if err := writeJSON(filepath.Join(c.bundle(), "config.json"), f.Spec); err != nil {
		return err
	}
	if err := c.openLog(); err != nil {
		return err
	}
	ours, theirs, err := openStdio(c.launch)
	if err != nil {
		return err
	}
	defer theirs.close()
	pid, tty, err := c.callForeign(foreignCall{
		args: []string{"create", "--bundle", c.bundle()}, name: "init", terminal: c.launch.Terminal, stdio: theirs,
		prepare: func() error { return mountAt(f.Rootfs, root) },
	})
	if err != nil {
		ours.close()
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		ours.close()
		return os.NewSyscallError("pidfd_open", err)
	}
	c.pid, c.pidfd, c.stdin = pid, pollable(pidfd, "pidfd"), keep(ours.in)
	if ours.out != nil {
		c.out, c.err = c.copyFrom(keep(ours.out), 0), c.copyFrom(keep(ours.err), 1)
	}
	if tty != nil {
		c.tty = keep(tty)
		c.out = c.copyFrom(c.tty, 0)
	}
	close(c.booted)
	return nil
}

func readForeign(config *os.File) (f wire.ForeignConfig, err error) {
	fi, err := config.Stat()
	if err != nil {
		return f, err
	}
	data := make([]byte, fi.Size())
	if _, err := config.ReadAt(data, 0); err != nil {
		return f, err
	}
	err = json.Unmarshal(data, &f)
	if err == nil && f.Process == nil && (f.Spec == nil || f.Spec.Root == nil || f.Rootfs == nil) {
		err = errors.New("the configuration for the other runtime is incomplete")
	}
	return f, err
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// mountAt puts the root where the runtime can see it, in a mount namespace of
// this thread. The container's own is a copy of that, and goes on.
func mountAt(m *overlay.Mount, dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("separate mounts", err)
	}
	f, err := m.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("move_mount", unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// A foreignCall is a command that leaves a process to us.
type foreignCall struct {
	args     []string // but for the ID at the end
	name     string   // of the process, for its files in the bundle
	terminal bool
	stdio    stdio
	prepare  func() error // on the thread that starts the runtime
}

// callForeign returns the process, whose parent we are by then, and its
// terminal.
func (c *container) callForeign(f foreignCall) (pid int, tty *os.File, err error) {
	pidFile := filepath.Join(c.bundle(), f.name+".pid")
	defer os.Remove(pidFile)
	args := append(f.args, "--pid-file", pidFile)
	if f.terminal {
		console, err := listenConsole(c.bundle(), f.name+".tty")
		if err != nil {
			return 0, nil, err
		}
		defer console.close()
		args = append(args, "--console-socket", console.path)
		defer func() {
			if err == nil {
				tty, err = console.receive()
			}
		}()
	}
	err = c.runForeign(args, f.stdio, f.prepare, func() error {
		data, err := os.ReadFile(pidFile)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
		}
		if err == nil {
			c.m.children.fork(func() (int, error) { return pid, nil }) // not to be collected as an orphan
		}
		return err
	})
	return pid, tty, err
}

// runForeign runs a command of the other runtime to its end. Before it is
// collected, then is called if it succeeded.
func (c *container) runForeign(args []string, s stdio, prepare, then func() error) error {
	foreign := c.launch.Foreign
	log := filepath.Join(c.bundle(), "log")
	os.Remove(log)
	argv := append([]string{foreign.Path}, foreign.Args...)
	argv = append(append(argv, "--root", filepath.Join(c.m.foreignDir(), "state"), "--log", log, "--log-format", "json"), append(args, c.id)...)
	fds := s.fds()
	var pid int
	err := thread.Run(func() (err error) {
		if prepare != nil {
			if err := prepare(); err != nil {
				return err
			}
		}
		pid, err = c.m.children.fork(func() (int, error) {
			return syscall.ForkExec(foreign.Path, argv, &syscall.ProcAttr{
				Dir: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
				Files: []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])}, Sys: &syscall.SysProcAttr{Setsid: true},
			})
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("run %s: %w", foreign.Path, err)
	}
	defer c.m.children.forget(pid)
	var info unix.Siginfo
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
	}
	const exited = 1 // CLD_EXITED
	var failed error
	if info.Code == exited && then != nil {
		failed = then()
	}
	var ws syscall.WaitStatus
	for _, err = syscall.Wait4(pid, &ws, 0, nil); err == syscall.EINTR; {
		_, err = syscall.Wait4(pid, &ws, 0, nil)
	}
	if err == nil && ws.ExitStatus() == 0 {
		return failed
	}
	return foreignError(foreign.Path, log, ws)
}

// foreignError makes of a runtime's last words an error such as ours.
func foreignError(path, log string, ws syscall.WaitStatus) error {
	text := fmt.Sprintf("ended with code %d", ws.ExitStatus())
	data, _ := os.ReadFile(log)
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var line struct{ Level, Msg string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Level == "error" {
			text = line.Msg
		}
	}
	text = filepath.Base(path) + ": " + text
	switch {
	case strings.Contains(text, "exec") && (strings.Contains(text, "not found") || strings.Contains(text, "no such file")):
		return &wire.ProgramError{Code: 127, Text: text}
	case strings.Contains(text, "exec") && (strings.Contains(text, "permission denied") || strings.Contains(text, "is a directory")):
		return &wire.ProgramError{Code: 126, Text: text}
	}
	return errors.New(text)
}

func (c *container) startForeign() error {
	c.mu.Lock()
	status := c.status
	c.mu.Unlock()
	if status != created {
		return fmt.Errorf("container %s was started already", c.id)
	}
	if err := c.runForeign([]string{"start"}, stdio{}, nil, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == created {
		c.status = running
		return c.saveLocked()
	}
	return nil
}

// deleteForeign lets the runtime forget the container; what it leaves is ours
// to remove.
func (c *container) deleteForeign() error {
	if err := c.runForeign([]string{"delete", "--force"}, stdio{}, nil, nil); err != nil {
		return err
	}
	return os.RemoveAll(c.bundle())
}

// execForeign is launchExec by the other runtime.
func (c *container) execForeign(config *os.File, execID string, terminal bool, theirs stdio) (pid int, pidfd int, tty *os.File, err error) {
	f, err := readForeign(config)
	if err != nil {
		return 0, -1, nil, err
	}
	file := filepath.Join(c.bundle(), execID+".json")
	if err := writeJSON(file, f.Process); err != nil {
		return 0, -1, nil, err
	}
	defer os.Remove(file)
	pid, tty, err = c.callForeign(foreignCall{
		args: []string{"exec", "--detach", "--process", file}, name: execID, terminal: terminal, stdio: theirs,
	})
	if err != nil {
		return 0, -1, nil, err
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	return pid, pidfd, tty, os.NewSyscallError("pidfd_open", err)
}

// A console is a socket to which a runtime sends a terminal.
type console struct {
	path string // for the runtime; an address has 107 bytes at most, so it goes by way of our descriptor
	fd   int
	dir  *os.File
}

func listenConsole(dir, name string) (c console, err error) {
	if c.dir, err = os.Open(dir); err != nil {
		return c, err
	}
	c.path = fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), c.dir.Fd(), name)
	os.Remove(c.path)
	if c.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		err = unix.Bind(c.fd, &unix.SockaddrUnix{Name: c.path})
	}
	if err == nil {
		err = unix.Listen(c.fd, 1)
	}
	if err != nil {
		c.close()
		return c, fmt.Errorf("listen for a terminal in %s: %w", dir, err)
	}
	return c, nil
}

func (c console) close() {
	unix.Close(c.fd)
	os.Remove(c.path)
	c.dir.Close()
}

var errNoTerminal = errors.New("the other runtime sent no terminal")

// receive takes the terminal from a runtime that has ended by now.
func (c console) receive() (*os.File, error) {
	const wait = 5 * time.Second
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, int(wait.Milliseconds())); n != 1 {
		return nil, errNoTerminal
	}
	conn, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("accept", err)
	}
	defer unix.Close(conn)
	buf, oob := make([]byte, 4096), make([]byte, 128)
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errNoTerminal
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errNoTerminal
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
