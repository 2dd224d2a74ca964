package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"slices"
)

// A zstd frame (RFC 8878; kernel modules and firmware are such) is opened as its
// header, as it is, and blocks:
//
//	1 for the last block, else 0, plus twice the type
//	type 0: length, and bytes
//	type 1: length, and a byte
//	type 2: how the literals are coded: their type and, times 4, the size format;
//	        their number; of type 2 the description of a Huffman code as it is
//	        the number of sequences and, unless that is 0, how their three codes
//	        are described, and the descriptions of these, as they are; then which of
//	        the states that stand for the last symbol of each it had, from 0 on
//	        for each sequence its literals and their number before them, the
//	        length of the match, and its offset as it is coded, in 3 bytes, big endian
//	        the literals that are left
//
// Numbers are varints. The checksum behind the last block is bytes as they are.
const (
	zstdMagic    = "\x28\xb5\x2f\xfd"
	maxBlock     = 128 << 10
	maxSequences = 0xffff + 0x7f00

	shortestSequence = 5 // bytes of an opened form
)

var errZstd = errors.New("no zstd frame that can be opened")

// What describes a code of sequences, and where a block's literals come from.
const (
	predefined, single, described, repeated = 0, 1, 2, 3

	plainLiterals, sameLiterals, codedLiterals, treeless = 0, 1, 2, 3
)

// A sequenceCode is one of the three: literal lengths, offsets, match lengths.
type sequenceCode struct {
	symbols  int
	maxLog   uint
	fallback *fseTable
	base     []int  // least value of each symbol; nil for offsets
	extra    []uint // its bits
}

// RFC 8878, 3.1.1.3.2.1 and 3.1.1.3.2.2.
var (
	literalLengths = sequenceCode{36, 9, fseTableOf([]int{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}, 6),
		[]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536},
		[]uint{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}
	offsets = sequenceCode{32, 8, fseTableOf([]int{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}, 5), nil, nil}

	matchLengths = sequenceCode{53, 9, fseTableOf([]int{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}, 6),
		matchBase(), []uint{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}

	sequenceCodes = [3]*sequenceCode{&literalLengths, &offsets, &matchLengths}
)

func matchBase() (b []int) {
	for i := range 32 {
		b = append(b, i+3)
	}
	return append(b, 35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051, 4099, 8195, 16387, 32771, 65539)
}

// split is the symbol of a value, and what its extra bits say.
func (c *sequenceCode) split(v int) (symbol, rest int, extra uint) {
	if c.base == nil {
		symbol = bits.Len(uint(v)) - 1
		return symbol, v - 1<<symbol, uint(symbol)
	}
	symbol = symbolOf(c.base, v)
	return symbol, v - c.base[symbol], c.extra[symbol]
}

// value is split's counterpart.
func (c *sequenceCode) value(symbol int, r *backReader) int {
	if c.base == nil {
		return 1<<symbol + r.get(uint(symbol))
	}
	return c.base[symbol] + r.get(c.extra[symbol])
}

// A frame is one that is being opened or closed: what blocks leave for the next.
type frame struct {
	tree   *huffman
	tables [3]*fseTable

	literals  []byte // of a block
	sequences []sequence
}

// openFrame appends a frame's opened form, and tells how long it was. Of a frame that
// is written in an unusual way closeFrame may make another.
func openFrame(out, b []byte) (_ []byte, n int, err error) {
	at := frameHeader(b)
	if at < 0 {
		return nil, 0, errZstd
	}
	out = append(out, b[:at]...)
	var f frame
	for last := 0; last == 0; {
		if at+3 > len(b) {
			return nil, 0, errZstd
		}
		head := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
		at += 3
		last = head & 1
		kind, size := head>>1&3, head>>3
		out = append(out, byte(head&7))
		stored := size
		if kind == 1 {
			stored = 1
		}
		if size > maxBlock || kind == 3 || at+stored > len(b) {
			return nil, 0, errZstd
		}
		block := b[at : at+stored]
		if at += stored; kind < 2 {
			out = append(binary.AppendUvarint(out, uint64(size)), block...)
		} else if out, err = f.openBlock(out, block); err != nil {
			return nil, 0, err
		}
		if len(out) > maxOpened {
			return nil, 0, errZstd
		}
	}
	return out, at, nil
}

// frameHeader is the length of a frame's header, or -1.
func frameHeader(b []byte) int {
	if len(b) < 6 || string(b[:4]) != zstdMagic {
		return -1
	}
	flags := b[4]
	n := 5 + []int{0, 1, 2, 4}[flags&3] + []int{0, 2, 4, 8}[flags>>6] // dictionary, size of the content
	if flags&0x20 == 0 {
		n++ // window
	} else if flags>>6 == 0 {
		n++ // the size has one byte
	}
	if n > len(b) {
		return -1
	}
	return n
}

func (f *frame) openBlock(out, b []byte) (_ []byte, err error) {
	out, literals, b, err := f.openLiterals(out, b)
	if err != nil || len(b) == 0 {
		return nil, errZstd
	}
	n, head := int(b[0]), 1
	switch {
	case n == 255 && len(b) > 2:
		n, head = int(b[1])+int(b[2])<<8+0x7f00, 3
	case n >= 128 && len(b) > 1:
		n, head = (n-128)<<8+int(b[1]), 2
	}
	b = b[head:]
	out = binary.AppendUvarint(out, uint64(n))
	if n == 0 {
		return append(out, literals...), nil
	}
	if len(b) == 0 {
		return nil, errZstd
	}
	modes := b[0]
	out, b = append(out, modes), b[1:]
	used, err := f.describe(modes, b)
	if err != nil {
		return nil, err
	}
	out, b = append(out, b[:used]...), b[used:]
	return f.openSequences(out, b, literals, n)
}

func (f *frame) openLiterals(out, b []byte) (_, literals, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, nil, errZstd
	}
	kind, format := int(b[0]&3), int(b[0]>>2&3)
	h := literalsHeader(kind, format)
	if len(b) < h.bytes {
		return nil, nil, nil, errZstd
	}
	r := &bitReader{b: b[:h.bytes]}
	r.get(h.flags)
	size := r.get(h.width)
	stored := size
	switch kind {
	case sameLiterals:
		stored = 1
	case codedLiterals, treeless:
		stored = r.get(h.width)
	}
	if b = b[h.bytes:]; size > maxBlock || stored > len(b) {
		return nil, nil, nil, errZstd
	}
	out = binary.AppendUvarint(append(out, byte(kind|format<<2)), uint64(size))
	code, rest := b[:stored], b[stored:]
	switch kind {
	case plainLiterals:
		return out, code, rest, nil
	case sameLiterals:
		return out, bytes.Repeat(code, size), rest, nil
	case codedLiterals:
		tree, n, err := readHuffman(code)
		if err != nil {
			return nil, nil, nil, err
		}
		out, code, f.tree = append(out, code[:n]...), code[n:], tree
	}
	if f.tree == nil {
		return nil, nil, nil, errZstd
	}
	if format == 0 {
		f.literals, err = f.tree.decode(slices.Grow(f.literals[:0], size), code, size)
	} else {
		f.literals, err = f.tree.decodeFour(slices.Grow(f.literals[:0], size), code, size)
	}
	return out, f.literals, rest, err
}

// A literalsShape is how the header of literals is written, RFC 8878, 3.1.1.3.1.1.
type literalsShape struct {
	bytes        int
	flags, width uint // bits of type and format, and of each number
}

func literalsHeader(kind, format int) literalsShape {
	if kind < codedLiterals {
		return []literalsShape{{1, 3, 5}, {2, 4, 12}, {1, 3, 5}, {3, 4, 20}}[format]
	}
	return []literalsShape{{3, 4, 10}, {3, 4, 10}, {4, 4, 14}, {5, 4, 18}}[format]
}

func (h *huffman) decode(out, b []byte, n int) ([]byte, error) {
	r, err := backwards(b)
	if err != nil {
		return nil, err
	}
	for range n {
		s := h.symbols[r.peek(h.log)]
		r.skip(uint(h.lengths[s]))
		out = append(out, s)
	}
	if r.left != 0 {
		return nil, errZstd
	}
	return out, nil
}

func (h *huffman) decodeFour(out, b []byte, n int) (_ []byte, err error) {
	if len(b) < 6 {
		return nil, errZstd
	}
	lengths, b := b[:6], b[6:]
	for i, part := range quarters(n) {
		size := len(b)
		if i < 3 {
			size = int(binary.LittleEndian.Uint16(lengths[2*i:]))
		}
		if size > len(b) {
			return nil, errZstd
		}
		if out, err = h.decode(out, b[:size], part); err != nil {
			return nil, err
		}
		b = b[size:]
	}
	return out, nil
}

// quarters is how many of n literals each of four streams has.
func quarters(n int) [4]int {
	q := (n + 3) / 4
	return [4]int{q, q, q, n - 3*q}
}

// describe sets the tables of a block, and tells how long their descriptions are.
func (f *frame) describe(modes byte, b []byte) (used int, err error) {
	for i, c := range sequenceCodes {
		switch modes >> (6 - 2*i) & 3 {
		case predefined:
			f.tables[i] = c.fallback
		case single:
			if used == len(b) || int(b[used]) >= c.symbols {
				return 0, errZstd
			}
			counts := make([]int, b[used]+1)
			counts[b[used]] = 1
			f.tables[i] = fseTableOf(counts, 0)
			used++
		case described:
			t, n, err := readFSE(b[used:], c.symbols, c.maxLog)
			if err != nil {
				return 0, err
			}
			f.tables[i] = t
			used += n
		case repeated:
			if f.tables[i] == nil {
				return 0, errZstd
			}
		}
	}
	return used, nil
}

func (f *frame) openSequences(out, b, literals []byte, n int) ([]byte, error) {
	r, err := backwards(b)
	if err != nil {
		return nil, err
	}
	var state [3]int
	for i, t := range f.tables {
		state[i] = r.get(t.log)
	}
	mark := len(out)
	out = append(out, 0, 0, 0)
	for left := n; left > 0; left-- {
		var value [3]int
		for _, i := range []int{1, 2, 0} {
			symbol := f.tables[i].states[state[i]].symbol
			if i == 1 && symbol > 23 { // more than the 3 bytes of an opened form
				return nil, errZstd
			}
			value[i] = sequenceCodes[i].value(int(symbol), r)
		}
		if value[0] > len(literals) || len(out) > maxOpened {
			return nil, errZstd
		}
		out = append(binary.AppendUvarint(out, uint64(value[0])), literals[:value[0]]...)
		literals = literals[value[0]:]
		out = binary.AppendUvarint(out, uint64(value[2]))
		out = append(out, byte(value[1]>>16), byte(value[1]>>8), byte(value[1]))
		for _, i := range []int{0, 2, 1} {
			s := f.tables[i].states[state[i]]
			if left > 1 {
				state[i] = int(s.base) + r.get(uint(s.bits))
			} else {
				k, _ := slices.BinarySearch(f.tables[i].of[s.symbol], uint16(state[i]))
				out[mark+i] = byte(k)
			}
		}
	}
	if r.left != 0 {
		return nil, errZstd
	}
	return append(out, literals...), nil
}

// closeFrame is openFrame's counterpart.
func closeFrame(w *bitWriter, in *column, limit int64) error {
	n := frameHeader(in.b)
	if n < 0 {
		return errors.New("a frame without a header")
	}
	head, _ := in.take(uint64(n))
	w.out = append(w.out, head...)
	var f frame
	for last := byte(0); last == 0; {
		head, err := in.ReadByte()
		if err != nil {
			return err
		}
		if head > 5 {
			return errors.New("a block of an unknown type")
		}
		last = head & 1
		mark := len(w.out)
		w.out = append(w.out, 0, 0, 0)
		size := 0
		if head>>1 == 2 {
			err = f.closeBlock(w, in, limit)
			size = len(w.out) - mark - 3
		} else {
			size, err = closePlain(w, in, head>>1 == 1)
		}
		if err != nil {
			return err
		}
		if size > maxBlock || int64(len(w.out)) > limit {
			return errors.New("a compressed file that is larger than it says")
		}
		v := uint32(size)<<3 | uint32(head)
		w.out[mark], w.out[mark+1], w.out[mark+2] = byte(v), byte(v>>8), byte(v>>16)
	}
	return nil
}

func closePlain(w *bitWriter, in *column, same bool) (size int, err error) {
	v, err := number(in, maxBlock)
	if err != nil {
		return 0, err
	}
	n := uint64(v)
	if same {
		n = 1
	}
	b, err := in.take(n)
	w.out = append(w.out, b...)
	return int(v), err
}

// A sequence is some literals and a match. The values are those of sequenceCodes.
type sequence [3]int32

func (f *frame) closeBlock(w *bitWriter, in *column, limit int64) error {
	kind, err := in.ReadByte()
	if err != nil {
		return err
	}
	size, err := number(in, maxBlock)
	if err != nil {
		return err
	}
	var description []byte
	if kind&3 == codedLiterals {
		tree, n, err := readHuffman(in.b)
		if err != nil {
			return err
		}
		description, _ = in.take(uint64(n))
		f.tree = tree
	}
	n, err := number(in, maxSequences)
	if err != nil {
		return err
	}
	var modes byte
	var tables, last []byte
	if n > 0 {
		if modes, err = in.ReadByte(); err != nil {
			return err
		}
		used, err := f.describe(modes, in.b)
		if err != nil {
			return err
		}
		tables, _ = in.take(uint64(used))
		if last, err = in.take(3); err != nil {
			return err
		}
	}
	if n > int64(len(in.b)/shortestSequence) {
		return io.ErrUnexpectedEOF
	}
	f.literals, f.sequences = slices.Grow(f.literals[:0], int(size)), slices.Grow(f.sequences[:0], int(n))
	for range n {
		if err := f.takeSequence(in, int(size)); err != nil {
			return err
		}
	}
	rest, err := in.take(uint64(int(size) - len(f.literals)))
	if err != nil {
		return err
	}
	f.literals = append(f.literals, rest...)
	if err := f.closeLiterals(w, kind, description); err != nil {
		return err
	}
	switch {
	case n < 128:
		w.out = append(w.out, byte(n))
	case n < 0x7f00:
		w.out = append(w.out, byte(n>>8+128), byte(n))
	default:
		w.out = append(w.out, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	if n == 0 {
		return nil
	}
	w.out = append(append(w.out, modes), tables...)
	return f.closeSequences(w, last, limit)
}

// takeSequence reads a sequence and its literals; the block has size of these.
func (f *frame) takeSequence(in *column, size int) error {
	n, err := number(in, int64(size-len(f.literals)))
	if err != nil {
		return err
	}
	b, err := in.take(uint64(n))
	if err != nil {
		return err
	}
	match, err := number(in, 3+maxBlock)
	if err != nil {
		return err
	}
	offset, err := in.take(3)
	if err != nil {
		return err
	}
	s := sequence{int32(n), int32(offset[0])<<16 | int32(offset[1])<<8 | int32(offset[2]), int32(match)}
	if s[1] == 0 || s[2] < 3 {
		return errors.New("a match of nothing")
	}
	f.literals, f.sequences = append(f.literals, b...), append(f.sequences, s)
	return nil
}

func (f *frame) closeLiterals(w *bitWriter, how byte, description []byte) error {
	literals := f.literals
	if how > 15 {
		return errors.New("literals of an unknown type")
	}
	kind, format := int(how&3), int(how>>2)
	h := literalsHeader(kind, format)
	mark := len(w.out)
	w.out = append(w.out, make([]byte, h.bytes)...)
	switch kind {
	case plainLiterals:
		w.out = append(w.out, literals...)
	case sameLiterals:
		if len(literals) == 0 {
			return errors.New("literals that are none")
		}
		w.out = append(w.out, literals[0])
	default:
		w.out = append(w.out, description...)
		if err := f.tree.encode(w, literals, format > 0); err != nil {
			return err
		}
	}
	stored := uint64(len(w.out) - mark - h.bytes)
	v := uint64(how)&(1<<h.flags-1) | uint64(len(literals))<<h.flags
	if kind >= codedLiterals {
		v |= stored << (h.flags + h.width)
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(w.out[mark:], b[:h.bytes])
	return nil
}

func (h *huffman) encode(w *bitWriter, literals []byte, four bool) error {
	if h == nil {
		return errors.New("literals without a code")
	}
	if !four {
		return h.encodeOne(w, literals)
	}
	if len(literals) < 6 { // less than there are in four streams
		return errors.New("too few literals for four streams")
	}
	mark := len(w.out)
	w.out = append(w.out, make([]byte, 6)...)
	for i, n := range quarters(len(literals)) {
		from := len(w.out)
		if err := h.encodeOne(w, literals[:n]); err != nil {
			return err
		}
		if literals = literals[n:]; i < 3 {
			binary.LittleEndian.PutUint16(w.out[mark+2*i:], uint16(len(w.out)-from))
		}
	}
	return nil
}

func (h *huffman) encodeOne(w *bitWriter, literals []byte) error {
	for _, s := range slices.Backward(literals) {
		if int(s) >= len(h.lengths) || h.lengths[s] == 0 {
			return errors.New("a symbol without a code")
		}
		w.put(int(h.bits[s]), uint(h.lengths[s]))
	}
	w.end()
	return nil
}

// closeSequences writes them from the last one on, which is the way to know the states.
func (f *frame) closeSequences(w *bitWriter, last []byte, limit int64) error {
	var state [3]uint16
	for left := len(f.sequences); left > 0; left-- {
		var rest, extra [3]int
		for _, i := range []int{1, 2, 0} { // as they are read, backwards
			symbol, r, n := sequenceCodes[i].split(int(f.sequences[left-1][i]))
			rest[i], extra[i] = r, int(n)
			t := f.tables[i]
			if symbol >= len(t.of) || len(t.of[symbol]) == 0 {
				return errors.New("a symbol without a code")
			}
			if left < len(f.sequences) {
				before, v, n := t.before(symbol, state[i])
				state[i] = before
				w.put(v, n)
			} else if int(last[i]) >= len(t.of[symbol]) {
				return errors.New("a state that its symbol does not have")
			} else {
				state[i] = t.of[symbol][last[i]]
			}
		}
		for _, i := range []int{0, 2, 1} {
			w.put(rest[i], uint(extra[i]))
		}
		if int64(len(w.out)) > limit {
			return errors.New("a compressed file that is larger than it says")
		}
	}
	for _, i := range []int{2, 1, 0} {
		w.put(int(state[i]), f.tables[i].log)
	}
	w.end()
	return nil
}
