package store

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// chunk is what is read at a time, and the most that is held in memory
	// until its digest is known: a file up to this size is written only if
	// it is new.
	chunk = 256 << 10

	// bigFile is the size from which content is worth finding by size, see
	// twin.
	bigFile = chunk

	// writeback is how much of a big file may wait in memory before the
	// kernel is told to write it.
	writeback = 8 << 20
)

// An ingested is content that has been read but has no name yet: small in
// memory, or big in a staged file.
type ingested struct {
	data  []byte   // valid until the next one is ingested
	file  *os.File // nil if small
	there bool     // it has its name already, and keeps it until the layer is there
}

// ingest reads one entry's content.
func (a *adding) ingest(ctx context.Context, h *tar.Header, r io.Reader) (content, ingested, error) {
	c := content{size: h.Size, sparse: sparse(h)}
	a.in.content = !c.sparse
	defer func() { a.in.content = false }()

	at := a.in.total
	n, err := io.ReadFull(r, a.buf[:min(h.Size, chunk)])
	if err != nil && !errors.Is(err, io.EOF) {
		return c, ingested{}, notATar(err)
	}
	if told, ok := a.prior.content(at, h.Size); ok && !c.sparse {
		c.digest = told.is
		return c, ingested{there: true}, a.pass(ctx, r, h.Size-int64(n))
	}
	if int64(n) == h.Size {
		c.digest = sha256.Sum256(a.buf[:n])
		return c, ingested{data: a.buf[:n]}, nil
	}
	in, err := a.ingestBig(ctx, &c, r)
	return c, in, err
}

// pass reads n bytes for the digest of the tar alone.
func (a *adding) pass(ctx context.Context, r io.Reader, n int64) error {
	for n > 0 {
		p := a.buf[:min(n, chunk)]
		if _, err := io.ReadFull(r, p); err != nil {
			return noEOF(err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}

// ingestBig goes on where a.buf is full.
func (a *adding) ingestBig(ctx context.Context, c *content, r io.Reader) (ingested, error) {
	f, err := os.OpenFile(a.dir+"/big", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return ingested{}, err
	}
	in := ingested{file: f}
	h := sha256.New()
	w := &bigWriter{f: f, twin: a.twin(c.size), room: a.room}
	defer w.forgetTwin()
	for p := a.buf; ; {
		h.Write(p)
		if err := w.write(p); err != nil {
			in.discard()
			return ingested{}, err
		}
		if w.n == c.size {
			break
		}
		n, err := io.ReadFull(r, a.buf[:min(c.size-w.n, chunk)])
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			in.discard()
			return ingested{}, notATar(noEOF(err))
		}
		p = a.buf[:n]
	}
	h.Sum(c.digest[:0])
	if err := w.finish(); err != nil {
		in.discard()
		return ingested{}, err
	}
	return in, nil
}

// A bigWriter writes a file so that its bytes reach the disk early and leave
// the page cache when they have: a pull neither fills memory with dirty pages
// nor pushes the containers' programs out.
type bigWriter struct {
	f       *os.File
	n       int64
	started int64 // up to here the kernel was told to write
	room    func(n int64) error

	// twin has had the same bytes so far, so none have been written.
	twin *os.File
	cmp  []byte
}

func (w *bigWriter) write(p []byte) error {
	if w.twin != nil {
		if w.sameAsTwin(p) {
			w.n += int64(len(p))
			return nil
		}
		if err := w.part(); err != nil {
			return err
		}
	}
	if !allZero(p) { // a hole needs no disk
		if err := w.room(int64(len(p))); err != nil {
			return err
		}
		if _, err := w.f.WriteAt(p, w.n); err != nil {
			return err
		}
	}
	w.n += int64(len(p))
	if w.n-w.started >= writeback {
		w.start()
	}
	return nil
}

// start begins to write what is new and drops what was begun before. Neither
// can fail in a way that matters: syncfs comes later.
func (w *bigWriter) start() {
	fd := int(w.f.Fd())
	unix.SyncFileRange(fd, w.started, w.n-w.started, unix.SYNC_FILE_RANGE_WRITE)
	if before := w.started - writeback; before >= 0 {
		unix.SyncFileRange(fd, before, writeback, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		unix.Fadvise(fd, before, writeback, unix.FADV_DONTNEED)
	}
	w.started = w.n
}

// finish sets the size, for a hole may be at the end. What is all in a twin
// stays unwritten: the twin is the object that it would become.
func (w *bigWriter) finish() error {
	if w.twin != nil {
		return nil
	}
	return w.f.Truncate(w.n)
}

func (w *bigWriter) sameAsTwin(p []byte) bool {
	if w.cmp == nil {
		w.cmp = make([]byte, chunk)
	}
	n, _ := w.twin.ReadAt(w.cmp[:len(p)], w.n)
	return bytes.Equal(w.cmp[:n], p)
}

// part takes over what was the same from the twin and goes on without it.
func (w *bigWriter) part() error {
	_, err := io.Copy(w.f, io.NewSectionReader(w.twin, 0, w.n))
	w.forgetTwin()
	return err
}

func (w *bigWriter) forgetTwin() {
	if w.twin != nil {
		w.twin.Close()
		w.twin = nil
	}
}

// twin opens an object of the given size, if there is one: most likely it is
// the same file in an earlier version of the image, and a file that is read
// and compared need not be written. Of several of one size we take the first.
func (a *adding) twin(size int64) *os.File {
	name := a.s.ofSize(size)
	if name == "" || a.s.links {
		return nil
	}
	f, err := os.Open(a.s.objectFile(name))
	if err != nil {
		return nil
	}
	var d sum
	if _, err := unix.Fgetxattr(int(f.Fd()), digestAttr, d[:]); err != nil || d.name() != name {
		f.Close()
		return nil
	}
	// Pinned, it is still there when we have read to the end.
	if _, isNew, err := a.find(name, d); err != nil || isNew {
		a.s.unpin(map[string]bool{name: true})
		delete(a.objects, name)
		f.Close()
		return nil
	}
	return f
}

func (s *Store) ofSize(size int64) string {
	var name string
	s.view(func(t tables) error {
		prefix := string(sizeKey(size, ""))
		k, _ := t.sizes.Cursor().Seek([]byte(prefix))
		name, _ = strings.CutPrefix(string(k), prefix)
		if len(name) != nameLen {
			name = ""
		}
		return nil
	})
	return name
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// become gives the content its name, which belongs to digest d. It is not
// durable before the layer is.
func (a *adding) become(in ingested, path string, c content, d sum) error {
	f := in.file
	if f == nil {
		var err error
		if f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err != nil {
			return err
		}
		if err = a.room(int64(len(in.data))); err == nil {
			_, err = f.Write(in.data)
		}
		if err != nil {
			f.Close()
			return err
		}
	} else if err := os.Rename(f.Name(), path); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(setDigest(f, d), f.Close()); err != nil {
		return err
	}
	return a.wrote(c.object, c.size)
}

// discard drops content that is there already.
func (in ingested) discard() {
	if in.file != nil {
		in.file.Close()
		os.Remove(in.file.Name()) // else it goes with the staging directory
	}
}

// sizeKey orders the bucket sizes by size.
func sizeKey(size int64, object string) []byte {
	return fmt.Appendf(nil, "%016x/%s", size, object)
}
