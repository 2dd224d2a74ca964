// Package wire is how the parts of the runtime talk: JSON messages with file
// descriptors over a unix stream socket.
//
// A message is an 8 byte header (length of the JSON, number of descriptors,
// little endian) and the JSON; the descriptors travel with the header's first
// byte. One side asks and the other answers; who may say what is in
// message.go. A Conn may be used by one reader and one writer at a time.
//
// The package net would add a megabyte to a program that has four, so sockets
// here are plain descriptors in the Go poller.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headerLen  = 8
	maxMessage = 8 << 20 // an OCI configuration is some ten kilobytes
	maxFiles   = 253     // the kernel takes no more
)

// A Conn is one end of a connection.
type Conn struct {
	f   *os.File
	raw syscall.RawConn
}

// NewConn takes over the socket fd.
func NewConn(fd int) (*Conn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{f, raw}, nil
}

// Pair makes two connected sockets: one for this process and one as a plain
// blocking descriptor for a child.
func Pair() (*Conn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	c, err := NewConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return c, fds[1], nil
}

// Dial connects to the socket at path.
func Dial(path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	return NewConn(fd)
}

func (c *Conn) Close() error { return c.f.Close() }

// FD is the socket, to be duplicated.
func (c *Conn) FD() (fd int) {
	c.raw.Control(func(x uintptr) { fd = int(x) })
	return fd
}

// Interrupt makes pending and later reads and writes fail.
func (c *Conn) Interrupt() { c.f.SetDeadline(time.Unix(1, 0)) }

// Send writes one message. The descriptors stay the caller's.
func (c *Conn) Send(v any, fds ...int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	msg := make([]byte, headerLen+len(body))
	binary.LittleEndian.PutUint32(msg, uint32(len(body)))
	binary.LittleEndian.PutUint32(msg[4:], uint32(len(fds)))
	copy(msg[headerLen:], body)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, err := c.sendmsg(msg, oob)
	if err == nil && n < len(msg) {
		_, err = c.f.Write(msg[n:])
	}
	return err
}

func (c *Conn) sendmsg(msg, oob []byte) (n int, err error) {
	werr := c.raw.Write(func(fd uintptr) bool {
		for {
			n, err = unix.SendmsgN(int(fd), msg, oob, nil, unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if werr != nil {
		return 0, werr
	}
	return n, os.NewSyscallError("sendmsg", err)
}

// Recv reads one message into v and returns its descriptors, which are the
// caller's to close. The end of the connection is io.EOF.
func (c *Conn) Recv(v any) ([]*os.File, error) {
	var header [headerLen]byte
	fds, err := c.recvHeader(header[:])
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "received")
	}
	if err := c.recvBody(header[:], len(files), v); err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func (c *Conn) recvBody(header []byte, files int, v any) error {
	size := binary.LittleEndian.Uint32(header)
	if size > maxMessage {
		return fmt.Errorf("message of %d bytes: longer than %d", size, maxMessage)
	}
	if want := binary.LittleEndian.Uint32(header[4:]); uint32(files) != want {
		return fmt.Errorf("message with %d descriptors, want %d (out of file descriptors?)", files, want)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.f, body); err != nil {
		return noEOF(err)
	}
	return json.Unmarshal(body, v)
}

func (c *Conn) recvHeader(header []byte) (fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	for got := 0; got < headerLen; {
		n, oobn, err := c.recvmsg(header[got:], oob)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			closeFDs(fds)
			if got > 0 {
				err = noEOF(err)
			}
			return nil, err
		}
		fds = append(fds, rights(oob[:oobn])...)
		got += n
	}
	return fds, nil
}

func (c *Conn) recvmsg(p, oob []byte) (n, oobn int, err error) {
	rerr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if rerr != nil {
		return 0, 0, rerr
	}
	if err == unix.ECONNRESET { // closed with data unread: the end all the same
		return 0, 0, io.EOF
	}
	return n, oobn, os.NewSyscallError("recvmsg", err)
}

func rights(oob []byte) []int {
	if len(oob) == 0 {
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// A Listener accepts connections at a path.
type Listener struct {
	f   *os.File
	raw syscall.RawConn
}

// Listen replaces whatever is at path, so the caller must know that no other
// listener is alive.
func Listen(path string) (*Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	os.Remove(path)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = unix.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "listen at", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Listener{f, raw}, nil
}

// Accept waits for the next connection.
func (l *Listener) Accept() (*Conn, error) {
	var fd int
	var err error
	rerr := l.raw.Read(func(lfd uintptr) bool {
		for {
			fd, _, err = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return err != unix.EAGAIN
			}
		}
	})
	if rerr != nil { // the poller's own error for this is not exported
		return nil, os.ErrClosed
	}
	if err != nil {
		return nil, os.NewSyscallError("accept", err)
	}
	return NewConn(fd)
}

// Close ends a pending Accept.
func (l *Listener) Close() error { return l.f.Close() }
