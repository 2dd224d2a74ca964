//go:build linux

// Package fork makes child processes that do a list of system calls, for what
// package syscall's ForkExec cannot do: enter a user namespace, which only a
// process of one thread may.
//
// The child is a copy of this process with one thread, in which nothing of Go
// works but system calls. So what it shall do is data: calls, one after the
// other, each of which must succeed. It ends with the last, or becomes a
// program by it.
package fork

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Call is one system call. Memory that Args point to must be on the heap and
// live until Start returns.
type Call struct {
	Name string // for errors
	Trap uintptr
	Args [4]uintptr

	// Fork says that the call is a clone with CLONE_PARENT: its child goes on
	// with the list and is what Start returns.
	Fork bool
}

// Options of a child. The zero value is a fork.
type Options struct {
	Flags  uintptr  // of clone
	Cgroup *os.File // of version 2, that it is born into
}

// A Child is a process that does its calls. The caller collects it.
type Child struct {
	Pid    int
	status *os.File
}

// cloneArgs is the kernel's struct clone_args as of Linux 5.7.
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Start makes a child. It does not wait for the calls.
func Start(o Options, calls []Call) (*Child, error) {
	r, w, err := statusPipe()
	if err != nil {
		return nil, err
	}
	var args *cloneArgs
	if o.Cgroup != nil {
		args = &cloneArgs{flags: uint64(o.Flags) | unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(o.Cgroup.Fd())}
	}
	// No other child shall inherit our descriptors meanwhile.
	syscall.ForkLock.Lock()
	pid, e := start(o.Flags|uintptr(unix.SIGCHLD), args, calls, w.Fd(), new(message))
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(o.Cgroup)
	w.Close()
	if e != 0 {
		r.Close()
		return nil, os.NewSyscallError("clone", e)
	}
	return &Child{int(pid), r}, nil
}

// High is above all descriptors that a child may make for its program.
const High = 512

// statusPipe is closed by exec. Its end in the child is out of the way.
func statusPipe() (r, w *os.File, err error) {
	r, low, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer low.Close()
	fd, err := unix.FcntlInt(low.Fd(), unix.F_DUPFD_CLOEXEC, High)
	if err != nil {
		r.Close()
		return nil, nil, os.NewSyscallError("dup", err)
	}
	return r, os.NewFile(uintptr(fd), "status"), nil
}

// Wait returns when the child became a program or has ended. The error is that
// of the call that failed; then the child was collected.
func (c *Child) Wait(calls []Call) error {
	defer c.status.Close()
	for {
		var buf [unsafe.Sizeof(message{})]byte
		if _, err := io.ReadFull(c.status, buf[:]); err != nil {
			return nil
		}
		index, value := binary.NativeEndian.Uint32(buf[:]), binary.NativeEndian.Uint32(buf[4:])
		call := calls[index]
		if call.Fork && int32(value) > 0 { // the first child has ended; this is the one that counts
			unix.Wait4(c.Pid, nil, 0, nil)
			c.Pid = int(value)
			continue
		}
		unix.Wait4(c.Pid, nil, 0, nil)
		return fmt.Errorf("%s: %w", call.Name, unix.Errno(-int32(value)))
	}
}

// A message is what the child tells: of which call, and its result, negative
// for an error.
type message struct{ index, value int32 }

// start forks. Between beforeFork and afterFork, and in the child, nothing may
// allocate or grow the stack.
//
//go:noinline
//go:norace
//go:nocheckptr
func start(flags uintptr, args *cloneArgs, calls []Call, status uintptr, m *message) (pid uintptr, e unix.Errno) {
	var i int
	var c *Call
	beforeFork()
	if args != nil {
		pid, _, e = syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	} else {
		pid, _, e = syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	}
	if e != 0 || pid != 0 {
		afterFork()
		return pid, e
	}
	afterForkInChild()
	for i = 0; i < len(calls); i++ {
		c = &calls[i]
		pid, _, e = syscall.RawSyscall6(c.Trap, c.Args[0], c.Args[1], c.Args[2], c.Args[3], 0, 0)
		if e == 0 && (!c.Fork || pid == 0) {
			continue
		}
		m.index, m.value = int32(i), int32(pid)
		if e != 0 {
			m.value = -int32(e)
		}
		syscall.RawSyscall6(unix.SYS_WRITE, status, uintptr(unsafe.Pointer(m)), unsafe.Sizeof(*m), 0, 0, 0)
		break
	}
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
	}
}

// What package syscall calls around its own forks. The runtime keeps them for
// others, too.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()
