// Package jsonlog writes and reads container logs in Docker's json-file format.
//
// A log is a file of lines like
//
//	{"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}
//
// A line longer than 16 KiB is written in pieces, of which only the last ends
// with a newline; so is the unfinished line of a program that ended. When the
// file reaches its size limit it becomes path.1, path.1 becomes path.2 and so
// on, and the oldest is removed. With Compress the rotated ones are gzip files,
// path.1.gz and so on (rotate.go). With Attrs every entry has them, between
// stream and time: labels and variables that the user chose.
//
// Entries may go to a Sink, too, or instead.
//
// Every Write to a stream is one write to the file. Nothing is synced: a power
// cut may cost the last seconds and may tear the last line, which a reader
// skips. When the disk is full lines are dropped and counted; the writer tries
// again with the next ones. The methods of a Writer and its streams may be
// called at once.
//
// Following, tailing and filtering by time is the reader's business.
package jsonlog

import (
	"bytes"
	"os"
	"sync"
	"time"
	"unicode/utf8"
)

// maxPiece is the length at which a line is split, as Docker does.
const maxPiece = 16 << 10

// Options of a Writer.
type Options struct {
	Path     string // "": no file, only Sink
	MaxSize  int64  // bytes; at this size the file is rotated; 0: it grows for ever
	MaxFiles int    // files kept, the current one included; less than 1 is 1
	Compress bool   // rotated files
	Attrs    string // a JSON object, or ""
	Sink     Sink   // or nil
}

// A Sink takes entries elsewhere. Send gets one piece of a line, without its
// newline, and whether the line goes on in the next; it must not keep line, and
// should not block for long: the container waits. A monitor that takes over
// from one that was killed may send a piece again.
type Sink interface {
	Send(line []byte, stream string, at time.Time, more bool)
	Close()
}

// A Writer appends to one log.
type Writer struct {
	o Options

	mu      sync.Mutex
	f       *os.File
	size    int64
	begun   time.Time // when f was empty
	buf     []byte
	unsent  []piece // of Sink, in buf's order
	dropped int64
	squeeze *squeeze // the compression that goes on, or nil
}

// A piece is on its way to the Sink.
type piece struct {
	line, stream string
	at           time.Time
	more         bool
}

// Open opens or creates the log.
func Open(o Options) (*Writer, error) {
	o.MaxFiles = max(o.MaxFiles, 1)
	w := &Writer{o: o}
	if o.Path == "" {
		return w, nil
	}
	if err := w.open(os.O_APPEND); err != nil {
		return nil, err
	}
	w.compressLocked() // what was interrupted
	return w, nil
}

func (w *Writer) open(flag int) error {
	f, err := os.OpenFile(w.o.Path, os.O_CREATE|os.O_WRONLY|flag, 0o640)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	w.f, w.size, w.begun = f, fi.Size(), time.Now()
	return nil
}

// Close closes the file. Streams must have been flushed.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.squeeze.stop()
	if w.o.Sink != nil {
		w.o.Sink.Close()
	}
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}

// Dropped is the number of pieces lost because they could not be written.
func (w *Writer) Dropped() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// Stream is the part of a log that one output of the container writes. Its
// methods may not be called at once.
type Stream struct {
	w    *Writer
	name string
	part []byte    // the beginning of a line
	at   time.Time // when the line that is going on began; all its pieces carry it
	now  func() time.Time

	// Mark, if set, is called with the size of the file just before entries of
	// this stream are appended to it, and with Written after. Nobody else
	// writes to the file between.
	Mark func(size int64)
}

// Written is what Mark is called with after a write.
const Written = -2

// Stream returns the writer for "stdout" or "stderr".
func (w *Writer) Stream(name string) *Stream { return &Stream{w: w, name: name, now: time.Now} }

// Write takes over output as it comes. It never fails.
func (s *Stream) Write(p []byte) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.flushLocked(s.takeLocked(p))
}

// takeLocked puts the finished pieces into the buffer and counts them.
func (s *Stream) takeLocked(p []byte) (pieces int) {
	for now := s.now(); len(p) > 0; {
		if s.at.IsZero() {
			s.at = now
		}
		n, ended := cut(p, maxPiece-len(s.part))
		if !ended && len(s.part)+n < maxPiece {
			s.part = append(s.part, p[:n]...)
			break
		}
		s.pieceLocked(p[:n], !ended)
		pieces++
		if ended {
			s.at = time.Time{}
		}
		p = p[n:]
	}
	return pieces
}

// Pending is the beginning of a line that is not in the file yet. It is valid
// until the next call.
func (s *Stream) Pending() []byte { return s.part }

// Restore begins with what another Stream had pending.
func (s *Stream) Restore(pending []byte) {
	if len(pending) > 0 {
		s.part, s.at = append(s.part[:0], pending...), s.now()
	}
}

// Skip takes over output of which all finished pieces are in the file already.
func (s *Stream) Skip(p []byte) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.takeLocked(p)
	s.w.buf, s.w.unsent = s.w.buf[:0], nil
}

// Truncate takes back what a write that was interrupted left after size.
func (w *Writer) Truncate(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil || w.size <= size {
		return nil
	}
	if err := w.f.Truncate(size); err != nil {
		return err
	}
	w.size = size
	return nil
}

// cut is the length of p up to and including its first newline, at most limit
// bytes of text, and whether the newline is among them.
func cut(p []byte, limit int) (n int, ended bool) {
	if i := bytes.IndexByte(p[:min(len(p), limit+1)], '\n'); i >= 0 {
		return i + 1, true
	}
	return min(len(p), limit), false
}

// Flush writes the unfinished line, if any, at the end of the output.
func (s *Stream) Flush() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if len(s.part) == 0 {
		return
	}
	s.pieceLocked(nil, false)
	s.flushLocked(1)
	s.at = time.Time{}
}

func (s *Stream) pieceLocked(p []byte, more bool) {
	if len(s.part) > 0 {
		p = append(s.part, p...)
		s.part = nil
	}
	if s.w.o.Path != "" {
		s.w.buf = appendEntry(s.w.buf, p, s.name, s.w.o.Attrs, s.at)
	}
	if s.w.o.Sink != nil {
		s.w.unsent = append(s.w.unsent, piece{string(bytes.TrimSuffix(p, []byte("\n"))), s.name, s.at, more})
	}
}

func (s *Stream) flushLocked(pieces int) {
	if pieces == 0 {
		return
	}
	w := s.w
	if w.o.MaxSize > 0 && w.size >= w.o.MaxSize {
		w.rotateLocked()
	}
	if s.Mark != nil {
		s.Mark(w.size)
		defer s.Mark(Written)
	}
	for _, p := range w.unsent {
		w.o.Sink.Send([]byte(p.line), p.stream, p.at, p.more)
	}
	w.unsent = nil
	if w.o.Path != "" && !w.writeLocked() {
		w.dropped += int64(pieces)
	}
	if cap(w.buf) > 64<<10 {
		w.buf = nil // one chatty moment should not cost memory for ever
	}
	w.buf = w.buf[:0]
}

// writeLocked writes the buffer or nothing: half an entry would spoil the next.
func (w *Writer) writeLocked() bool {
	if w.f == nil && w.open(os.O_APPEND) != nil {
		return false
	}
	n, err := w.f.Write(w.buf)
	if err != nil {
		if n > 0 {
			w.f.Truncate(w.size)
		}
		return false
	}
	w.size += int64(n)
	return true
}

func appendEntry(b, line []byte, stream, attrs string, at time.Time) []byte {
	b = append(b, `{"log":"`...)
	b = appendString(b, line)
	b = append(b, `","stream":"`...)
	b = append(b, stream...)
	if attrs != "" {
		b = append(b, `","attrs":`...)
		b = append(b, attrs...)
		b = append(b, `,"time":"`...)
	} else {
		b = append(b, `","time":"`...)
	}
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

const hex = "0123456789abcdef"

// appendString quotes as encoding/json does with HTML escaping on, which is
// what Docker's files have.
func appendString(b, s []byte) []byte {
	start := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if safe(c) {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			b = appendEscaped(b, c)
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(append(b, s[start:i]...), `\ufffd`...)
			start = i + size
		case r == '\u2028' || r == '\u2029':
			b = append(append(b, s[start:i]...), `\u202`...)
			b = append(b, hex[r&0xF])
			start = i + size
		}
		i += size
	}
	return append(b, s[start:]...)
}

func safe(c byte) bool {
	return c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
}

func appendEscaped(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xF])
}
