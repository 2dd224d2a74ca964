package uevent

import (
	"context"
	"os"
	"testing"
	"time"
)

func TestEventsOfTheKernelAreHeard(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ready, heard, done := make(chan struct{}), make(chan Event, 64), make(chan error, 1)
	go func() { done <- Listen(ctx, ready, func(ev Event) { heard <- ev }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Skipf("needs device events: %v", err)
	}
	if err := os.WriteFile("/sys/class/mem/null/uevent", []byte("change"), 0); err != nil {
		t.Skipf("needs a /sys that can be written to: %v", err)
	}
	want := Event{Action: Change, Path: "/devices/virtual/mem/null", Subsystem: "mem", Name: "null"}
	timeout := time.After(10 * time.Second)
	for found := false; !found; {
		select {
		case ev := <-heard: // others may say something, too
			found = ev == want
		case <-timeout:
			t.Fatalf("never heard %+v", want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Listen ended with %v", err)
	}
}

const kernelMessage = "add@/devices/x/tty/ttyUSB0\x00ACTION=add\x00DEVPATH=/devices/x/tty/ttyUSB0\x00SUBSYSTEM=tty\x00DEVNAME=ttyUSB0\x00SEQNUM=1\x00"

func udevMessage() []byte {
	header := make([]byte, 40)
	copy(header, "libudev\x00\xfe\xed\xca\xfe")
	header[12], header[16] = 40, 40
	return append(header, "ACTION=add\x00DEVPATH=/devices/x/tty/ttyUSB0\x00SUBSYSTEM=tty\x00DEVNAME=/dev/ttyUSB0\x00"...)
}

func TestParse(t *testing.T) {
	want := Event{Action: Add, Path: "/devices/x/tty/ttyUSB0", Subsystem: "tty", Name: "ttyUSB0"}
	if got, ok := parse([]byte(kernelMessage), true); !ok || got != want {
		t.Errorf("kernel's: %+v, %v", got, ok)
	}
	want.Settled = true
	if got, ok := parse(udevMessage(), false); !ok || got != want {
		t.Errorf("udev's: %+v, %v", got, ok)
	}
	if got, ok := parse([]byte(kernelMessage), false); ok {
		t.Errorf("a message of somebody else is taken for udev's: %+v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(kernelMessage), true)
	f.Add(udevMessage(), false)
	f.Fuzz(func(t *testing.T, data []byte, kernel bool) {
		if ev, ok := parse(data, kernel); ok && (ev.Action == "" || ev.Path == "") {
			t.Errorf("parse(%q) = %+v", data, ev)
		}
	})
}
