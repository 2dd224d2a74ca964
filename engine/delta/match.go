package delta

import (
	"encoding/binary"
	"math/bits"
)

// A copied is a part of the new file that is made by adding to bytes of the old
// one. What lies between two of them is new.
type copied struct {
	at, from, n int // position in new, position in old, length
}

// Matches are looked for by hashes of seed bytes.
const (
	seed       = 8
	minMatch   = 12   // bytes that must be equal for a new alignment
	chainLimit = 24   // places in old that are tried
	trust      = 16   // equal bytes after which the alignment is not questioned
	gain       = 8    // bytes by which another alignment must be better
	compared   = 1024 // bytes on which two alignments are compared
)

// An index finds places in old.
type index struct {
	old   []byte
	step  int     // only every step-th place is known
	shift uint    // of the hash
	head  []int32 // by hash; place/step, or -1
	next  []int32 // of the same hash
}

// newIndex indexes old with at most limit bytes of memory beside it.
func newIndex(old []byte, limit int64) *index {
	const perPlace = 12 // next and, on average, two heads
	step := 1
	for int64(len(old)/step)*perPlace > limit {
		step++
	}
	places := len(old)/step + 1
	width := max(bits.Len(uint(places)), 8)
	x := &index{old: old, step: step, shift: uint(64 - width), head: make([]int32, 1<<width), next: make([]int32, places)}
	for i := range x.head {
		x.head[i] = -1
	}
	// From the back, so that of many places the first come first.
	last := uint64(0)
	for p := (len(old) - seed) / step * step; p >= 0 && len(old) >= seed; p -= step {
		v := binary.LittleEndian.Uint64(old[p:])
		if v == last { // a run: its first place is enough
			if h := x.hash(v); x.head[h] >= 0 {
				x.next[p/step] = x.next[x.head[h]]
				x.head[h] = int32(p / step)
			}
			continue
		}
		last = v
		h := x.hash(v)
		x.next[p/step], x.head[h] = x.head[h], int32(p/step)
	}
	return x
}

func (x *index) hash(v uint64) uint64 { return v * 0x9e3779b97f4a7c15 >> x.shift }

// longest finds the longest match of b, at least minMatch bytes.
func (x *index) longest(b []byte) (from, n int) {
	if len(b) < seed {
		return 0, 0
	}
	i := x.head[x.hash(binary.LittleEndian.Uint64(b))]
	for tries := 0; i >= 0 && tries < chainLimit; tries++ {
		p := int(i) * x.step
		if m := equal(x.old[p:], b); m > n {
			from, n = p, m
		}
		i = x.next[i]
	}
	if n < minMatch {
		return 0, 0
	}
	return from, n
}

// equal is how many bytes at the front are the same.
func equal(a, b []byte) (n int) {
	m := min(len(a), len(b))
	for ; n+8 <= m; n += 8 {
		if d := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); d != 0 {
			return n + bits.TrailingZeros64(d)/8
		}
	}
	for n < m && a[n] == b[n] {
		n++
	}
	return n
}

// match says how to make new from the indexed bytes. In a program whose
// functions have moved most bytes are as they were and the addresses among them
// differ a little, so an alignment is kept over bytes that differ until another
// one is clearly better.
func (x *index) match(new []byte) []copied {
	var anchors []copied
	shift, aligned := 0, false // old = new + shift
	for p := 0; p < len(new); {
		run := 0
		if aligned && p+shift >= 0 && p+shift < len(x.old) {
			run = equal(x.old[p+shift:], new[p:])
		}
		if run >= trust {
			anchors = extend(anchors, copied{p, p + shift, run})
			p += run
			continue
		}
		from, n := x.longest(new[p:])
		if n > 0 && n > run && (!aligned || min(n, compared) > x.same(new, p, shift, min(n, compared))+gain) {
			anchors = append(anchors, copied{p, from, n})
			shift, aligned = from-p, true
			p += n
			continue
		}
		p += max(run, 1)
	}
	return x.grow(anchors, new)
}

// extend joins an anchor to the one before it if both have one alignment.
func extend(anchors []copied, a copied) []copied {
	if len(anchors) > 0 {
		if last := &anchors[len(anchors)-1]; last.from-last.at == a.from-a.at {
			last.n = a.at + a.n - last.at
			return anchors
		}
	}
	return append(anchors, a)
}

// same counts equal bytes under an alignment.
func (x *index) same(new []byte, p, shift, n int) (count int) {
	for i := p; i < p+n; i++ {
		if o := i + shift; o >= 0 && o < len(x.old) && x.old[o] == new[i] {
			count++
		}
	}
	return count
}

// grow extends anchors into the gaps between them, as far as more than half of
// the bytes are equal.
func (x *index) grow(anchors []copied, new []byte) []copied {
	var out []copied
	floor := 0 // end of what is made already
	for i, a := range anchors {
		// Backwards, into what is left of the gap.
		best, score, at := 0, 0, 0
		for k := 1; a.at-k >= floor && a.from-k >= 0; k++ {
			if x.old[a.from-k] == new[a.at-k] {
				score++
			} else {
				score--
			}
			if score > best {
				best, at = score, k
			}
		}
		a.at, a.from, a.n = a.at-at, a.from-at, a.n+at
		limit := len(new)
		if i+1 < len(anchors) {
			limit = anchors[i+1].at
		}
		best, score, at = 0, 0, 0
		for k := 0; a.at+a.n+k < limit && a.from+a.n+k < len(x.old); k++ {
			if x.old[a.from+a.n+k] == new[a.at+a.n+k] {
				score++
			} else {
				score--
			}
			if score > best {
				best, at = score, k+1
			}
		}
		a.n += at
		floor = a.at + a.n
		out = append(out, a)
	}
	return out
}
