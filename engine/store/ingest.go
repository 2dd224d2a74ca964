package store

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// chunk is what is read at a time, and the most that is held in memory
	// until its digest is known: a file up to this size is written only if
	// it is new.
	chunk = 256 << 10

	// bigFile is the size from which content is worth finding by size; see
	// candidates.
	bigFile = chunk

	// writeback is how much of a big file may wait in memory before the
	// kernel is told to write it.
	writeback = 8 << 20
)

// An ingested is content that has been read but has no name yet: small in
// memory, or big in a staged file.
type ingested struct {
	data []byte   // valid until the next one is ingested
	file *os.File // nil if small
}

// ingest reads one entry's content.
func (a *adding) ingest(ctx context.Context, h *tar.Header, r io.Reader) (content, ingested, error) {
	c := content{size: h.Size, sparse: sparse(h)}
	a.in.content = !c.sparse
	defer func() { a.in.content = false }()

	n, err := io.ReadFull(r, a.buf[:min(h.Size, chunk)])
	if err != nil && !errors.Is(err, io.EOF) {
		return c, ingested{}, notATar(err)
	}
	if int64(n) == h.Size {
		c.digest = sha256.Sum256(a.buf[:n])
		return c, ingested{data: a.buf[:n]}, nil
	}
	in, err := a.ingestBig(ctx, &c, r)
	return c, in, err
}

// ingestBig goes on where a.buf is full.
func (a *adding) ingestBig(ctx context.Context, c *content, r io.Reader) (ingested, error) {
	f, err := os.OpenFile(a.dir+"/big", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return ingested{}, err
	}
	in := ingested{file: f}
	h := sha256.New()
	w := &bigWriter{f: f}
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
}

func (w *bigWriter) write(p []byte) error {
	if !allZero(p) { // a hole needs no disk
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

func (w *bigWriter) finish() error { return w.f.Truncate(w.n) }

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// become gives the content its name, which belongs to digest d. It is not
// durable before the next syncfs.
func (in ingested) become(path string, d sum) error {
	f := in.file
	if f == nil {
		var err error
		if f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err != nil {
			return err
		}
		if _, err := f.Write(in.data); err != nil {
			f.Close()
			return err
		}
	} else if err := os.Rename(f.Name(), path); err != nil {
		f.Close()
		return err
	}
	err := setDigest(f, d)
	return errors.Join(err, f.Close())
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
