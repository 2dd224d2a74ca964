package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"slices"
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

// A patchCode is a patch, and where in it bytes of another kind begin.
type patchCode struct {
	b    []byte
	cuts []int
}

// cutPart is how large a part of a window must be to be compressed apart from
// what stands beside it: a compressor then counts its bytes by themselves, which
// makes patches 2 to 8 % smaller. Below it the block's head would cost as much.
const cutPart = 2 << 10

// part appends a part of a window.
func (p *patchCode) part(b []byte) {
	last := 0
	if len(p.cuts) > 0 {
		last = p.cuts[len(p.cuts)-1]
	}
	if len(b) >= cutPart && len(p.b) > last {
		p.cuts = append(p.cuts, len(p.b))
	}
	p.b = append(p.b, b...)
	if len(b) >= cutPart {
		p.cuts = append(p.cuts, len(p.b))
	}
}

// makePatch codes new as made from copies of an old file.
func makePatch(new, old []byte, copies []copied) (out patchCode) {
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
		w.append(&out)
	}
	return out
}

// A windowCode is a window in the making.
type windowCode struct {
	ops, gaps, diffs, extra []byte
	last                    op  // not yet among ops
	n, same                 int // operations; copied bytes since the last difference
}

func (w *windowCode) add(b []byte) {
	w.last.add += len(b)
	w.extra = append(w.extra, b...)
}

// end ends the last operation.
func (w *windowCode) end() {
	if w.last.copy+w.last.add > 0 {
		w.ops = appendOp(w.ops, w.last.copy, w.last.add, int(w.last.move))
		w.n++
	}
}

func (w *windowCode) copy(old, new []byte, move int) {
	w.end()
	w.last = op{copy: len(new), move: int64(move)}
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

func (w *windowCode) append(out *patchCode) {
	w.end()
	out.b = binary.AppendUvarint(out.b, uint64(w.n))
	out.part(w.ops)
	out.b = binary.AppendUvarint(out.b, uint64(len(w.diffs)))
	out.part(w.gaps)
	out.part(w.diffs)
	out.part(w.extra)
}

func appendOp(b []byte, copy, add, move int) []byte {
	b = binary.AppendUvarint(b, uint64(copy))
	b = binary.AppendUvarint(b, uint64(add))
	return binary.AppendVarint(b, int64(move))
}

// What parts of a patch cost about, in bits.
const (
	differencePrice = 13 // gap and value; in a program, whose addresses differ alike, less
	opPrice         = 24
)

// apart takes those stretches out of copies in which differences cost more than
// the bytes of new would, at so many bits each. That is so in text: where a line
// has changed, what differs is random, and equal bytes in it are few.
func apart(copies []copied, new, old []byte, added float64) (out []copied) {
	for _, c := range copies {
		a, b := new[c.at:][:c.n], old[c.from:][:c.n]
		from := 0 // what is not yet in out
		for i := equal(a, b); i < c.n; i += equal(a[i:], b[i:]) {
			end, n := stretch(a, b, i)
			if float64(n)*differencePrice > float64(end-i)*added+opPrice {
				if i > from {
					out = append(out, copied{c.at + from, c.from + from, i - from})
				}
				from = end
			}
			i = end
		}
		if from < c.n {
			out = append(out, copied{c.at + from, c.from + from, c.n - from})
		}
	}
	return out
}

// stretch is where the differing bytes that begin at i end, and how many there
// are. As many equal ones as make an alignment trusted are no part of it.
func stretch(a, b []byte, i int) (end, n int) {
	for i < len(a) {
		end = i + 1
		n++
		run := equal(a[end:], b[end:])
		if run >= trust {
			break
		}
		i = end + run
	}
	return end, n
}

type op struct {
	copy, add int
	move      int64
}

// patchBuffers are used again for each window. Together they are at most four
// times as large as that.
type patchBuffers struct {
	out       []byte
	ops, gaps []byte // as they are coded
	diffs     []byte
}

// applyPatch writes the size bytes that a patch makes of base. buf is used for
// windows.
func applyPatch(w io.Writer, r *bufio.Reader, base io.ReaderAt, baseSize, size int64, buf *patchBuffers) error {
	pos := int64(0)
	for size > 0 {
		n := int(min(size, patchWindow))
		if err := buf.read(r, n); err != nil {
			return err
		}
		out, at := buf.window(n), 0
		diffs := differences{gaps: buf.gaps, diffs: buf.diffs}
		diffs.next()
		// Copies first, for what to add to them comes first.
		for o := range buf.each() {
			pos += o.move
			part := out[at:][:o.copy]
			if o.copy > 0 {
				if pos < 0 || pos > baseSize || int64(o.copy) > baseSize-pos {
					return errors.New("a copy from outside of the base")
				}
				if _, err := base.ReadAt(part, pos); err != nil && !(errors.Is(err, io.EOF) && pos+int64(o.copy) == baseSize) {
					return noEOF(err)
				}
				diffs.apply(part)
				pos += int64(o.copy)
			}
			at += o.copy + o.add
		}
		at = 0
		for o := range buf.each() {
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

// read reads a window of n bytes up to what it adds.
func (p *patchBuffers) read(r *bufio.Reader, n int) error {
	copied, err := p.readOps(r, n)
	if err != nil {
		return err
	}
	return p.readDifferences(r, copied)
}

func (p *patchBuffers) window(n int) []byte {
	p.out = slices.Grow(p.out[:0], n)[:n]
	return p.out
}

// readOps reads the operations of a window of n bytes, which they fill, and
// tells how many bytes they copy.
func (p *patchBuffers) readOps(r *bufio.Reader, n int) (copied uint64, err error) {
	count, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, noEOF(err)
	}
	// A copy and what is added may be two operations; neither may be empty.
	if count > uint64(n) {
		return 0, errors.New("a window with more operations than bytes")
	}
	left := uint64(n)
	p.ops = p.ops[:0]
	for range count {
		c, err := binary.ReadUvarint(r)
		if err != nil {
			return 0, noEOF(err)
		}
		a, err := binary.ReadUvarint(r)
		if err != nil {
			return 0, noEOF(err)
		}
		m, err := binary.ReadVarint(r)
		if err != nil {
			return 0, noEOF(err)
		}
		if c > left || a > left-c || c+a == 0 {
			return 0, errors.New("operations that do not fit their window")
		}
		left -= c + a
		copied += c
		// A maker's copies have minMatch bytes, most with less to say about them.
		if p.ops = appendOp(p.ops, int(c), int(a), int(m)); len(p.ops) > patchWindow {
			return 0, errors.New("operations that are larger than their window")
		}
	}
	if left != 0 {
		return 0, errors.New("operations that do not fill their window")
	}
	return copied, nil
}

// each gives the operations that were read.
func (p *patchBuffers) each() iter.Seq[op] {
	return func(yield func(op) bool) {
		for b := p.ops; len(b) > 0; {
			c, i := binary.Uvarint(b)
			a, j := binary.Uvarint(b[i:])
			m, k := binary.Varint(b[i+j:])
			if b = b[i+j+k:]; !yield(op{int(c), int(a), m}) {
				return
			}
		}
	}
}

// readDifferences reads those of a window, which must lie in its copies.
func (p *patchBuffers) readDifferences(r *bufio.Reader, left uint64) error {
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
		p.gaps = binary.AppendUvarint(p.gaps, gap)
	}
	p.diffs = slices.Grow(p.diffs[:0], int(n))[:n]
	_, err = io.ReadFull(r, p.diffs)
	return noEOFIfAny(err)
}

// differences are those of a window that are not yet applied.
type differences struct {
	gaps, diffs []byte
	gap         int // copied bytes before the first
}

func (d *differences) next() {
	gap, n := binary.Uvarint(d.gaps)
	d.gap, d.gaps = int(gap), d.gaps[n:]
}

// apply applies them to the next part that was copied.
func (d *differences) apply(part []byte) {
	for len(d.diffs) > 0 && d.gap < len(part) {
		part[d.gap] += d.diffs[0]
		part, d.diffs = part[d.gap+1:], d.diffs[1:]
		d.next()
	}
	d.gap -= len(part)
}
