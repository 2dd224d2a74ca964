package sock

import (
	"io"
	"net"
	"path/filepath"
	"testing"
)

func TestUnread(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	buf := make([]byte, 4)
	for _, step := range []struct {
		name string
		do   func()
		want bool
	}{
		{"nothing written", func() {}, false},
		{"written", func() { server.Write([]byte("head")) }, true},
		{"half read", func() { io.ReadFull(client, buf[:2]) }, true},
		{"read", func() { io.ReadFull(client, buf[2:]) }, false},
	} {
		if step.do(); Unread(server) != step.want {
			t.Errorf("%s: Unread = %v, want %v", step.name, !step.want, step.want)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Unread(a) {
		t.Error("something is said of a pipe")
	}
}
