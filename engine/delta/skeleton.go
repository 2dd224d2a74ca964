package delta

import (
	"encoding/binary"
	"io"

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
