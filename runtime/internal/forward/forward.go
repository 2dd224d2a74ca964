// Package forward sends log entries to journald or to a syslog.
//
// A Sink holds one socket. It connects when there is something to send, and
// again when the other side was restarted. A service that does not take an
// entry within sendTime costs that entry, and all of the next retryTime; the
// container waits no longer than that, also when it ends. Entries that are lost
// so are counted, not kept.
package forward

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/wire"
)

const (
	sendTime  = 2 * time.Second
	retryTime = time.Second
)

// A Sink implements jsonlog.Sink. Its methods may not be called at once.
type Sink struct {
	to      wire.Forward
	fd      int // -1: not connected
	buf     []byte
	resume  time.Time // nothing is sent before
	ordinal uint64
	dropped int64
}

// New makes a sink; it connects when the first entry comes.
func New(to wire.Forward) *Sink { return &Sink{to: to, fd: -1} }

// Send delivers one entry, or drops it.
func (s *Sink) Send(line []byte, stream string, at time.Time, more bool) {
	s.ordinal++
	if time.Now().Before(s.resume) {
		s.dropped++
		return
	}
	if s.to.Syslog != nil {
		s.buf = appendSyslog(s.buf[:0], s.to.Syslog, line, stream, at, s.streaming())
	} else {
		s.buf = appendJournal(s.buf[:0], s.to.Journal, line, stream, at, s.ordinal, more)
	}
	if s.deliver() != nil {
		s.dropped++
		s.resume = time.Now().Add(retryTime)
	}
}

// Dropped is the number of entries that could not be delivered.
func (s *Sink) Dropped() int64 { return s.dropped }

// Close closes the socket.
func (s *Sink) Close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *Sink) streaming() bool { return s.to.Network == "tcp" || s.to.Network == "unix" }

// deliver sends the buffer, by a new connection if the old one broke.
func (s *Sink) deliver() error {
	if s.fd >= 0 {
		err := s.send()
		if err == nil || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		s.Close()
	}
	if err := s.connect(); err != nil {
		return err
	}
	err := s.send()
	if err != nil {
		s.Close()
	}
	return err
}

func (s *Sink) send() error {
	for p := s.buf; len(p) > 0; {
		n, err := unix.SendmsgN(s.fd, p, nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if s.streaming() {
				s.Close() // half a line may be on its way
			}
			return err
		}
		p = p[n:]
	}
	return nil
}

func (s *Sink) connect() error {
	family, kind, addr, err := s.target()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	limit := unix.NsecToTimeval(sendTime.Nanoseconds())
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit) // holds for connect, too
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return err
	}
	s.fd = fd
	return nil
}

func (s *Sink) target() (family, kind int, addr unix.Sockaddr, err error) {
	kind = unix.SOCK_DGRAM
	if s.streaming() {
		kind = unix.SOCK_STREAM
	}
	if s.to.Network == "unix" || s.to.Network == "unixgram" {
		return unix.AF_UNIX, kind, &unix.SockaddrUnix{Name: s.to.Address}, nil
	}
	ap, err := netip.ParseAddrPort(s.to.Address)
	if err != nil {
		return 0, 0, nil, err
	}
	if ip := ap.Addr().Unmap(); ip.Is4() {
		return unix.AF_INET, kind, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ip.As4()}, nil
	}
	return unix.AF_INET6, kind, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}, nil
}
