package delta

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/minke-os/minke/internal/errdef"
)

// A skeleton is coded in chunks of entries, each in four columns so that like
// stands by like: what an entry is, times, heads, and digests. An entry whose
// head is that of an entry of the base further on costs a byte or two.

// What an entry's first byte says.
const (
	headBytes   = 0 // bytes that are no headers; their length follows
	headBlocks  = 1 // headers; their length and what was taken out of each follow
	headOfBase  = 2 // of an entry of the base; how many to skip before it follows
	headMask    = 3
	contentNone = 0 << 2
	contentBase = 1 << 2 // of the same entry of the base
	contentNext = 2 << 2 // the new content after the last new one
	contentNew  = 3 << 2 // a new content, its number follows
	contentSum  = 4 << 2 // its digest is among the digests, its size follows
	contentMask = 7 << 2
	padded      = 1 << 5
)

const (
	chunkEntries = 4096
	chunkHeads   = 512 << 10 // bytes of heads after which a chunk ends
	// A column cannot be longer: a chunk's last head, or 4096 entries of it.
	maxColumn = chunkHeads + maxHead + chunkEntries*(maxInline/blockSize+64)
)

type columns struct{ kinds, times, heads, sums []byte }

func (c *columns) all() []*[]byte { return []*[]byte{&c.kinds, &c.times, &c.heads, &c.sums} }

// times codes the times of members: that of one taken over as by how much more
// than the one before it has moved, others by the difference to the last.
type times struct{ last, shift int64 }

func (t *times) delta(m, base int64, hasBase bool) int64 {
	d := m - t.last
	if hasBase {
		d = m - base - t.shift
		t.shift = m - base
	}
	t.last = m
	return d
}

func (t *times) value(d, base int64, hasBase bool) int64 {
	m := t.last + d
	if hasBase {
		m = base + t.shift + d
		t.shift = m - base
	}
	t.last = m
	return m
}

// A skeletonWriter codes entries.
type skeletonWriter struct {
	w     io.Writer
	base  map[headKey][]int // entries of the base by key
	bases []*entry
	next  int // of the base
	news  map[sum]int
	seen  int // new contents so far
	cols  columns
	n     int
	times times
}

func (w *skeletonWriter) add(e *entry) error {
	kind, from := byte(headBytes), (*entry)(nil)
	skip := 0
	if i, ok := w.match(e); ok {
		kind, from, skip = headOfBase, w.bases[i], i-w.next
		w.next = i + 1
	} else if len(e.blocks) > 0 {
		kind = headBlocks
	}
	if e.padded {
		kind |= padded
	}
	code, number := w.contentCode(e.content, from)
	c := &w.cols
	c.kinds = append(c.kinds, kind|code)
	if kind&headMask == headOfBase {
		c.kinds = binary.AppendUvarint(c.kinds, uint64(skip))
	} else {
		c.kinds = binary.AppendUvarint(c.kinds, uint64(len(e.head)))
		c.heads = append(c.heads, e.head...)
	}
	if kind&headMask == headBlocks {
		for _, b := range e.blocks {
			c.kinds = append(c.kinds, b.blank)
		}
	}
	switch code {
	case contentNew:
		c.kinds = binary.AppendUvarint(c.kinds, uint64(number))
	case contentSum:
		s, ok := sumOf(e.content.Digest)
		if !ok {
			return errdef.Invalid.Errorf("content with the digest %q", e.content.Digest)
		}
		c.kinds = binary.AppendUvarint(c.kinds, uint64(e.content.Size))
		c.sums = append(c.sums, s[:]...)
	}
	for i, b := range e.blocks {
		if b.blank&blankTime == 0 {
			continue
		}
		base := int64(0)
		if from != nil {
			base = from.blocks[i].mtime
		}
		c.times = binary.AppendVarint(c.times, w.times.delta(b.mtime, base, from != nil))
	}
	if w.n++; w.n == chunkEntries || len(c.heads) >= chunkHeads {
		return w.flush()
	}
	return nil
}

// match finds an entry of the base that has not been passed yet.
func (w *skeletonWriter) match(e *entry) (int, bool) {
	for _, i := range w.base[e.key()] {
		if i >= w.next {
			return i, true
		}
	}
	return 0, false
}

func (w *skeletonWriter) contentCode(c *Content, from *entry) (code byte, number int) {
	switch {
	case c == nil:
		return contentNone, 0
	case from != nil && from.content != nil && *from.content == *c:
		return contentBase, 0
	}
	s, _ := sumOf(c.Digest)
	i, isNew := w.news[s]
	switch {
	case !isNew:
		return contentSum, 0
	case i == w.seen:
		w.seen++
		return contentNext, 0
	}
	return contentNew, i
}

func (w *skeletonWriter) flush() error {
	if w.n == 0 {
		return nil
	}
	head := binary.AppendUvarint(nil, uint64(w.n))
	for _, col := range w.cols.all() {
		head = binary.AppendUvarint(head, uint64(len(*col)))
	}
	_, err := w.w.Write(head)
	for _, col := range w.cols.all() {
		if err == nil {
			_, err = w.w.Write(*col)
		}
		*col = (*col)[:0]
	}
	w.n = 0
	return err
}

func (w *skeletonWriter) close() error {
	err := w.flush()
	if err == nil {
		_, err = w.w.Write([]byte{0})
	}
	return err
}

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

// A column is read from the front.
type column struct{ b []byte }

func (c *column) Len() int { return len(c.b) }

func (c *column) ReadByte() (byte, error) {
	if len(c.b) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v, nil
}

func (c *column) take(n uint64) ([]byte, error) {
	if n > uint64(len(c.b)) {
		return nil, io.ErrUnexpectedEOF
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v, nil
}

func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func invalid(what string, err error) error {
	return errdef.Invalid.Errorf("delta: %s: %w", what, err)
}

// decoder reads one zstd frame within the memory that a delta may need.
func decoder(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(Window))
}
