//go:build linux

// Package sock asks the kernel about connections.
package sock

import (
	"net"

	"golang.org/x/sys/unix"
)

// Unread reports whether the other side of a unix socket has not yet read all
// that was written to it. Of other connections nobody can tell, and it is false.
func Unread(conn net.Conn) bool {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	waiting := 0
	cerr := raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return cerr == nil && err == nil && waiting > 0
}
