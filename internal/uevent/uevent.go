// Package uevent listens to what the kernel, and udev where it runs, say of
// devices that come and go.
//
// The messages are hints: some may be lost when too many come at once. Then
// Listen says so with an event whose Action is Rescan, and who cares looks at
// /sys and /dev again.
package uevent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// What happened to a device.
const (
	Add    = "add"
	Remove = "remove"
	Change = "change"
	Rescan = "rescan" // messages were lost
)

// An Event is one message.
type Event struct {
	Action    string // Add, Remove, Change, bind, unbind, move, …
	Path      string // below /sys
	Subsystem string // block, tty, …
	Name      string // of the node below /dev, "" without one
	Type      string // DEVTYPE: disk, partition, usb_device, …
	// Settled is for a message of udev: links such as /dev/serial/by-id are
	// there, or gone.
	Settled bool
}

// The groups of NETLINK_KOBJECT_UEVENT.
const (
	groupKernel = 1
	groupUdev   = 2
)

// Listen calls handle for each event until ctx ends, and then returns nil.
// ready is closed when nothing is missed any more: look at what is there then.
func Listen(ctx context.Context, ready chan<- struct{}, handle func(Event)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listen to device events: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groupKernel | groupUdev}); err != nil {
		return fmt.Errorf("listen to device events: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(wake)
	ended := make(chan struct{})
	defer close(ended)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
			unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		case <-ended:
		}
	}()
	close(ready)
	buf := make([]byte, 16<<10) // udev's limit is 8 KiB
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("listen to device events: %w", err)
		}
		if ctx.Err() != nil {
			<-stopped
			return nil
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS):
			handle(Event{Action: Rescan})
		case err != nil:
			return fmt.Errorf("listen to device events: %w", err)
		default:
			sender, ok := from.(*unix.SockaddrNetlink)
			if !ok {
				continue
			}
			if ev, ok := parse(buf[:n], sender.Groups == groupKernel && sender.Pid == 0); ok {
				handle(ev)
			}
		}
	}
}

// parse reads "action@path", or udev's header, and the properties after it.
func parse(data []byte, kernel bool) (ev Event, ok bool) {
	if !kernel {
		// struct udev_monitor_netlink_header: "libudev", a magic number in
		// network order, the header's size, and the properties' offset.
		const magic = 0xfeedcafe
		if len(data) < 24 || !bytes.HasPrefix(data, []byte("libudev\x00")) || binary.BigEndian.Uint32(data[8:]) != magic {
			return ev, false
		}
		offset := binary.NativeEndian.Uint32(data[16:])
		if uint64(offset) > uint64(len(data)) {
			return ev, false
		}
		data = data[offset:]
		ev.Settled = true
	}
	for _, word := range strings.Split(string(data), "\x00") {
		key, value, found := strings.Cut(word, "=")
		if !found {
			continue
		}
		switch key {
		case "ACTION":
			ev.Action = value
		case "DEVPATH":
			ev.Path = value
		case "SUBSYSTEM":
			ev.Subsystem = value
		case "DEVNAME":
			ev.Name = strings.TrimPrefix(value, "/dev/")
		case "DEVTYPE":
			ev.Type = value
		}
	}
	return ev, ev.Action != "" && ev.Path != ""
}
