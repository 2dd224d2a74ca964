package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/runtime/internal/wire"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

// journal is a socket as journald has it.
func journal(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fields takes an entry of the native protocol apart.
func fields(t *testing.T, data []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for len(data) > 0 {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			t.Fatalf("no newline in %q", data)
		}
		if name, value, ok := strings.Cut(string(line), "="); ok {
			out[name], data = value, rest
			continue
		}
		n := binary.LittleEndian.Uint64(rest)
		out[string(line)], data = string(rest[8:8+n]), rest[8+n+1:]
	}
	return out
}

func receive(t *testing.T, c net.Conn) []byte {
	t.Helper()
	buf := make([]byte, 64<<10)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestJournalGetsFieldsAndAnyBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	c := journal(t, path)
	s := New(wire.Forward{Network: "unixgram", Address: path, Journal: []string{"CONTAINER_ID=abc", "CONTAINER_NAME=web"}})
	defer s.Close()
	s.Send([]byte("a\nb=\xff"), "stderr", at, true)
	got := fields(t, receive(t, c))
	for name, want := range map[string]string{
		"MESSAGE": "a\nb=\xff", "PRIORITY": "3", "CONTAINER_ID": "abc", "CONTAINER_NAME": "web", "CONTAINER_PARTIAL_MESSAGE": "true",
		"SYSLOG_TIMESTAMP": "2026-01-02T03:04:05.000006Z", "CONTAINER_LOG_ORDINAL": "1",
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
}

func TestRestartedServiceGetsTheNextEntry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	c := journal(t, path)
	s := New(wire.Forward{Network: "unixgram", Address: path})
	defer s.Close()
	s.Send([]byte("one"), "stdout", at, false)
	receive(t, c)
	c.Close()
	os.Remove(path)
	c = journal(t, path)
	s.Send([]byte("two"), "stdout", at, false)
	if got := fields(t, receive(t, c)); got["MESSAGE"] != "two" {
		t.Errorf("MESSAGE = %q, want two", got["MESSAGE"])
	}
	if s.Dropped() != 0 {
		t.Errorf("Dropped = %d, want 0", s.Dropped())
	}
}

func TestMissingServiceCostsEntriesNotTime(t *testing.T) {
	s := New(wire.Forward{Network: "unixgram", Address: filepath.Join(t.TempDir(), "none")})
	defer s.Close()
	start := time.Now()
	for range 10_000 {
		s.Send([]byte("x"), "stdout", at, false)
	}
	if s.Dropped() != 10_000 || time.Since(start) > 5*time.Second {
		t.Errorf("Dropped = %d in %v, want 10000 at once", s.Dropped(), time.Since(start))
	}
}

func TestServiceThatDoesNotReadHoldsUpForALimitedTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	journal(t, path) // nobody reads from it
	s := New(wire.Forward{Network: "unixgram", Address: path})
	defer s.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s.Dropped() < 100 {
			s.Send(make([]byte, 16<<10), "stdout", at, false)
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("Send still blocks after 30 s, want entries dropped")
	}
}

func TestSyslogFormats(t *testing.T) {
	tests := []struct{ format, want string }{
		{"", "<30>Jan  2 03:04:05 web[PID]: hello"},
		{"rfc3164", "<30>Jan  2 03:04:05 board web[PID]: hello"},
		{"rfc5424", "<30>1 2026-01-02T03:04:05Z board web PID web - hello"},
		{"rfc5424micro", "<30>1 2026-01-02T03:04:05.000006Z board web PID web - hello"},
	}
	for _, tt := range tests {
		t.Run("format-"+tt.format, func(t *testing.T) {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s := New(wire.Forward{Network: "udp", Address: c.LocalAddr().String(), Syslog: &wire.Syslog{Facility: 3, Format: tt.format, Tag: "web", Host: "board"}})
			defer s.Close()
			s.Send([]byte("hello"), "stdout", at, false)
			got := string(receive(t, c.(net.Conn)))
			if want := strings.ReplaceAll(tt.want, "PID", fmt.Sprint(os.Getpid())); got != want {
				t.Errorf("line = %q, want %q", got, want)
			}
		})
	}
}

func TestSyslogOverAStreamSeparatesLines(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := New(wire.Forward{Network: "tcp", Address: l.Addr().String(), Syslog: &wire.Syslog{Facility: 3, Tag: "web"}})
	s.Send([]byte("one"), "stderr", at, false)
	s.Send([]byte("two"), "stdout", at, false)
	s.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []byte
	for buf := make([]byte, 1024); ; {
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			break
		}
	}
	if lines := strings.Split(string(all), "\n"); len(lines) != 3 || !strings.HasSuffix(lines[0], "one") || !strings.HasPrefix(lines[0], "<27>") || !strings.HasSuffix(lines[1], "two") {
		t.Errorf("lines = %q, want two", lines)
	}
}
