package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// pair is two ends of a connection.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	a, fd, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

func TestMessagesArriveWithTheirDescriptors(t *testing.T) {
	a, b := pair(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	long := strings.Repeat("x", 1<<20) // more than a socket's buffer
	sent := make(chan error, 1)
	go func() {
		for _, r := range []Request{{ID: "with"}, {ID: long}, {ID: "last"}} {
			var fds []int
			if r.ID != "last" {
				fds = []int{int(f.Fd()), int(f.Fd())}
			}
			if err := a.Send(r, fds...); err != nil {
				sent <- err
				return
			}
		}
		sent <- a.Close()
	}()
	for _, want := range []struct {
		id    string
		files int
	}{{"with", 2}, {long, 2}, {"last", 0}} {
		var r Request
		files, err := b.Recv(&r)
		if err != nil || r.ID != want.id || len(files) != want.files {
			t.Fatalf("Recv = %.20q with %d descriptors, %v; want %.20q with %d", r.ID, len(files), err, want.id, want.files)
		}
		for _, got := range files {
			x, _ := f.Stat()
			if y, err := got.Stat(); err != nil || !os.SameFile(x, y) {
				t.Errorf("descriptor is another file: %v", err)
			}
			got.Close()
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	var r Request
	if _, err := b.Recv(&r); !errors.Is(err, io.EOF) {
		t.Errorf("Recv at the end = %v, want EOF", err)
	}
}

func TestErrorsKeepTheirKindOnTheWay(t *testing.T) {
	err := ErrorOf(errdef.NotFound.Errorf("no container x")).Err()
	if !errdef.Is(err, errdef.NotFound) || err.Error() != "no container x" {
		t.Errorf("error = %v (%s)", err, errdef.Of(err))
	}
	p, ok := errors.AsType[*ProgramError](ErrorOf(&ProgramError{127, "not there"}).Err())
	if !ok || p.Code != 127 || p.Text != "not there" {
		t.Errorf("program error = %+v", p)
	}
	if ErrorOf(nil).Err() != nil {
		t.Error("no error became one")
	}
}

// Whatever comes, Recv returns, and takes no more memory than a message may.
func FuzzRecv(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		a, b := pair(t)
		if _, err := a.f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := unix.Shutdown(a.FD(), unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		var r Request
		_, err := b.Recv(&r)
		if len(data) < headerLen && err == nil {
			t.Fatalf("Recv took %q", data)
		}
		if len(data) >= headerLen && binary.LittleEndian.Uint32(data[4:]) > 0 && err == nil {
			t.Fatalf("Recv took %q without the descriptors", data)
		}
	})
}
