package delta

import (
	"bytes"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/fse"
)

// The two kinds of codes that a zstd frame has, RFC 8878, 4.

// An fseTable decodes a finite state entropy code (RFC 8878, 4.1), and knows
// the states of each symbol.
type fseTable struct {
	log    uint
	states []fseState
	of     [][]uint16 // by symbol
}

type fseState struct {
	symbol byte
	bits   uint8
	base   uint16
}

func fseTableOf(counts []int, log uint) *fseTable {
	size := 1 << log
	t := &fseTable{log, make([]fseState, size), make([][]uint16, len(counts))}
	high := size
	for s, n := range counts {
		if n < 0 { // less than one
			high--
			t.states[high].symbol = byte(s)
		}
	}
	at := 0
	for s, n := range counts {
		for range max(n, 0) {
			t.states[at].symbol = byte(s)
			for at = (at + size>>1 + size>>3 + 3) & (size - 1); at >= high; at = (at + size>>1 + size>>3 + 3) & (size - 1) {
			}
		}
	}
	next := make([]int, len(counts))
	for s, n := range counts {
		next[s] = max(n, -n)
	}
	for i := range t.states {
		s := t.states[i].symbol
		n := next[s]
		next[s]++
		t.states[i].bits = uint8(log) - uint8(bits.Len(uint(n))-1)
		t.states[i].base = uint16(n<<t.states[i].bits - size)
		t.of[s] = append(t.of[s], uint16(i))
	}
	return t
}

// before is the state of a symbol from which the next state is come by, and
// which bits say so.
func (t *fseTable) before(symbol int, next uint16) (state uint16, v int, n uint) {
	for _, i := range t.of[symbol] {
		s := t.states[i]
		if next >= s.base && next-s.base < 1<<s.bits {
			return i, int(next - s.base), uint(s.bits)
		}
	}
	return 0, 0, 0 // there is one for every state
}

// readFSE reads the description of a table, and tells how long it is.
func readFSE(b []byte, symbols int, maxLog uint) (t *fseTable, n int, err error) {
	r := &bitReader{b: b}
	log := uint(r.get(4)) + 5
	if log > maxLog {
		return nil, 0, errZstd
	}
	left := 1 << log
	var counts []int
	for left > 0 && len(counts) < symbols && !r.over {
		width := uint(bits.Len(uint(left + 1)))
		v := r.get(width - 1)
		if threshold := 1<<width - 1 - (left + 1); v >= threshold {
			if v |= r.get(1) << (width - 1); v >= 1<<(width-1) {
				v -= threshold
			}
		}
		counts = append(counts, v-1)
		left -= max(v-1, 1-v)
		for v == 1 { // zero, and how many more
			more := r.get(2)
			counts = append(counts, make([]int, more)...)
			if more < 3 || r.over {
				break
			}
		}
	}
	if left != 0 || len(counts) > symbols || r.over {
		return nil, 0, errZstd
	}
	return fseTableOf(counts, log), r.at - int(r.n/8), nil
}

// A huffman code is canonical, with longer codes first.
type huffman struct {
	lengths []byte
	bits    []uint16
	log     uint
	symbols []byte // by the next log bits
}

// readHuffman reads the description of a code, and tells how long it is.
func readHuffman(b []byte) (h *huffman, n int, err error) {
	if len(b) == 0 {
		return nil, 0, errZstd
	}
	head := int(b[0])
	var weights []byte
	if head >= 128 {
		if n = 1 + (head-127+1)/2; n > len(b) {
			return nil, 0, errZstd
		}
		for i := range head - 127 {
			weights = append(weights, b[1+i/2]>>(4-4*(i%2))&15)
		}
	} else {
		if n = 1 + head; n > len(b) || head == 0 {
			return nil, 0, errZstd
		}
		if weights, err = fse.Decompress(b[1:n], &fse.Scratch{DecompressLimit: 255}); err != nil {
			return nil, 0, errZstd
		}
	}
	h, err = huffmanOf(weights)
	return h, n, err
}

// huffmanOf makes a code of all weights but the last, which follows from them.
func huffmanOf(weights []byte) (*huffman, error) {
	const maxLog = 11
	sum := 0
	for _, w := range weights {
		if w > maxLog {
			return nil, errZstd
		}
		sum += 1 << w >> 1
	}
	log := uint(bits.Len(uint(sum)))
	rest := 1<<log - sum
	if sum == 0 || log > maxLog || rest&(rest-1) != 0 {
		return nil, errZstd
	}
	weights = append(slices.Clone(weights), byte(bits.Len(uint(rest))))
	h := &huffman{lengths: make([]byte, len(weights)), bits: make([]uint16, len(weights)), log: log, symbols: make([]byte, 0, 1<<log)}
	for w := byte(1); w <= byte(log); w++ {
		for s, have := range weights {
			if have != w {
				continue
			}
			h.lengths[s] = byte(log) + 1 - w
			h.bits[s] = uint16(len(h.symbols) >> (w - 1))
			h.symbols = append(h.symbols, bytes.Repeat([]byte{byte(s)}, 1<<(w-1))...)
		}
	}
	return h, nil
}
