package api

import (
	"testing"
	"time"

	"github.com/minke-os/minke/internal/testenv"
)

// A client that reads ahead while it looks for the end of the head must find
// nothing behind it.
func TestOutputWaitsUntilTheHeadIsRead(t *testing.T) {
	client, server := testenv.UnixPair(t)
	if _, err := server.Write([]byte("head")); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		(&headFirst{Conn: server}).Write([]byte("output"))
	}()
	select {
	case <-written:
		t.Fatal("output was sent before the head was read")
	case <-time.After(headTime / 4):
	}
	buf := make([]byte, 100)
	for _, want := range []string{"head", "output"} {
		if n, err := client.Read(buf); string(buf[:n]) != want {
			t.Errorf("the client reads %q, %v; want %q", buf[:n], err, want)
		}
	}
	<-written
}
