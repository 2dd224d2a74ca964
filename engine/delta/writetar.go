package delta

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"slices"

	"github.com/minke-os/minke/internal/errdef"
)

// A Contents gives the bytes of contents: those that were there before, and new
// ones. kept says that the base layer has the content.
type Contents func(c Content, kept bool) (io.ReadCloser, error)

// WriteTar writes the target layer's tar. skeleton is that section of the delta;
// base are the records of the layer d.Base, nil if it is "". It asks for a content
// when all bytes before it are written. Whether the bytes are those that d.Target
// names is for the caller to check, who has to hash them anyway.
func (d *Delta) WriteTar(ctx context.Context, w io.Writer, skeleton io.Reader, base Records, contents Contents) error {
	out := &limited{w: w, left: d.TarSize}
	buf := make([]byte, copyBuffer)
	var head []byte
	return d.entries(skeleton, base, func(e *entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		head = e.appendFilled(head[:0])
		if _, err := out.Write(head); err != nil {
			return err
		}
		if e.content == nil {
			return nil
		}
		if err := copyContent(out, e, contents, buf); err != nil {
			return err
		}
		if !e.padded {
			return nil
		}
		_, err := out.Write(make([]byte, padding(e.content.Size)))
		return err
	})
}

// copyBuffer is how much of a content is read at a time.
const copyBuffer = 128 << 10

func copyContent(w io.Writer, e *entry, contents Contents, buf []byte) error {
	c := *e.content
	r, err := contents(c, e.kept)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(w, io.LimitReader(r, c.Size), buf)
	if err == nil && n < c.Size {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, r.Close())
}

// limited refuses what is more than was said.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		return 0, errdef.Invalid.Errorf("the delta makes a larger layer than it says")
	}
	n, err := l.w.Write(p)
	l.left -= int64(n)
	return n, err
}

// entries decodes a skeleton.
func (d *Delta) entries(skeleton io.Reader, base Records, emit func(*entry) error) error {
	if base == nil {
		base = func(func(Record, error) bool) {}
	}
	next, stop := iter.Pull2(entries(base))
	defer stop()
	z, err := decoder(skeleton)
	if err != nil {
		return err
	}
	defer z.Close()
	r := skeletonReader{contents: d.contents, next: d.contents.cursor(), r: bufio.NewReader(z), base: next}
	for {
		n, err := binary.ReadUvarint(r.r)
		if err != nil {
			return invalid("skeleton", noEOF(err))
		}
		if n == 0 {
			return nil
		}
		if err := r.chunk(n); err != nil {
			return invalid("skeleton", err)
		}
		for range n {
			e, err := r.entry()
			if err != nil {
				return invalid("skeleton", err)
			}
			if err := emit(e); err != nil {
				return err
			}
		}
		if r.cols.kinds = r.cols.kinds[:0]; r.kinds.Len()+r.tms.Len()+r.heads.Len()+r.sums.Len() > 0 {
			return invalid("skeleton", errors.New("a chunk has more than its entries"))
		}
	}
}

type skeletonReader struct {
	contents list
	next     *cursor // of it
	r        *bufio.Reader
	base     func() (*entry, error, bool)
	times    times

	cols                    columns
	kinds, tms, heads, sums column
}

func (r *skeletonReader) chunk(n uint64) error {
	if n > chunkEntries {
		return errors.New("a chunk has too many entries")
	}
	for _, col := range r.cols.all() {
		size, err := binary.ReadUvarint(r.r)
		if err != nil {
			return noEOF(err)
		}
		if size > maxColumn {
			return errors.New("a chunk is too large")
		}
		*col = slices.Grow((*col)[:0], int(size))[:size]
	}
	for _, col := range r.cols.all() {
		if _, err := io.ReadFull(r.r, *col); err != nil {
			return noEOF(err)
		}
	}
	r.kinds, r.tms, r.heads, r.sums = column{r.cols.kinds}, column{r.cols.times}, column{r.cols.heads}, column{r.cols.sums}
	return nil
}

func (r *skeletonReader) entry() (*entry, error) {
	kind, err := r.kinds.ReadByte()
	if err != nil {
		return nil, err
	}
	var e, from *entry
	switch kind & headMask {
	case headOfBase:
		if from, err = r.ofBase(); err == nil {
			e = &entry{head: from.head, blocks: append([]block(nil), from.blocks...)}
		}
	case headBytes, headBlocks:
		e, err = r.literal(kind&headMask == headBlocks)
	default:
		err = errors.New("an entry of an unknown kind")
	}
	if err != nil {
		return nil, err
	}
	if e.content, err = r.content(kind&contentMask, from); err != nil {
		return nil, err
	}
	e.padded = kind&padded != 0 && e.content != nil
	e.kept = kind&contentMask == contentBase
	for i := range e.blocks {
		b := &e.blocks[i]
		if b.blank&blankTime == 0 {
			continue
		}
		t, err := binary.ReadVarint(&r.tms)
		if err != nil {
			return nil, noEOF(err)
		}
		base := int64(0)
		if from != nil {
			base = from.blocks[i].mtime
		}
		b.mtime = r.times.value(t, base, from != nil)
	}
	return e, nil
}

func (r *skeletonReader) ofBase() (e *entry, err error) {
	skip, err := binary.ReadUvarint(&r.kinds)
	if err != nil {
		return nil, noEOF(err)
	}
	for {
		e, err, ok := r.base()
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errors.New("an entry of the base that it does not have")
		}
		if skip == 0 {
			return e, nil
		}
		skip--
	}
}

func (r *skeletonReader) literal(headersToo bool) (*entry, error) {
	n, err := binary.ReadUvarint(&r.kinds)
	if err != nil {
		return nil, noEOF(err)
	}
	head, err := r.heads.take(n)
	if err != nil || !headersToo {
		return &entry{head: head}, err
	}
	// The checksums are taken out, so the headers are believed to be some.
	offsets, end := headers(head, func([]byte) bool { return true })
	if end != len(head) {
		return nil, errors.New("a head that is none")
	}
	e := &entry{head: head}
	for _, at := range offsets {
		blank, err := r.kinds.ReadByte()
		if err != nil {
			return nil, err
		}
		if blank&^blankAll != 0 {
			return nil, errors.New("a head with an unknown field")
		}
		e.blocks = append(e.blocks, block{offset: at, blank: blank})
	}
	return e, nil
}

func (r *skeletonReader) content(code byte, from *entry) (*Content, error) {
	switch code {
	case contentNone:
		return nil, nil
	case contentBase:
		if from == nil || from.content == nil {
			return nil, errors.New("a content of the base that it does not have")
		}
		return from.content, nil
	case contentNext:
		c, err := r.next.next()
		return &c, err
	case contentNew:
		n, err := binary.ReadUvarint(&r.kinds)
		if err != nil {
			return nil, noEOF(err)
		}
		return r.news(n)
	case contentSum:
		size, err := binary.ReadUvarint(&r.kinds)
		if err != nil {
			return nil, noEOF(err)
		}
		var s sum
		b, err := r.sums.take(uint64(len(s)))
		if err != nil || int64(size) < 0 {
			return nil, errors.New("a digest is missing")
		}
		copy(s[:], b)
		return &Content{Digest: s.digest(), Size: int64(size)}, nil
	}
	return nil, errors.New("a content of an unknown kind")
}

func (r *skeletonReader) news(n uint64) (*Content, error) {
	if n >= uint64(r.contents.n) {
		return nil, errors.New("a new content that is not in the list")
	}
	c, err := r.contents.at(int(n))
	return &c, err
}
