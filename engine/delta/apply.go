package delta

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// How a content in a segment is made.
const (
	whole   = 0 // its bytes follow
	patched = 1 // the number of its base, then a patch
	inside  = 2 // the same, and the size of its opened form, which the patch makes of the base's
)

// An Applier makes contents. It keeps what it needs for one segment for the next.
// The zero value works; Close it.
type Applier struct {
	z   *zstd.Decoder
	r   *bufio.Reader
	buf patchBuffers

	file, form, made []byte // of what is opened
}

// Apply makes the contents of one segment of d. r has the segment's bytes; open
// opens a base; create is called for each content, and what it returns is closed
// once the content is complete and has the right digest, or, before, given up by
// Abort.
func (a *Applier) Apply(d *Delta, s Segment, r io.Reader, open func(Content) (File, error), create func(Content) (Sink, error)) error {
	if err := a.start(io.LimitReader(r, s.Length)); err != nil {
		return invalid("segment", err)
	}
	for c, err := range s.Contents() {
		if err != nil {
			return err
		}
		sink, err := create(c)
		if err != nil {
			return err
		}
		if err := a.content(c, s.bases, d.version, open, sink); err != nil {
			sink.Abort()
			return fmt.Errorf("content %s: %w", c.Digest, err)
		}
		if err := sink.Close(); err != nil {
			return err
		}
	}
	if _, err := a.r.ReadByte(); !errors.Is(err, io.EOF) {
		return errdef.Invalid.Errorf("delta: a segment has more than its contents (%v)", err)
	}
	return nil
}

func (a *Applier) start(r io.Reader) (err error) {
	if a.z != nil {
		err = a.z.Reset(r)
	} else if a.z, err = decoder(r); err == nil {
		a.r = bufio.NewReaderSize(nil, 64<<10)
	}
	if err == nil {
		a.r.Reset(a.z)
	}
	return err
}

// Close gives the memory back.
func (a *Applier) Close() {
	if a.z != nil {
		a.z.Close()
	}
	*a = Applier{}
}

// A Sink takes the bytes of one content.
type Sink interface {
	io.WriteCloser
	Abort()
}

func (a *Applier) content(c Content, bases list, version int, open func(Content) (File, error), w io.Writer) error {
	h := sha256.New()
	if err := a.make(c, bases, version, open, io.MultiWriter(w, h)); err != nil {
		return err
	}
	return verify(h, c)
}

func verify(h hash.Hash, c Content) error {
	if got := oci.FromHash(h); got != c.Digest {
		return errdef.Invalid.Errorf("the delta makes bytes with the digest %s", got)
	}
	return nil
}

func (a *Applier) make(c Content, bases list, version int, open func(Content) (File, error), w io.Writer) error {
	kind, err := a.r.ReadByte()
	if err != nil {
		return invalid("segment", noEOF(err))
	}
	switch {
	case kind == whole:
		if _, err := io.CopyN(w, a.r, c.Size); err != nil {
			return invalid("segment", noEOF(err))
		}
		return nil
	case kind == patched || kind == inside && version >= opensDeflate:
		base, err := readBase(a.r, bases)
		if err != nil {
			return invalid("base", err)
		}
		f, err := open(base)
		if err != nil {
			return fmt.Errorf("base %s: %w", base.Digest, err)
		}
		if kind == inside {
			err = a.inside(w, f, base, c, version)
		} else {
			err = applyPatch(w, a.r, f, base.Size, c.Size, &a.buf)
		}
		if err != nil {
			err = invalid("patch", err)
		}
		return errors.Join(err, f.Close())
	}
	return errdef.Invalid.Errorf("delta: a content of an unknown kind")
}

// inside makes a content whose opened form a patch makes of that of the base.
func (a *Applier) inside(w io.Writer, f File, base, c Content, version int) error {
	size, err := number(a.r, maxOpened)
	if err != nil {
		return err
	}
	if base.Size > maxOpened || c.Size > maxOpened {
		return errors.New("a file that is too large to be opened")
	}
	a.file = slices.Grow(a.file[:0], int(base.Size))[:base.Size]
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, base.Size), a.file); err != nil {
		return noEOF(err)
	}
	form, ok := opened(a.form[:0], a.file, version)
	if a.form = form; !ok {
		return errors.New("a base that cannot be opened")
	}
	made := bytes.NewBuffer(slices.Grow(a.made[:0], int(size)))
	err = applyPatch(made, a.r, bytes.NewReader(form), int64(len(form)), size, &a.buf)
	if a.made = made.Bytes(); err != nil {
		return err
	}
	a.file, err = closed(slices.Grow(a.file[:0], int(c.Size)), a.made, c.Size, version)
	if err == nil && int64(len(a.file)) != c.Size {
		err = errors.New("a compressed file of another size than it says")
	}
	if err == nil {
		_, err = w.Write(a.file)
	}
	return err
}

// readBase reads which of the bases a patch builds on.
func readBase(r io.ByteReader, bases list) (Content, error) {
	n, err := number(r, int64(bases.n))
	if err != nil || n == int64(bases.n) {
		return Content{}, errors.Join(err, errors.New("a base that is not in the list"))
	}
	return bases.at(int(n))
}
