package jsonlog

import (
	"compress/gzip"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// Compressing goes on beside writing. It is given up when the next rotation
// comes first, and not begun when the file filled in less than worthIt: a
// container that floods its log must not take a second core, and the log's
// limit holds without it. What is compressed appears by one rename, after which
// the plain file goes; a reader that finds both takes the plain one.
const (
	worthIt = 2 * time.Second
	partial = ".gz.tmp" // behind the log's path
)

// rotateLocked moves the files one number up. When it fails half way the log
// goes on in whatever file has the plain name.
func (w *Writer) rotateLocked() {
	w.squeeze.stop()
	quiet := time.Since(w.begun) >= worthIt
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
	if w.o.MaxFiles == 1 {
		w.open(os.O_TRUNC | os.O_APPEND)
		return
	}
	for i := w.o.MaxFiles - 1; i >= 1; i-- {
		from, to := w.name(i-1), w.name(i)
		os.Remove(to)
		os.Remove(to + ".gz")
		os.Rename(from, to)
		os.Rename(from+".gz", to+".gz")
	}
	w.open(os.O_APPEND)
	if quiet {
		w.compressLocked()
	}
}

func (w *Writer) name(n int) string {
	if n == 0 {
		return w.o.Path
	}
	return w.o.Path + "." + strconv.Itoa(n)
}

// compressLocked begins to compress the youngest rotated file, if it is plain.
func (w *Writer) compressLocked() {
	if !w.o.Compress || w.o.MaxFiles < 2 {
		return
	}
	from, err := os.Open(w.name(1))
	if err != nil {
		return
	}
	s := &squeeze{done: make(chan struct{})}
	w.squeeze = s
	go func() {
		defer close(s.done)
		defer from.Close()
		tmp := w.o.Path + partial
		defer os.Remove(tmp)
		if s.run(from, tmp) != nil {
			return // the plain file stays
		}
		if os.Rename(tmp, w.name(1)+".gz") == nil {
			os.Remove(w.name(1))
		}
	}()
}

// A squeeze is a compression that goes on.
type squeeze struct {
	stopped atomic.Bool
	done    chan struct{}
}

// stop gives the compression up and waits for its end.
func (s *squeeze) stop() {
	if s == nil {
		return
	}
	s.stopped.Store(true)
	<-s.done
}

func (s *squeeze) run(from *os.File, tmp string) error {
	to, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer to.Close()
	z, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(z, interruptible{from, s}, make([]byte, 32<<10)); err != nil {
		return err
	}
	return z.Close()
}

// interruptible reads until its squeeze is stopped.
type interruptible struct {
	f *os.File
	s *squeeze
}

func (r interruptible) Read(p []byte) (int, error) {
	if r.s.stopped.Load() {
		return 0, os.ErrClosed
	}
	return r.f.Read(p)
}
