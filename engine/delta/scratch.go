package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"iter"
)

// A Scratch keeps the lists of a delta while it is used, so that memory need not:
// a file, written once from its beginning.
type Scratch interface {
	io.Writer
	io.ReaderAt
}

// What a scratch has, one after the other: the list of new contents; and for each
// segment its number of contents, its length, and its number of bases, as three
// numbers of 8 bytes, big endian like all in it, and the list of its bases.
const (
	sizeRecord    = 8
	segmentRecord = 3 * 8
)

// A list is one of contents in a scratch: all their sizes, then all their digests.
type list struct {
	r           io.ReaderAt
	sizes, sums int64 // where those of the first are
	n           int
}

func (l list) end() int64 { return l.sums + int64(l.n)*int64(len(sum{})) }

// part is n contents of the list, from the given one on.
func (l list) part(from, n int) list {
	return list{l.r, l.sizes + int64(from)*sizeRecord, l.sums + int64(from)*int64(len(sum{})), n}
}

// at gives a content that is in the list.
func (l list) at(i int) (Content, error) { return l.part(i, 1).cursor().next() }

func (l list) all() iter.Seq2[Content, error] {
	return func(yield func(Content, error) bool) {
		c := l.cursor()
		for range l.n {
			if next, err := c.next(); !yield(next, err) || err != nil {
				return
			}
		}
	}
}

// A cursor reads a list from the front.
type cursor struct{ sizes, sums *bufio.Reader }

// readAhead is how many contents a cursor reads at a time.
const readAhead = 64

func (l list) cursor() *cursor {
	n := min(l.n, readAhead)
	column := func(at int64, width int) *bufio.Reader {
		return bufio.NewReaderSize(io.NewSectionReader(l.r, at, int64(l.n*width)), n*width)
	}
	return &cursor{column(l.sizes, sizeRecord), column(l.sums, len(sum{}))}
}

func (c *cursor) next() (Content, error) {
	var size [sizeRecord]byte
	var s sum
	_, err := io.ReadFull(c.sizes, size[:])
	if err == nil {
		_, err = io.ReadFull(c.sums, s[:])
	}
	if err != nil {
		return Content{}, errors.Join(errors.New("the list of contents ends"), err)
	}
	return Content{Digest: s.digest(), Size: int64(binary.BigEndian.Uint64(size[:]))}, nil
}
