package monitor

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/wire"
	"github.com/minke-os/minke/runtime/jsonlog"
)

// drainTime is how long an attached reader may take for each chunk when the
// container has ended: one that reads gets all, one that does not holds nothing
// up. Docker gives 2 s in all.
const drainTime = 2 * time.Second

// output is one stream of a container on its way to the log and to whoever is
// attached.
type output struct {
	src *os.File

	mu    sync.Mutex
	sinks []*os.File
	ended bool // the process has
	done  bool // and all is copied
}

// copyFrom starts copying src, stdout (0) or stderr (1), until its end.
func (c *container) copyFrom(src *os.File, i int) *output {
	o := &output{src: src}
	t := &tap{o: o, journal: c.journal.stream(i), queue: c.queue}
	if c.log != nil {
		t.log = c.log.Stream([]string{"stdout", "stderr"}[i])
		t.log.Mark = t.journal.size.Store
		t.journal.replay(t.log)
	}
	c.copies.Go(func() {
		t.run()
		src.Close()
	})
	return o
}

// tap is what takes the output.
type tap struct {
	o       *output
	log     *jsonlog.Stream // nil: discarded
	queue   *queue          // nil: written at once
	journal *streamJournal
}

func (t *tap) run() {
	for t.chunk() {
	}
	switch {
	case t.log != nil && t.queue != nil:
		t.queue.flush(t.log)
	case t.log != nil:
		t.log.Flush()
		t.journal.end(nil)
	}
	t.o.mu.Lock()
	defer t.o.mu.Unlock()
	t.o.done = true
	closeFiles(t.o.sinks)
	t.o.sinks = nil
}

func (t *tap) chunk() bool {
	n := t.read()
	if n <= 0 {
		return false
	}
	t.journal.begin(n)
	p := t.journal.chunk[:n]
	switch {
	case t.log != nil && t.queue != nil:
		t.queue.put(t.log, p)
		t.journal.end(nil)
	case t.log != nil:
		t.log.Write(p)
		t.journal.end(t.log.Pending())
	}
	for _, s := range t.o.readers() {
		if _, err := s.Write(p); err != nil {
			t.o.drop(s)
		}
	}
	return true
}

// read waits for output and reads it into the journal. Zero or less is the
// end; a terminal's is EIO.
func (t *tap) read() (n int) {
	raw, err := t.o.src.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Read(func(fd uintptr) bool {
		buf := t.journal.chunk
		if there, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil && there > 0 {
			buf = buf[:min(there, len(buf))]
			t.journal.expect(len(buf))
		}
		for {
			n, err = unix.Read(int(fd), buf)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	return n
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

// readers are those that get the next chunk.
func (o *output) readers() []*os.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limitLocked()
	return o.sinks
}

// hurry limits the time that readers may take from now on.
func (o *output) hurry() {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.limitLocked()
}

func (o *output) limitLocked() {
	if !o.ended {
		return
	}
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

// give makes the streams user 0's of a user namespace, who can then pass them
// on, and open them again as /dev/stdout.
func (s stdio) give(u *wire.User) {
	if u == nil {
		return
	}
	for _, f := range []*os.File{s.in, s.out, s.err} {
		if f != nil {
			unix.Fchown(rawFD(f), u.UID, u.GID) // never fails for a pipe
		}
	}
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
