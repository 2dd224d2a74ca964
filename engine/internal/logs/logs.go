// Package logs reads the json-file logs that the runtime monitor writes.
//
// A log is a file and its rotated predecessors, path.1 the youngest, which may
// be compressed (path.1.gz). Reading needs no cooperation of the writer and
// never holds it up: following waits on inotify. Format: package
// runtime/jsonlog. Containers that log to journald are read back through
// journalctl (journal.go).
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/jsonlog"
)

// Options choose what is read.
type Options struct {
	Tail         int       // the last so many lines; negative: all
	Since, Until time.Time // zero: no bound
	// Follow, if not nil, keeps reading until it is closed and all that was
	// written by then is read.
	Follow <-chan struct{}
}

// Read calls each with every entry in order. It stops at the first error of
// each, which it returns. A missing log is an empty one.
func Read(ctx context.Context, path string, o Options, each func(jsonlog.Entry) error) error {
	r := &reader{path: path, options: o, each: each}
	err := r.run(ctx)
	if errors.Is(err, errUntil) {
		return nil
	}
	return err
}

var errUntil = errors.New("past the last wanted entry")

type reader struct {
	path    string
	options Options
	each    func(jsonlog.Entry) error
	rest    []byte // an incomplete line at the end of the file
}

func (r *reader) run(ctx context.Context) error {
	var changes *watcher
	if r.options.Follow != nil {
		// Before the first look at the file, so that no write is missed.
		w, err := watch(filepath.Dir(r.path))
		if err != nil {
			return fmt.Errorf("follow log: %w", err)
		}
		changes = w
		defer changes.close()
	}
	files, err := r.open()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if r.options.Tail >= 0 {
		if err := seekTail(files, r.options.Tail); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := r.drainSource(f); err != nil {
			return err
		}
	}
	if r.options.Follow == nil {
		return nil
	}
	var current *os.File
	if len(files) > 0 && !files[len(files)-1].packed {
		current = files[len(files)-1].File
	}
	return r.follow(ctx, changes, current)
}

// A source is one file of a log. A compressed one is read from its beginning,
// so for the last lines of it there is a number of lines to skip.
type source struct {
	*os.File
	packed bool
	skip   int
}

// open returns the log's files, oldest first.
func (r *reader) open() (files []*source, err error) {
	for n := 0; ; n++ {
		name := r.path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", r.path, n)
		}
		f, packed, err := openEither(name)
		if os.IsNotExist(err) {
			if n > 0 {
				slices.Reverse(files)
				return files, nil
			}
			continue // just rotated, or nothing written yet
		}
		if err != nil {
			return files, err
		}
		if len(files) > 0 && same(files[len(files)-1].File, f) {
			f.Close() // moved up by a rotation while we look
			continue
		}
		files = append(files, &source{File: f, packed: packed})
	}
}

// openEither opens a file or its compressed form.
func openEither(name string) (f *os.File, packed bool, err error) {
	if f, err = os.Open(name); !os.IsNotExist(err) {
		return f, false, err
	}
	f, err = os.Open(name + ".gz")
	return f, true, err
}

func same(a, b *os.File) bool {
	x, errx := a.Stat()
	y, erry := b.Stat()
	return errx == nil && erry == nil && os.SameFile(x, y)
}

// drainSource reads one file to its present end.
func (r *reader) drainSource(s *source) error {
	if !s.packed {
		return r.drain(s.File)
	}
	z, err := gzip.NewReader(s.File)
	if err != nil {
		return nil // damaged; the next files are good
	}
	defer z.Close()
	br := bufio.NewReaderSize(z, 32<<10)
	for {
		line, err := br.ReadBytes('\n')
		if err != nil {
			return nil // the end, or the rest is damaged
		}
		if s.skip > 0 {
			s.skip--
			continue
		}
		if err := r.entry(line); err != nil {
			return err
		}
	}
}

// drain reads f to its present end.
func (r *reader) drain(f *os.File) error {
	br := bufio.NewReaderSize(f, 32<<10)
	for {
		line, err := br.ReadBytes('\n')
		if err == io.EOF {
			r.rest = append(r.rest, line...)
			return nil
		}
		if err != nil {
			return err
		}
		if len(r.rest) > 0 {
			line = append(r.rest, line...)
			r.rest = nil
		}
		if err := r.entry(line); err != nil {
			return err
		}
	}
}

func (r *reader) entry(line []byte) error {
	entry, err := jsonlog.Decode(line)
	if err != nil {
		return nil // a line cut by a power loss; the next ones are good
	}
	if entry.Time.Before(r.options.Since) {
		return nil
	}
	if u := r.options.Until; !u.IsZero() && entry.Time.After(u) {
		return errUntil
	}
	return r.each(entry)
}

// follow reads on until the writer is done, through rotations.
func (r *reader) follow(ctx context.Context, changes *watcher, f *os.File) error {
	until, cancel := context.WithCancel(ctx)
	defer cancel()
	if u := r.options.Until; !u.IsZero() {
		until, cancel = context.WithDeadline(until, u)
		defer cancel()
	}
	own := f
	defer func() {
		if f != own && f != nil {
			f.Close()
		}
	}()
	for last := false; ; {
		if f != nil {
			if err := r.drain(f); err != nil {
				return err
			}
		}
		next, err := r.rotated(f)
		if err != nil {
			return err
		}
		if next != nil {
			if f != nil {
				// What came between our last read and the rotation.
				if err := r.drain(f); err != nil {
					return err
				}
				if f != own {
					f.Close()
				}
			}
			f, r.rest = next, nil
			continue
		}
		if last {
			return nil
		}
		select {
		case <-changes.c:
		case <-r.options.Follow:
			last = true // once more, for what was written before the end
		case <-until.Done():
			return ctx.Err()
		}
	}
}

// rotated returns the file that has taken f's place, if one has.
func (r *reader) rotated(f *os.File) (*os.File, error) {
	next, err := os.Open(r.path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if f != nil && same(f, next) {
		next.Close()
		return nil, nil
	}
	return next, nil
}

// seekTail moves the files' offsets so that n lines are left to read.
func seekTail(files []*source, n int) error {
	for i := len(files) - 1; i >= 0; i-- {
		found, err := files[i].seekLines(n)
		if err != nil {
			return err
		}
		if n -= found; n <= 0 {
			for _, older := range files[:i] {
				if _, err := older.seekLines(0); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return nil
}

// seekLines leaves at most the last n lines to read.
func (s *source) seekLines(n int) (found int, err error) {
	switch {
	case !s.packed:
		return seekLines(s.File, n)
	case n <= 0:
		s.skip = math.MaxInt
		return 0, nil
	}
	all, err := packedLines(s.File)
	s.skip = max(all-n, 0)
	return min(all, n), err
}

// packedLines counts the lines of a compressed file, and goes back to its
// beginning.
func packedLines(f *os.File) (n int, err error) {
	z, err := gzip.NewReader(f)
	if err == nil {
		buf := make([]byte, 32<<10)
		for {
			got, err := z.Read(buf)
			n += bytes.Count(buf[:got], []byte("\n"))
			if err != nil {
				break // the end, or the rest is damaged
			}
		}
		z.Close()
	}
	_, err = f.Seek(0, io.SeekStart)
	return n, err
}

// seekLines goes back at most n lines from the end of f, reading backwards.
func seekLines(f *os.File, n int) (found int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n <= 0 {
		return 0, err
	}
	buf := make([]byte, 32<<10)
	for pos := end; pos > 0; {
		size := min(pos, int64(len(buf)))
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil {
			return 0, err
		}
		chunk := buf[:size]
		for {
			i := bytes.LastIndexByte(chunk, '\n')
			if i < 0 {
				break
			}
			if at := pos + int64(i) + 1; at < end { // the last newline ends the last line
				if found++; found == n {
					_, err := f.Seek(at, io.SeekStart)
					return found, err
				}
			}
			chunk = chunk[:i]
		}
	}
	if end > 0 {
		found++
	}
	_, err = f.Seek(0, io.SeekStart)
	return found, err
}

// A watcher tells of changes in a directory, many as one.
type watcher struct {
	c chan struct{}
	f *os.File
	// done is closed when the goroutine has ended.
	done chan struct{}
}

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watcher{c: make(chan struct{}, 1), f: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{})}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		w.f.Close()
		return nil, &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	go func() {
		defer close(w.done)
		buf := make([]byte, 4096)
		for {
			if _, err := w.f.Read(buf); err != nil {
				return
			}
			select {
			case w.c <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *watcher) close() {
	w.f.Close()
	<-w.done
}
