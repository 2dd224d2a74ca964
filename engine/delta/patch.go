package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// A patch makes a file in windows, each complete in itself but for the position
// in the base, which goes on from the window before:
//
//	operations, a number
//	for each: bytes to copy, bytes to add, by how much to move in the base before (signed)
//	differences, a number
//	for each: how many copied bytes lie between it and the one before
//	for each: what to add to the copied byte
//	all added bytes
//
// Numbers are varints. The windows of one file are patchWindow bytes each, the
// last one the rest.
//
// Why the differences are apart from the gaps between them: a compressor makes
// a seventh less of them so than of a string of mostly zeros.
const patchWindow = 1 << 20

// appendPatch codes new as made from copies of an old file.
func appendPatch(out, new, old []byte, copies []copied) []byte {
	pos := 0 // in old
	for start := 0; start < len(new); start += patchWindow {
		end := min(start+patchWindow, len(new))
		var w windowCode
		at := start
		for len(copies) > 0 && copies[0].at < end {
			c := copies[0]
			part := min(c.n, end-c.at)
			if c.at > at {
				w.add(new[at:c.at])
			}
			w.copy(old[c.from:][:part], new[c.at:][:part], c.from-pos)
			at, pos = c.at+part, c.from+part
			if part < c.n {
				copies[0] = copied{at: c.at + part, from: c.from + part, n: c.n - part}
				break
			}
			copies = copies[1:]
		}
		if at < end {
			w.add(new[at:end])
		}
		out = w.append(out)
	}
	return out
}

// A windowCode is a window in the making.
type windowCode struct {
	ops, gaps, diffs, extra []byte
	n, same                 int // operations; copied bytes since the last difference
}

func (w *windowCode) add(b []byte) {
	w.ops = appendOp(w.ops, 0, len(b), 0)
	w.extra = append(w.extra, b...)
	w.n++
}

func (w *windowCode) copy(old, new []byte, move int) {
	w.ops = appendOp(w.ops, len(new), 0, move)
	w.n++
	for i := range new {
		if new[i] == old[i] {
			w.same++
			continue
		}
		w.gaps = binary.AppendUvarint(w.gaps, uint64(w.same))
		w.diffs = append(w.diffs, new[i]-old[i])
		w.same = 0
	}
}

func (w *windowCode) append(out []byte) []byte {
	out = append(binary.AppendUvarint(out, uint64(w.n)), w.ops...)
	out = append(binary.AppendUvarint(out, uint64(len(w.diffs))), w.gaps...)
	return append(append(out, w.diffs...), w.extra...)
}

func appendOp(b []byte, copy, add, move int) []byte {
	b = binary.AppendUvarint(b, uint64(copy))
	b = binary.AppendUvarint(b, uint64(add))
	return binary.AppendVarint(b, int64(move))
}

type op struct {
	copy, add int
	move      int64
}

// applyPatch writes the size bytes that a patch makes of base. buf is used for
// windows.
func applyPatch(w io.Writer, r *bufio.Reader, base io.ReaderAt, baseSize, size int64, buf *patchBuffers) error {
	pos := int64(0)
	for size > 0 {
		n := int(min(size, patchWindow))
		ops, err := readOps(r, n, buf.ops[:0])
		if err != nil {
			return err
		}
		buf.ops = ops
		if err := buf.readDifferences(r, ops); err != nil {
			return err
		}
		out, at, next := buf.window(n), 0, 0
		// Copies first, for what to add to them comes first.
		for _, o := range ops {
			pos += o.move
			part := out[at:][:o.copy]
			if o.copy > 0 {
				if pos < 0 || pos > baseSize || int64(o.copy) > baseSize-pos {
					return errors.New("a copy from outside of the base")
				}
				if _, err := base.ReadAt(part, pos); err != nil && !(errors.Is(err, io.EOF) && pos+int64(o.copy) == baseSize) {
					return noEOF(err)
				}
				next = buf.differ(part, next)
				pos += int64(o.copy)
			}
			at += o.copy + o.add
		}
		at = 0
		for _, o := range ops {
			at += o.copy
			if _, err := io.ReadFull(r, out[at:][:o.add]); err != nil {
				return noEOF(err)
			}
			at += o.add
		}
		if _, err := w.Write(out); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// readOps reads the operations of a window of n bytes, which they fill.
func readOps(r *bufio.Reader, n int, ops []op) ([]op, error) {
	count, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, noEOF(err)
	}
	// A copy and what is added may be two operations; neither may be empty.
	if count > uint64(n) {
		return nil, errors.New("a window with more operations than bytes")
	}
	left := uint64(n)
	for range count {
		c, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, noEOF(err)
		}
		a, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, noEOF(err)
		}
		m, err := binary.ReadVarint(r)
		if err != nil {
			return nil, noEOF(err)
		}
		if c > left || a > left-c || c+a == 0 {
			return nil, errors.New("operations that do not fit their window")
		}
		left -= c + a
		ops = append(ops, op{int(c), int(a), m})
	}
	if left != 0 {
		return nil, errors.New("operations that do not fill their window")
	}
	return ops, nil
}

// patchBuffers are used again for each window.
type patchBuffers struct {
	out   []byte
	ops   []op
	gaps  []uint32 // to the next difference, counted in copied bytes
	diffs []byte
}

func (p *patchBuffers) window(n int) []byte {
	if cap(p.out) < n {
		p.out = make([]byte, patchWindow)
	}
	return p.out[:n]
}

// readDifferences reads those of a window, which must lie in its copies.
func (p *patchBuffers) readDifferences(r *bufio.Reader, ops []op) error {
	left := uint64(0)
	for _, o := range ops {
		left += uint64(o.copy)
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return noEOF(err)
	}
	if n > left {
		return errors.New("more differences than copied bytes")
	}
	p.gaps = p.gaps[:0]
	for range n {
		gap, err := binary.ReadUvarint(r)
		if err != nil {
			return noEOF(err)
		}
		if gap >= left {
			return errors.New("a difference behind the copied bytes")
		}
		left -= gap + 1
		p.gaps = append(p.gaps, uint32(gap))
	}
	if uint64(cap(p.diffs)) < n {
		p.diffs = make([]byte, n)
	}
	p.diffs = p.diffs[:n]
	_, err = io.ReadFull(r, p.diffs)
	return noEOFIfAny(err)
}

// differ applies the differences in part, from number next on, and returns the
// number of the first one behind it. The gap of that is shortened.
func (p *patchBuffers) differ(part []byte, next int) int {
	at := 0
	for ; next < len(p.gaps); next++ {
		if gap := int(p.gaps[next]); gap < len(part)-at {
			at += gap
		} else {
			p.gaps[next] -= uint32(len(part) - at)
			break
		}
		part[at] += p.diffs[next]
		at++
	}
	return next
}

func noEOFIfAny(err error) error {
	if err == nil {
		return nil
	}
	return noEOF(err)
}
