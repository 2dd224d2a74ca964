package logs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/runtime/jsonlog"
)

var start = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func at(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }

// line is entry n, written at second n.
func line(n int) string {
	return fmt.Sprintf("{\"log\":\"line %d\\n\",\"stream\":\"stdout\",\"time\":%q}\n", n, at(n).Format(time.RFC3339Nano))
}

func lines(from, to int) (s string) {
	for n := from; n < to; n++ {
		s += line(n)
	}
	return s
}

// logOf writes files, the oldest first, and returns the log's path.
func logOf(t *testing.T, files ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	for i, data := range files {
		name := path
		if n := len(files) - 1 - i; n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func read(t *testing.T, path string, o Options) (got []string) {
	t.Helper()
	err := Read(t.Context(), path, o, func(e jsonlog.Entry) error {
		got = append(got, strings.TrimPrefix(strings.TrimSpace(string(e.Line)), "line "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRead(t *testing.T) {
	rotated := []string{lines(0, 3), lines(3, 6), lines(6, 8)}
	long := "{\"log\":\"" + strings.Repeat("x", 100_000) + "\\n\",\"stream\":\"stdout\",\"time\":\"2024-05-01T12:00:00Z\"}\n"
	tests := []struct {
		name  string
		files []string
		o     Options
		want  string
	}{
		{"all-through-rotations", rotated, Options{Tail: -1}, "0 1 2 3 4 5 6 7"},
		{"tail-within-a-file", rotated, Options{Tail: 1}, "7"},
		{"tail-of-a-whole-file", rotated, Options{Tail: 2}, "6 7"},
		{"tail-across-files", rotated, Options{Tail: 6}, "2 3 4 5 6 7"},
		{"tail-of-more-than-there-is", rotated, Options{Tail: 100}, "0 1 2 3 4 5 6 7"},
		{"tail-of-none", rotated, Options{Tail: 0}, ""},
		{"since", rotated, Options{Tail: -1, Since: at(6)}, "6 7"},
		{"until", rotated, Options{Tail: -1, Until: at(1)}, "0 1"},
		{"since-and-until", rotated, Options{Tail: -1, Since: at(2), Until: at(4)}, "2 3 4"},
		{"a-line-cut-by-power-loss-is-left-out", []string{line(0) + line(1)[:20] + "\n" + line(2)}, Options{Tail: -1}, "0 2"},
		{"a-line-without-end-is-not-there-yet", []string{line(0) + line(1)[:20]}, Options{Tail: -1}, "0"},
		{"lines-longer-than-any-buffer", []string{long + line(1)}, Options{Tail: 1}, "1"},
		{"empty", []string{""}, Options{Tail: -1}, ""},
		{"missing", nil, Options{Tail: 5}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(read(t, logOf(t, tt.files...), tt.o), " "); got != tt.want {
				t.Errorf("read %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFollowReadsThroughARotationToTheEnd(t *testing.T) {
	path := logOf(t, lines(0, 2))
	done, seen := make(chan struct{}), make(chan string)
	finished := make(chan error, 1)
	go func() {
		finished <- Read(t.Context(), path, Options{Tail: -1, Follow: done}, func(e jsonlog.Entry) error {
			seen <- strings.TrimSpace(string(e.Line))
			return nil
		})
		close(seen)
	}()
	next := func(n int) {
		t.Helper()
		if got := <-seen; got != fmt.Sprintf("line %d", n) {
			t.Fatalf("followed %q, want line %d", got, n)
		}
	}
	next(0)
	next(1)
	write := func(data string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(data); err != nil {
			t.Fatal(err)
		}
	}
	write(line(2)[:10]) // half a line waits for the rest
	write(line(2)[10:] + line(3))
	next(2)
	next(3)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(line(4))
	next(4)
	write(line(5))
	close(done)
	next(5)
	if _, more := <-seen; more {
		t.Error("more than was written")
	}
	if err := <-finished; err != nil {
		t.Error(err)
	}
}

func TestFollowEndsWithTheClient(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := Read(ctx, logOf(t, line(0)), Options{Tail: -1, Follow: make(chan struct{})}, func(jsonlog.Entry) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v, want %v", err, context.Canceled)
	}
}

func TestReadStopsAtTheCallersError(t *testing.T) {
	broken := errors.New("the client is gone")
	if err := Read(t.Context(), logOf(t, lines(0, 3)), Options{Tail: -1}, func(jsonlog.Entry) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("Read = %v, want %v", err, broken)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(lines(0, 3)), 2)
	f.Add([]byte("{\"log\":\n\n\n"), 1)
	f.Fuzz(func(t *testing.T, data []byte, tail int) {
		path := logOf(t, string(data))
		all := read(t, path, Options{Tail: -1})
		if got := read(t, path, Options{Tail: max(tail, 0)}); len(got) > max(tail, 0) || !slices.Equal(got, all[len(all)-len(got):]) {
			t.Errorf("tail %d = %q of %q", tail, got, all)
		}
	})
}

func TestCompressedFilesAreRead(t *testing.T) {
	path := logOf(t, lines(0, 10), lines(10, 20), lines(20, 25))
	for _, name := range []string{path + ".1", path + ".2"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		z.Write(data)
		z.Close()
		if err := errors.Join(os.WriteFile(name+".gz", packed.Bytes(), 0o600), os.Remove(name)); err != nil {
			t.Fatal(err)
		}
	}
	for tail, first := range map[int]string{-1: "0", 24: "1", 15: "10", 7: "18", 5: "20", 2: "23"} {
		got := read(t, path, Options{Tail: tail})
		if n := len(got); tail >= 0 && n != tail || got[0] != first || got[n-1] != "24" {
			t.Errorf("tail %d = %v, want from %s to 24", tail, got, first)
		}
	}
}

func FuzzReadRotated(f *testing.F) {
	f.Add([]byte(lines(0, 3)), []byte(lines(3, 5)), 2, true)
	f.Add([]byte("\x1f\x8b\x08"), []byte("{}\n{\"log\":\"x"), -1, true)
	f.Fuzz(func(t *testing.T, old, now []byte, tail int, packed bool) {
		path := logOf(t, string(now))
		name := path + ".1"
		if packed {
			name += ".gz"
		}
		if err := os.WriteFile(name, old, 0o600); err != nil {
			t.Fatal(err)
		}
		read(t, path, Options{Tail: tail})
	})
}
