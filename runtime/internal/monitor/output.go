package monitor

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/wire"
	"github.com/minke-os/minke/runtime/jsonlog"
)

// drainTime is how long attached readers may hold up a container that ended.
const drainTime = 10 * time.Second

// output is one stream of a container on its way to the log and to whoever is
// attached.
type output struct {
	src *os.File

	mu    sync.Mutex
	sinks []*os.File
	done  bool
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// copyFrom starts copying src until its end.
func (c *container) copyFrom(src *os.File, name string) *output {
	o := &output{src: src}
	var log *jsonlog.Stream
	if c.log != nil {
		log = c.log.Stream(name)
	}
	c.copies.Go(func() {
		o.copy(log)
		src.Close()
	})
	return o
}

func (o *output) copy(log *jsonlog.Stream) {
	for o.copyChunk(log) {
	}
	if log != nil {
		log.Flush()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = true
	closeFiles(o.sinks)
	o.sinks = nil
}

// copyChunk waits for output without holding a buffer, so an idle stream costs
// a goroutine and nothing else.
func (o *output) copyChunk(log *jsonlog.Stream) bool {
	buf, n := o.read()
	if n <= 0 {
		return false
	}
	defer buffers.Put(buf)
	p := (*buf)[:n]
	if log != nil {
		log.Write(p)
	}
	o.mu.Lock()
	sinks := o.sinks
	o.mu.Unlock()
	for _, s := range sinks {
		if _, err := s.Write(p); err != nil {
			o.drop(s)
		}
	}
	return true
}

func (o *output) read() (buf *[]byte, n int) {
	raw, err := o.src.SyscallConn()
	if err != nil {
		return nil, 0
	}
	raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		for {
			n, err = unix.Read(int(fd), *buf)
			if err != unix.EINTR {
				break
			}
		}
		if n > 0 {
			return true
		}
		buffers.Put(buf)
		return err != unix.EAGAIN // a terminal ends with EIO
	})
	return buf, n
}

// add gives the stream one more reader.
func (o *output) add(sink *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		sink.Close()
		return
	}
	o.sinks = append(o.sinks[:len(o.sinks):len(o.sinks)], sink)
}

// drop forgets a reader that left.
func (o *output) drop(sink *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var rest []*os.File
	for _, s := range o.sinks {
		if s != sink {
			rest = append(rest, s)
		}
	}
	o.sinks = rest
	sink.Close()
}

// hurry limits the time that readers may take from now on.
func (o *output) hurry() {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.sinks {
		s.SetWriteDeadline(time.Now().Add(drainTime))
	}
}

// stdio is one side of a process's standard streams.
type stdio struct{ in, out, err *os.File }

func (s stdio) close() { closeFiles([]*os.File{s.in, s.out, s.err}) }

// fds are for a child; /dev/null stands in for what is missing.
func (s stdio) fds() [3]int {
	var fds [3]int
	for i, f := range []*os.File{s.in, s.out, s.err} {
		if fds[i] = nullFD(); f != nil {
			fds[i] = rawFD(f)
		}
	}
	return fds
}

var nullFD = sync.OnceValue(func() int {
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
})

// openStdio makes the pipes of a container. With a terminal there are none.
func openStdio(l *wire.Launch) (ours, theirs stdio, err error) {
	if l.Terminal {
		return stdio{}, stdio{}, nil
	}
	return openPipes(wire.Streams{Stdin: l.Stdin, Stdout: true, Stderr: true})
}

func openPipes(want wire.Streams) (ours, theirs stdio, err error) {
	if want.Stdin {
		theirs.in, ours.in, err = pipe()
	}
	if want.Stdout && err == nil {
		ours.out, theirs.out, err = pipe()
	}
	if want.Stderr && err == nil {
		ours.err, theirs.err, err = pipe()
	}
	if err != nil {
		ours.close()
		theirs.close()
	}
	return ours, theirs, err
}

// pipe is a pipe of two blocking ends.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// keep turns f into a file that goroutines can wait for. A pipe's other end
// does not change by it.
func keep(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	defer f.Close()
	return pollable(dup(rawFD(f)), f.Name())
}

// pollable takes over fd for use by goroutines.
func pollable(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func dup(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1
	}
	return n
}
