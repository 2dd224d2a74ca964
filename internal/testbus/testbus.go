// Package testbus is a real D-Bus for tests, with logind and systemd of our own
// on it, who do nothing and remember what they were asked for.
package testbus

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

// A Host is logind and systemd as far as the supervisor calls them.
type Host struct {
	mu     sync.Mutex // guards the fields below
	calls  []string
	partOf []string // of every unit
}

func (m *Host) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf(format, args...))
}

// Called reports whether a method was called, such as "reboot false" or
// "restart redsocks.service fail".
func (m *Host) Called(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.calls, what)
}

// Reboot is logind's.
func (m *Host) Reboot(interactive bool) *dbus.Error {
	m.note("reboot %v", interactive)
	return nil
}

// PowerOff is logind's.
func (m *Host) PowerOff(interactive bool) *dbus.Error {
	m.note("power off %v", interactive)
	return nil
}

// RestartUnit is systemd's, as those below.
func (m *Host) RestartUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	m.note("restart %s %s", name, mode)
	return "/job/1", nil
}

// StartUnit is systemd's.
func (m *Host) StartUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	m.note("start %s %s", name, mode)
	return "/job/2", nil
}

// StopUnit is systemd's.
func (m *Host) StopUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	m.note("stop %s %s", name, mode)
	return "/job/3", nil
}

// Calls are all that were made.
func (m *Host) Calls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

// PartOf makes every unit a part of this one, and forgets the calls so far.
func (m *Host) PartOf(unit string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.partOf = nil, []string{unit}
}

func (m *Host) LoadUnit(name string) (dbus.ObjectPath, *dbus.Error) { return "/unit", nil }

// Get answers for every property of every unit.
func (m *Host) Get(of, property string) (dbus.Variant, *dbus.Error) {
	if property == "PartOf" {
		m.mu.Lock()
		defer m.mu.Unlock()
		return dbus.MakeVariant(append([]string{}, m.partOf...)), nil
	}
	return dbus.MakeVariant("active"), nil
}

// Start runs a bus with both until the test ends. It skips without dbus-daemon.
func Start(t testing.TB) (address string, m *Host) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon, from the package of that name")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "bus.conf")
	err = os.WriteFile(conf, []byte(`<busconfig><listen>unix:path=`+dir+`/bus</listen><policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--nofork", "--print-address", "--config-file="+conf)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon does not start: %v", err)
	}
	address = strings.TrimSpace(line)
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m = &Host{}
	for _, e := range []struct {
		path       dbus.ObjectPath
		face, name string
	}{
		{"/org/freedesktop/login1", "org.freedesktop.login1.Manager", "org.freedesktop.login1"},
		{"/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "org.freedesktop.systemd1"},
		{"/unit", "org.freedesktop.DBus.Properties", "org.example.units"},
	} {
		if err := conn.Export(m, e.path, e.face); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.RequestName(e.name, 0); err != nil {
			t.Fatal(err)
		}
	}
	return address, m
}
