package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What systemd and services agree on (sd_listen_fds(3), sd_notify(3),
// sd_watchdog_enabled(3)): sockets come as descriptors from 3 on, and what is
// going on is told over a datagram socket. Without systemd all of it is silent.

// service is the service manager's end.
type service struct {
	notifySocket string
	watchdog     time.Duration // 0: none
	names        []string      // of the sockets, in order
}

const firstFD = 3

// serviceManager takes what the environment says, and out of it: children are
// not this service.
func serviceManager() service {
	s := service{notifySocket: os.Getenv("NOTIFY_SOCKET")}
	self := strconv.Itoa(os.Getpid())
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		if pid := os.Getenv("WATCHDOG_PID"); pid == "" || pid == self {
			s.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	if n, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && n > 0 && os.Getenv("LISTEN_PID") == self {
		s.names = make([]string, n)
		copy(s.names, strings.Split(os.Getenv("LISTEN_FDNAMES"), ":"))
		for i := range s.names {
			syscall.CloseOnExec(firstFD + i)
		}
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	return s
}

// listeners are the sockets of that name or number; "" and "*" are all.
func (s service) listeners(which string) (out []net.Listener, err error) {
	for i, name := range s.names {
		fd := firstFD + i
		if which != "" && which != "*" && which != name && which != strconv.Itoa(fd) {
			continue
		}
		f := os.NewFile(uintptr(fd), "LISTEN_FD_"+strconv.Itoa(fd))
		l, err := net.FileListener(f)
		if err != nil {
			return out, fmt.Errorf("socket %d of the service manager: %w", fd, err)
		}
		f.Close()
		out = append(out, l)
	}
	if len(out) == 0 {
		return nil, errors.New("no sockets found via socket activation: make sure the service was started by systemd")
	}
	return out, nil
}

// notify tells the service manager a state, such as READY=1.
func (s service) notify(state string) error {
	if s.notifySocket == "" {
		return nil
	}
	c, err := net.Dial("unixgram", s.notifySocket)
	if err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

// reloading has, as systemd asks for, the time it began.
func (s service) reloading() error {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail
	return s.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// watch shows the watchdog that alive answers, until ctx ends. While it does
// not, nothing is shown, and systemd restarts us.
func (s service) watch(ctx context.Context, alive func(context.Context) error) error {
	if s.watchdog == 0 {
		return nil
	}
	tick := time.NewTicker(s.watchdog / 2)
	defer tick.Stop()
	for {
		if alive(ctx) == nil {
			s.notify("WATCHDOG=1") // if it is lost the next one counts
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
