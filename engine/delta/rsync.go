package delta

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/minke-os/minke/internal/errdef"
)

// The deltas of balenaEngine are librsync's: a layer's tar made from the tars
// of all layers of one base image, one after the other. Format: librsync 2,
// doc/format.md; a number of four bytes, then commands:
//
//	0         the end
//	1…64      so many bytes follow
//	65…68     bytes follow; their number before them has 1, 2, 4 or 8 bytes
//	69…84     a copy: position and length in the base, each of 1, 2, 4 or 8
//	          bytes; those of the length vary faster
//
// Numbers are big endian.
const (
	rsyncMagic   = 0x72730236
	rsyncEnd     = 0
	rsyncInline  = 64
	rsyncLiteral = 65
	rsyncCopy    = 69
	rsyncLast    = 84
)

// rsyncBlock is the size of the pieces that are looked for; balenaEngine's.
const rsyncBlock = 512

// ApplyRsync writes what a librsync delta makes of base. Nothing in it can
// check the result: compare its digest.
func ApplyRsync(w io.Writer, delta io.Reader, base io.ReaderAt, baseSize int64) error {
	r := bufio.NewReaderSize(delta, 64<<10)
	var magic [4]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return invalid("librsync", noEOF(err))
	}
	if m := binary.BigEndian.Uint32(magic[:]); m != rsyncMagic {
		return errdef.Invalid.Errorf("delta: not librsync's: it begins with %08x", m)
	}
	buf := make([]byte, 64<<10)
	for {
		c, err := r.ReadByte()
		if err != nil {
			return invalid("librsync", noEOF(err))
		}
		switch {
		case c == rsyncEnd:
			return nil
		case c <= rsyncInline:
			err = copyBytes(w, r, uint64(c), buf)
		case c < rsyncCopy:
			var n uint64
			if n, err = rsyncNumber(r, c-rsyncLiteral); err == nil {
				err = copyBytes(w, r, n, buf)
			}
		case c <= rsyncLast:
			err = rsyncCopied(w, r, c-rsyncCopy, base, baseSize, buf)
		default:
			err = fmt.Errorf("unknown command %d", c)
		}
		if err != nil {
			return invalid("librsync", err)
		}
	}
}

func rsyncNumber(r io.Reader, width byte) (uint64, error) {
	var b [8]byte
	n := 1 << width
	if _, err := io.ReadFull(r, b[8-n:]); err != nil {
		return 0, noEOF(err)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

func copyBytes(w io.Writer, r io.Reader, n uint64, buf []byte) error {
	for n > 0 {
		part := buf[:min(n, uint64(len(buf)))]
		if _, err := io.ReadFull(r, part); err != nil {
			return noEOF(err)
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		n -= uint64(len(part))
	}
	return nil
}

func rsyncCopied(w io.Writer, r io.Reader, widths byte, base io.ReaderAt, baseSize int64, buf []byte) error {
	from, err := rsyncNumber(r, widths/4)
	if err != nil {
		return err
	}
	n, err := rsyncNumber(r, widths%4)
	if err != nil {
		return err
	}
	if from > uint64(baseSize) || n > uint64(baseSize)-from {
		return errors.New("a copy from outside of the base")
	}
	return copyBytes(w, io.NewSectionReader(base, int64(from), int64(n)), n, buf)
}

// MakeRsync writes a librsync delta that makes target of base. Its memory grows
// with the base: about 3 % of it.
func MakeRsync(w io.Writer, target io.Reader, base io.ReaderAt, baseSize int64) error {
	blocks, err := rsyncBlocks(base, baseSize)
	if err != nil {
		return err
	}
	m := rsyncMaker{w: bufio.NewWriter(w), r: target, base: base, size: baseSize, blocks: blocks}
	if err := binary.Write(m.w, binary.BigEndian, uint32(rsyncMagic)); err != nil {
		return err
	}
	if err := m.run(); err != nil {
		return err
	}
	if err := m.w.WriteByte(rsyncEnd); err != nil {
		return err
	}
	return m.w.Flush()
}

// rsyncBlocks finds the first block with each rolling sum.
func rsyncBlocks(base io.ReaderAt, size int64) (map[uint32]int64, error) {
	blocks := make(map[uint32]int64, size/rsyncBlock)
	r := bufio.NewReaderSize(io.NewSectionReader(base, 0, size), 1<<20)
	b := make([]byte, rsyncBlock)
	for at := int64(0); at+rsyncBlock <= size; at += rsyncBlock {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, noEOF(err)
		}
		var s rolling
		s.fill(b)
		if _, known := blocks[s.sum()]; !known {
			blocks[s.sum()] = at
		}
	}
	return blocks, nil
}

// rolling is a sum that can follow a window through a file.
type rolling struct{ a, b uint32 }

func (s *rolling) fill(p []byte) {
	*s = rolling{}
	for _, c := range p {
		s.a += uint32(c) + 31 // so that zeros count
		s.b += s.a
	}
}

func (s *rolling) roll(out, in byte) {
	s.a += uint32(in) - uint32(out)
	s.b += s.a - rsyncBlock*(uint32(out)+31)
}

func (s *rolling) sum() uint32 { return s.a&0xffff | s.b<<16 }

type rsyncMaker struct {
	w      *bufio.Writer
	r      io.Reader
	base   io.ReaderAt
	size   int64
	blocks map[uint32]int64

	buf     []byte // of the target: what is new, then what is looked at
	eof     bool
	from, n int64 // a copy that may go on
}

const rsyncAhead = 64 << 10 // of the target that is in memory

// ahead makes sure that n bytes from p on are there, if the target has them.
func (m *rsyncMaker) ahead(p, n int) error {
	for len(m.buf)-p < n && !m.eof {
		at := len(m.buf)
		m.buf = append(m.buf, make([]byte, rsyncAhead)...)
		k, err := io.ReadFull(m.r, m.buf[at:])
		m.buf = m.buf[:at+k]
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			m.eof = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (m *rsyncMaker) run() error {
	var s rolling
	fresh := true // s is not of the window at p
	p := 0        // before it all is new
	for {
		if err := m.ahead(p, rsyncBlock+1); err != nil {
			return err
		}
		if len(m.buf)-p < rsyncBlock {
			return errors.Join(m.literal(m.buf), m.flushCopy())
		}
		if fresh {
			s.fill(m.buf[p:][:rsyncBlock])
			fresh = false
		}
		if at, ok := m.blocks[s.sum()]; ok {
			n, err := m.matching(p, at)
			if err != nil {
				return err
			}
			if n >= rsyncBlock {
				if err := errors.Join(m.literal(m.buf[:p]), m.copy(at, int64(n))); err != nil {
					return err
				}
				m.buf, p, fresh = append(m.buf[:0], m.buf[p+n:]...), 0, true
				continue
			}
		}
		if len(m.buf)-p > rsyncBlock {
			s.roll(m.buf[p], m.buf[p+rsyncBlock])
		} else {
			fresh = true
		}
		if p++; p == rsyncAhead {
			if err := m.literal(m.buf[:p]); err != nil {
				return err
			}
			m.buf, p = append(m.buf[:0], m.buf[p:]...), 0
		}
	}
}

// matching is how many bytes of what is in memory from p on are those of the
// base from at on.
func (m *rsyncMaker) matching(p int, at int64) (int, error) {
	want := m.buf[p:]
	have := make([]byte, min(int64(len(want)), m.size-at))
	if _, err := m.base.ReadAt(have, at); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if !bytes.Equal(have[:min(len(have), rsyncBlock)], want[:min(len(have), rsyncBlock)]) {
		return 0, nil
	}
	return equal(have, want), nil
}

func (m *rsyncMaker) copy(from, n int64) error {
	if m.n > 0 && m.from+m.n == from {
		m.n += n
		return nil
	}
	err := m.flushCopy()
	m.from, m.n = from, n
	return err
}

func (m *rsyncMaker) flushCopy() error {
	if m.n == 0 {
		return nil
	}
	fw, from := rsyncWidth(uint64(m.from))
	nw, n := rsyncWidth(uint64(m.n))
	m.n = 0
	_, err := m.w.Write(append(append([]byte{rsyncCopy + fw*4 + nw}, from...), n...))
	return err
}

func (m *rsyncMaker) literal(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := m.flushCopy(); err != nil {
		return err
	}
	head := []byte{byte(len(b))}
	if len(b) > rsyncInline {
		w, n := rsyncWidth(uint64(len(b)))
		head = append([]byte{rsyncLiteral + w}, n...)
	}
	if _, err := m.w.Write(head); err != nil {
		return err
	}
	_, err := m.w.Write(b)
	return err
}

// rsyncWidth is the shortest way to write n.
func rsyncWidth(n uint64) (width byte, b []byte) {
	b = binary.BigEndian.AppendUint64(nil, n)
	for width = 0; width < 3 && n>>(8<<width) != 0; width++ {
	}
	return width, b[8-1<<width:]
}
