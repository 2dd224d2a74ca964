package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
)

// A deflate stream (RFC 1951) is opened as blocks:
//
//	1 for the last block, else 0, plus twice the type
//	type 0: length in 2 bytes, little endian, and bytes
//	type 2: HLIT, HDIST and HCLEN as in the stream, HCLEN+4 lengths, then for
//	        each symbol of the code lengths itself and, above 15, its extra bits
//	types 1 and 2: tokens. A literal is itself, but for 255; 255, the length-3
//	        and the distance in 2 bytes, big endian, are a match. The distance
//	        0 says, with the length 0, a literal 255, and with 1 the end
const (
	escape      = 255
	endOfBlock  = 256
	maxDistance = 30
)

var errDeflate = errors.New("no deflate stream that can be opened")

// deflate's lengths and distances: the least of each symbol, and its extra bits.
var (
	lengthBase   = [29]int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthBits   = [29]uint{8: 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distanceBase = [30]int{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distanceBits = [30]uint{4: 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	lengthOrder  = [19]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} // of the lengths of the lengths' code
)

// fixedLengths are those of blocks of type 1.
func fixedLengths() []byte {
	l := bytes.Repeat([]byte{8}, 288)
	copy(l[144:], bytes.Repeat([]byte{9}, 112))
	copy(l[256:], bytes.Repeat([]byte{7}, 24))
	return append(l, bytes.Repeat([]byte{5}, 30)...)
}

// A code decodes canonical Huffman codes.
type code struct {
	count   [16]int
	symbols []int
}

func codeOf(lengths []byte) (c code) {
	for _, l := range lengths {
		c.count[l]++
	}
	c.count[0] = 0
	var offset [16]int
	for i := 1; i < 15; i++ {
		offset[i+1] = offset[i] + c.count[i]
	}
	c.symbols = make([]int, len(lengths))
	for s, l := range lengths {
		if l > 0 {
			c.symbols[offset[l]] = s
			offset[l]++
		}
	}
	return c
}

// next is -1 for bits that are no symbol.
func (c *code) next(r *bitReader) int {
	bits, first, index := 0, 0, 0
	for l := 1; l < 16 && !r.over; l++ {
		bits |= r.get(1)
		if n := c.count[l]; bits-first < n {
			return c.symbols[index+bits-first]
		}
		index, first = index+c.count[l], (first+c.count[l])<<1
		bits <<= 1
	}
	return -1
}

// openStream appends a stream's symbols to out, and tells how long it was.
func openStream(out, b []byte) (_ []byte, n int, err error) {
	r := &bitReader{b: b}
	for last := 0; last == 0; {
		last = r.get(1)
		kind := r.get(2)
		out = append(out, byte(last|kind<<1))
		switch kind {
		case 0:
			out, err = openStored(out, r)
		case 1:
			out, err = openTokens(out, r, fixedLengths(), 288)
		case 2:
			var lengths []byte
			var literals int
			if out, lengths, literals, err = openLengths(out, r); err == nil {
				out, err = openTokens(out, r, lengths, literals)
			}
		default:
			err = errDeflate
		}
		if err != nil || r.over || len(out) > maxOpened {
			return nil, 0, errDeflate
		}
	}
	if !r.align() {
		return nil, 0, errDeflate
	}
	return out, r.at - int(r.n/8), nil
}

func openStored(out []byte, r *bitReader) ([]byte, error) {
	if !r.align() {
		return nil, errDeflate
	}
	n, not := r.get(16), r.get(16)
	if n != not^0xffff {
		return nil, errDeflate
	}
	out = binary.LittleEndian.AppendUint16(out, uint16(n))
	for range n {
		out = append(out, byte(r.get(8)))
	}
	return out, nil
}

func openLengths(out []byte, r *bitReader) (_, lengths []byte, literals int, err error) {
	hlit, hdist, hclen := r.get(5), r.get(5), r.get(4)
	out = append(out, byte(hlit), byte(hdist), byte(hclen))
	var meta [19]byte
	for i := range hclen + 4 {
		meta[lengthOrder[i]] = byte(r.get(3))
		out = append(out, meta[lengthOrder[i]])
	}
	c := codeOf(meta[:])
	total := hlit + 257 + hdist + 1
	for len(lengths) < total {
		s := c.next(r)
		if s < 0 {
			return nil, nil, 0, errDeflate
		}
		out = append(out, byte(s))
		extra := 0
		if s > 15 {
			extra = r.get(repeatBits[s-16])
			out = append(out, byte(extra))
		}
		if lengths, err = addLengths(lengths, s, extra, total); err != nil {
			return nil, nil, 0, err
		}
	}
	return out, lengths, hlit + 257, nil
}

// repeatBits are the extra bits of the symbols 16, 17 and 18 of code lengths.
var repeatBits = [3]uint{2, 3, 7}

// addLengths does what a symbol of the code lengths says.
func addLengths(lengths []byte, s, extra, total int) ([]byte, error) {
	value, n := byte(0), 1
	switch {
	case s < 16:
		value = byte(s)
	case s == 16 && len(lengths) == 0:
		return nil, errDeflate
	case s == 16:
		value, n = lengths[len(lengths)-1], 3+extra
	case s == 17:
		n = 3 + extra
	default:
		n = 11 + extra
	}
	if len(lengths)+n > total {
		return nil, errDeflate
	}
	return append(lengths, bytes.Repeat([]byte{value}, n)...), nil
}

func openTokens(out []byte, r *bitReader, lengths []byte, literals int) ([]byte, error) {
	lit, dist := codeOf(lengths[:literals]), codeOf(lengths[literals:])
	for len(out) <= maxOpened {
		s := lit.next(r)
		switch {
		case s < 0:
			return nil, errDeflate
		case s == endOfBlock:
			return append(out, escape, 1, 0, 0), nil
		case s == escape:
			out = append(out, escape, 0, 0, 0)
		case s < endOfBlock:
			out = append(out, byte(s))
		default:
			d := 0
			if s -= endOfBlock + 1; s >= len(lengthBase) {
				return nil, errDeflate
			}
			length := lengthBase[s] + r.get(lengthBits[s])
			if d = dist.next(r); d < 0 || d >= maxDistance || length == 258 && s < 28 { // which has a symbol of its own
				return nil, errDeflate
			}
			out = append(out, escape, byte(length-3))
			out = binary.BigEndian.AppendUint16(out, uint16(distanceBase[d]+r.get(distanceBits[d])))
		}
	}
	return nil, errDeflate
}

// An encoding has a symbol's bits, in the order in which they are written.
type encoding struct {
	bits    []uint16
	lengths []byte
}

func encodingOf(lengths []byte) encoding {
	e := encoding{make([]uint16, len(lengths)), lengths}
	bits := 0
	for l := byte(1); l < 16; l++ {
		for s, have := range lengths {
			if have != l {
				continue
			}
			for i := range l {
				e.bits[s] |= uint16(bits>>i&1) << (l - 1 - i)
			}
			bits++
		}
		bits <<= 1
	}
	return e
}

func (e *encoding) put(w *bitWriter, s int) error {
	if s >= len(e.lengths) || e.lengths[s] == 0 {
		return errors.New("a symbol without a code")
	}
	w.put(int(e.bits[s]), uint(e.lengths[s]))
	return nil
}

func closeStream(w *bitWriter, in *column, limit int64) error {
	for last := byte(0); last == 0; {
		head, err := in.ReadByte()
		if err != nil {
			return err
		}
		last = head & 1
		w.put(int(head&7), 3)
		switch head {
		case 0, 1:
			err = closeStored(w, in)
		case 2, 3:
			err = closeTokens(w, in, fixedLengths(), 288, limit)
		case 4, 5:
			var lengths []byte
			var literals int
			if lengths, literals, err = closeLengths(w, in); err == nil {
				err = closeTokens(w, in, lengths, literals, limit)
			}
		default:
			err = errors.New("a block of an unknown type")
		}
		if err != nil {
			return err
		}
	}
	w.align()
	return nil
}

func closeStored(w *bitWriter, in *column) error {
	head, err := in.take(2)
	if err != nil {
		return err
	}
	n := binary.LittleEndian.Uint16(head)
	b, err := in.take(uint64(n))
	w.align()
	w.put(int(n), 16)
	w.put(int(^n), 16)
	w.out = append(w.out, b...)
	return err
}

func closeLengths(w *bitWriter, in *column) (lengths []byte, literals int, err error) {
	head, err := in.take(3)
	if err != nil {
		return nil, 0, err
	}
	hlit, hdist, hclen := int(head[0]), int(head[1]), int(head[2])
	if hlit > 31 || hdist > 31 || hclen > 15 {
		return nil, 0, errors.New("more codes than there can be")
	}
	w.put(hlit|hdist<<5|hclen<<10, 14)
	var meta [19]byte
	given, err := in.take(uint64(hclen + 4))
	for i, l := range given {
		if l > 7 {
			return nil, 0, errors.New("a code that is too long")
		}
		meta[lengthOrder[i]] = l
		w.put(int(l), 3)
	}
	e := encodingOf(meta[:])
	total := hlit + 257 + hdist + 1
	for err == nil && len(lengths) < total {
		var s, extra byte
		if s, err = in.ReadByte(); err == nil {
			err = e.put(w, int(s))
		}
		if err == nil && s > 15 {
			if extra, err = in.ReadByte(); err == nil && extra>>repeatBits[s-16] > 0 {
				err = errors.New("more repetitions than there can be")
			}
			w.put(int(extra), repeatBits[s-16])
		}
		if err == nil {
			lengths, err = addLengths(lengths, int(s), int(extra), total)
		}
	}
	return lengths, hlit + 257, err
}

func closeTokens(w *bitWriter, in *column, lengths []byte, literals int, limit int64) error {
	lit, dist := encodingOf(lengths[:literals]), encodingOf(lengths[literals:])
	for int64(len(w.out)) <= limit {
		b, err := in.ReadByte()
		if err != nil {
			return err
		}
		if b != escape {
			if err := lit.put(w, int(b)); err != nil {
				return err
			}
			continue
		}
		token, err := in.take(3)
		if err != nil {
			return err
		}
		distance := int(binary.BigEndian.Uint16(token[1:]))
		switch {
		case distance == 0 && token[0] == 0:
			err = lit.put(w, escape)
		case distance == 0 && token[0] == 1:
			return lit.put(w, endOfBlock)
		case distance == 0 || distance > 32<<10:
			err = errors.New("a distance that is too large")
		default:
			err = putMatch(w, &lit, &dist, int(token[0])+3, distance)
		}
		if err != nil {
			return err
		}
	}
	return errors.New("a compressed file that is larger than it says")
}

func putMatch(w *bitWriter, lit, dist *encoding, length, distance int) error {
	l := symbolOf(lengthBase[:], length)
	if err := lit.put(w, endOfBlock+1+l); err != nil {
		return err
	}
	w.put(length-lengthBase[l], lengthBits[l])
	d := symbolOf(distanceBase[:], distance)
	if err := dist.put(w, d); err != nil {
		return err
	}
	w.put(distance-distanceBase[d], distanceBits[d])
	return nil
}

// symbolOf is the last symbol whose least value is not above v.
func symbolOf(base []int, v int) int {
	i, found := slices.BinarySearch(base, v)
	if !found {
		i--
	}
	return i
}
