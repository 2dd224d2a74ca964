// Package host is what the supervisor may see and change of the device beside
// containers: its meters, its power, a few of its services, its name and its
// proxy.
//
// Power and services are systemd's and logind's, over the system D-Bus, so a
// host without them refuses with a reason. Files are replaced atomically. A Host
// keeps no state but the last reading of the processor's meters; its methods
// may be called from many goroutines.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// Options say where the host's things are. The zero value is right on a device.
type Options struct {
	Bus     string // address of the system D-Bus; the usual one if empty
	Root    string // of /proc and /sys; "" but in tests
	Data    string // a directory on the data partition, for its size
	LED     string // brightness file of the LED that blinks; "" for none
	BootDir string // where system-proxy is
	State   string // where an update of the host leaves its breadcrumbs; /mnt/state if empty
}

// Host is this device. New makes it.
type Host struct {
	o Options

	mu   sync.Mutex
	last cpuTimes
}

// New is the host that o describes.
func New(o Options) *Host {
	if o.State == "" {
		o.State = "/mnt/state"
	}
	return &Host{o: o}
}

// Updating reports whether the host's operating system waits to be confirmed
// after an update: a reboot would undo it.
func (h *Host) Updating() bool {
	for _, name := range []string{"rollback-health-breadcrumb", "rollback-altboot-breadcrumb"} {
		if _, err := os.Stat(h.o.State + "/" + name); err == nil {
			return true
		}
	}
	return false
}

// Kernel is the kernel's name and release, such as Linux and 6.1.77-v8; empty
// where /proc does not tell.
func (h *Host) Kernel() (name, release string) {
	return h.firstLine("/proc/sys/kernel/ostype"), h.firstLine("/proc/sys/kernel/osrelease")
}

// BootID is another one after each reboot.
func (h *Host) BootID() string { return h.firstLine("/proc/sys/kernel/random/boot_id") }

// Uptime is how long the host has been up, sleep included. No change of the
// clock touches it.
func (h *Host) Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil { // of which Linux has one
		panic(err)
	}
	return time.Duration(ts.Nano())
}

func (h *Host) bus(ctx context.Context) (*dbus.Conn, error) {
	var c *dbus.Conn
	var err error
	if h.o.Bus != "" {
		c, err = dbus.Connect(h.o.Bus, dbus.WithContext(ctx))
	} else {
		c, err = dbus.ConnectSystemBus(dbus.WithContext(ctx))
	}
	if err != nil {
		return nil, errdef.Unavailable.Errorf("the system D-Bus cannot be reached: %w", err)
	}
	return c, nil
}

// callLimit bounds a call, as D-Bus libraries do: a host that hangs must not
// hang us.
const callLimit = 25 * time.Second

func (h *Host) call(ctx context.Context, dest string, path dbus.ObjectPath, method string, args ...any) ([]any, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	c, err := h.bus(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	call := c.Object(dest, path).CallWithContext(ctx, method, 0, args...)
	if call.Err != nil {
		return nil, fmt.Errorf("%s: %w", method, call.Err)
	}
	return call.Body, nil
}

const (
	login1  = "org.freedesktop.login1"
	systemd = "org.freedesktop.systemd1"
)

// Reboot asks logind to reboot the machine.
func (h *Host) Reboot(ctx context.Context) error {
	_, err := h.call(ctx, login1, "/org/freedesktop/login1", login1+".Manager.Reboot", false)
	return err
}

// PowerOff asks logind to switch the machine off.
func (h *Host) PowerOff(ctx context.Context) error {
	_, err := h.call(ctx, login1, "/org/freedesktop/login1", login1+".Manager.PowerOff", false)
	return err
}

// SetUnit starts or stops a unit of systemd.
func (h *Host) SetUnit(ctx context.Context, unit string, run bool) error {
	method := "StopUnit"
	if run {
		method = "StartUnit"
	}
	_, err := h.call(ctx, systemd, "/org/freedesktop/systemd1", systemd+".Manager."+method, unit, "fail")
	return err
}

// RestartUnit restarts a unit of systemd.
func (h *Host) RestartUnit(ctx context.Context, unit string) error {
	_, err := h.call(ctx, systemd, "/org/freedesktop/systemd1", systemd+".Manager.RestartUnit", unit, "fail")
	return err
}

// UnitActive reports whether a unit of systemd runs.
func (h *Host) UnitActive(ctx context.Context, unit string) (bool, error) {
	v, err := h.unitProperty(ctx, unit, "ActiveState")
	state, _ := v.(string)
	return state == "active" || state == "activating", err
}

// UnitPartOf reports whether a unit is stopped and restarted with another.
func (h *Host) UnitPartOf(ctx context.Context, unit, other string) (bool, error) {
	v, err := h.unitProperty(ctx, unit, "PartOf")
	of, _ := v.([]string)
	return slices.Contains(of, other), err
}

func (h *Host) unitProperty(ctx context.Context, unit, name string) (any, error) {
	body, err := h.call(ctx, systemd, "/org/freedesktop/systemd1", systemd+".Manager.LoadUnit", unit)
	if err != nil {
		return nil, err
	}
	path, ok := dbusFirst[dbus.ObjectPath](body)
	if !ok {
		return nil, errdef.Unavailable.Errorf("systemd does not say where %s is", unit)
	}
	body, err = h.call(ctx, systemd, path, "org.freedesktop.DBus.Properties.Get", systemd+".Unit", name)
	if err != nil {
		return nil, err
	}
	v, _ := dbusFirst[dbus.Variant](body)
	return v.Value(), nil
}

func dbusFirst[T any](body []any) (v T, ok bool) {
	if len(body) > 0 {
		v, ok = body[0].(T)
	}
	return v, ok
}

// VPN reports whether the VPN's service runs, and whether it is connected.
func (h *Host) VPN(ctx context.Context) (enabled, connected bool) {
	enabled, _ = h.UnitActive(ctx, "openvpn.service") // a host without one has none
	return enabled, h.VPNConnected()
}

// VPNConnected reports whether the VPN is connected.
func (h *Host) VPNConnected() bool {
	_, err := os.Stat(h.o.Root + "/run/openvpn/vpn_status/active")
	return err == nil
}

// Signal blinks four times, again and again with a second between, until stop
// is called, which waits for its end. A device without an LED does nothing.
func (h *Host) Signal() (stop func()) {
	if h.o.LED == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		const blinks, half = 4, 200 * time.Millisecond
		for i := 0; ; i = (i + 1) % (2 * blinks) {
			h.light(i%2 == 0)
			wait := half
			if i == 2*blinks-1 {
				wait = time.Second
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				h.light(false)
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// light switches the LED as well as can be.
func (h *Host) light(on bool) {
	text := []byte("0")
	if on {
		text = []byte("1")
	}
	os.WriteFile(h.o.LED, text, 0o644)
}

// Blink shows a person which device this is, for a few seconds. It returns at
// once; a device without an LED does nothing.
func (h *Host) Blink(ctx context.Context) {
	if h.o.LED == "" {
		return
	}
	go func() {
		const pattern, steps = 250 * time.Millisecond, 60 // 15 s
		ticker := time.NewTicker(pattern)
		defer ticker.Stop()
		for i := range steps {
			h.light(i%2 == 1)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// JournalOptions are those of journalctl(1), by their names.
type JournalOptions struct {
	All, Follow                     bool
	Count                           int
	Unit, Format, Tag, Since, Until string
}

// Journal writes what journalctl prints until it ends or ctx does.
func (h *Host) Journal(ctx context.Context, o JournalOptions, w io.Writer) error {
	program, err := exec.LookPath("journalctl")
	if err != nil {
		return errdef.Unsupported.Errorf("this host has no journal: journalctl is not there")
	}
	var args []string
	for _, a := range []struct {
		set  bool
		args []string
	}{
		{o.All, []string{"-a"}}, {o.Follow, []string{"--follow"}}, {o.Unit != "", []string{"-u", o.Unit}}, {o.Tag != "", []string{"-t", o.Tag}},
		{o.Count > 0, []string{"-n", fmt.Sprint(o.Count)}}, {o.Since != "", []string{"-S", o.Since}}, {o.Until != "", []string{"-U", o.Until}},
		{o.Format != "", []string{"-o", o.Format}},
	} {
		if a.set {
			args = append(args, a.args...)
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout = w
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil // the reader has left
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return errdef.Invalid.Errorf("journalctl: %w", err)
	}
	return err
}
