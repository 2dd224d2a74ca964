package sock

import (
	"io"
	"net"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
)

func TestUnread(t *testing.T) {
	client, server := testenv.UnixPair(t)
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
