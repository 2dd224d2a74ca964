package delta

import (
	"errors"
	"io"
	"math/bits"
)

// A bitReader reads bits, the lowest of each byte first. Behind the end it gives
// zeros and is over.
type bitReader struct {
	b    []byte
	at   int
	bits uint32
	n    uint
	over bool
}

func (r *bitReader) get(n uint) int {
	for r.n < n {
		if r.at == len(r.b) {
			r.over = true
			return 0
		}
		r.bits |= uint32(r.b[r.at]) << r.n
		r.at++
		r.n += 8
	}
	v := r.bits & (1<<n - 1)
	r.bits >>= n
	r.n -= n
	return int(v)
}

// align passes over the rest of a byte, which must be zeros: nothing tells them
// again.
func (r *bitReader) align() bool {
	return r.get(r.n%8) == 0
}

// A bitWriter is a bitReader's counterpart.
type bitWriter struct {
	out  []byte
	bits uint32
	n    uint
}

func (w *bitWriter) put(v int, n uint) {
	w.bits |= uint32(v) << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.out = append(w.out, byte(w.bits))
		w.bits >>= 8
	}
}

func (w *bitWriter) align() {
	if w.n > 0 {
		w.put(0, 8-w.n)
	}
}

// A backReader reads bits from the end of a stream whose last set bit ends it.
// Before the beginning it gives zeros, and less than none are left.
type backReader struct {
	b    []byte
	left int // bits
}

func backwards(b []byte) (*backReader, error) {
	if len(b) == 0 || b[len(b)-1] == 0 {
		return nil, errZstd
	}
	return &backReader{b: b, left: 8*(len(b)-1) + bits.Len8(b[len(b)-1]) - 1}, nil
}

// peek gives the next n bits, 24 at most.
func (r *backReader) peek(n uint) int {
	from := r.left - int(n)
	shift := 0
	if from < 0 {
		shift, from = -from, 0
	}
	var v uint32
	for i := from / 8; i < len(r.b) && i < from/8+4; i++ {
		v |= uint32(r.b[i]) << (8 * (i - from/8))
	}
	v >>= from % 8
	v &= 1<<(int(n)-min(shift, int(n))) - 1
	return int(v << shift)
}

func (r *backReader) skip(n uint) { r.left -= int(n) }

func (r *backReader) get(n uint) int {
	v := r.peek(n)
	r.skip(n)
	return v
}

// end ends a stream that is read backwards.
func (w *bitWriter) end() {
	w.put(1, 1)
	w.align()
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

func noEOFIfAny(err error) error {
	if err == nil {
		return nil
	}
	return noEOF(err)
}
