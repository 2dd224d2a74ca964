package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"strconv"

	"github.com/minke-os/minke/internal/errdef"
)

// An entry is what a tar has of one member: its headers, and where its content
// goes. What the headers have of times, sizes and checksums is taken out, so
// that an unchanged member of a rebuilt image has the same head again.
type entry struct {
	head    []byte
	blocks  []block  // of the head, in order; none for bytes that are no headers
	content *Content // nil without
	padded  bool     // zeros up to the next block follow the content
	kept    bool     // of a target's entry: the content is that of the base's
}

// A block is a header of 512 bytes in a head.
type block struct {
	offset int
	blank  byte  // of the flags below
	mtime  int64 // if blankTime is set
}

// What was taken out of a block.
const (
	blankTime = 1 << iota
	blankSize // of the content that follows; for the last block of an entry
	blankSum
	blankAll = blankTime | blankSize | blankSum
)

// The fields of a tar header (POSIX.1-1988 ustar, tar(5)): offset and digits of
// those that are taken out when they have the usual form.
const (
	blockSize           = 512
	nameEnd             = 100
	sizeAt, sizeDigits  = 124, 11
	timeAt, timeDigits  = 136, 11
	sumAt, sumDigits    = 148, 6
	typeAt              = 156
	prefixAt, prefixEnd = 345, 500
	maxHead             = 256 << 10 // bytes of an entry's head; longer ones are divided
	maxInline           = 32 << 10  // of the data of an extended header
	maxEntry            = 96 << 10  // an entry of headers is seldom longer
)

// An entryReader divides records into entries.
type entryReader struct {
	raw   []byte // not yet divided
	last  *entry // waits for its padding
	yield func(*entry, error) bool
	done  bool // nobody wants more
}

// entries divides the records of a layer. The entries are the caller's.
func entries(records Records) iter.Seq2[*entry, error] {
	return func(yield func(*entry, error) bool) {
		r := entryReader{yield: yield}
		for rec, err := range records {
			switch {
			case err != nil:
			case rec.Content == nil:
				r.raw = append(r.raw, rec.Bytes...)
				if len(r.raw) > maxHead { // many members without content
					r.divide(nil, maxEntry)
				}
			case rec.Content.Size < 0:
				err = errdef.Invalid.Errorf("a content of %d bytes", rec.Content.Size)
			default:
				c := *rec.Content
				r.divide(&c, 0)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if r.done {
				return
			}
		}
		r.divide(nil, 0)
		r.flush()
	}
}

// divide makes entries of what is in raw, but for keep bytes that may not be
// complete. The last one gets the content.
func (r *entryReader) divide(c *Content, keep int) {
	raw := r.raw
	if r.last != nil {
		pad := padding(r.last.content.Size)
		if pad > 0 && len(raw) >= pad && isZero(raw[:pad]) {
			r.last.padded, raw = true, raw[pad:]
		}
		r.flush()
	}
	for len(raw) > keep && !r.done {
		e, n := parseEntry(raw, c)
		raw = raw[n:]
		r.last = e
		if len(raw) > 0 || c == nil {
			r.flush()
		}
	}
	r.raw = append(r.raw[:0], raw...)
	if c == nil {
		return
	}
	if r.last == nil { // a content without a header of its own
		r.last = &entry{}
	}
	r.last.content = c
}

func padding(size int64) int { return int((blockSize - size%blockSize) % blockSize) }

func (r *entryReader) flush() {
	if r.last != nil && !r.done {
		r.done = !r.yield(r.last, nil)
	}
	r.last = nil
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// parseEntry takes one entry off the front of raw, and tells how long it is.
// What is no header as expected is an entry of bytes.
func parseEntry(raw []byte, c *Content) (*entry, int) {
	offsets, end := headers(raw, validSum)
	if end == 0 {
		n := min(len(raw), maxHead)
		return &entry{head: bytes.Clone(raw[:n])}, n
	}
	e := &entry{head: bytes.Clone(raw[:end])}
	own := int64(0) // the size that the last header says if it can go
	if c != nil && end == len(raw) {
		own = c.Size
	}
	for i, at := range offsets {
		b := block{offset: at}
		b.take(e.head[at:][:blockSize], i == len(offsets)-1, own)
		e.blocks = append(e.blocks, b)
	}
	return e, end
}

// headers finds the headers of one member at the front of raw: extended ones
// with their data, then the member's own. end is 0 if there is no such thing.
func headers(raw []byte, valid func(h []byte) bool) (offsets []int, end int) {
	for len(raw)-end >= blockSize && valid(raw[end:][:blockSize]) {
		h := raw[end:]
		offsets = append(offsets, end)
		end += blockSize
		if !bytes.ContainsRune([]byte("xgLK"), rune(h[typeAt])) {
			return offsets, end
		}
		size, ok := octal(h[sizeAt:][:sizeDigits])
		if !ok || size > maxInline {
			break
		}
		end += int(size) + padding(size)
		if end > len(raw) {
			break
		}
	}
	return nil, 0
}

// take blanks what fill can put back.
func (b *block) take(h []byte, last bool, size int64) {
	if t, ok := octal(h[timeAt:][:timeDigits]); ok {
		b.blank, b.mtime = b.blank|blankTime, t
	}
	if n, ok := octal(h[sizeAt:][:sizeDigits]); ok && last && n == size {
		b.blank |= blankSize
	}
	if n, ok := octal(h[sumAt:][:sumDigits]); ok && n == checksum(h) && h[sumAt+sumDigits] == 0 && h[sumAt+sumDigits+1] == ' ' {
		b.blank |= blankSum
	}
	for _, f := range b.fields() {
		clear(h[f.offset:][:f.digits])
	}
}

type field struct{ offset, digits int }

func (b *block) fields() (out []field) {
	for _, f := range []struct {
		flag byte
		field
	}{{blankTime, field{timeAt, timeDigits}}, {blankSize, field{sizeAt, sizeDigits}}, {blankSum, field{sumAt, sumDigits}}} {
		if b.blank&f.flag != 0 {
			out = append(out, f.field)
		}
	}
	return out
}

// appendFilled appends the head with everything put back.
func (e *entry) appendFilled(out []byte) []byte {
	from := len(out)
	out = append(out, e.head...)
	head := out[from:]
	size := int64(0)
	if e.content != nil {
		size = e.content.Size
	}
	for _, b := range e.blocks {
		h := head[b.offset:][:blockSize]
		if b.blank&blankTime != 0 {
			putOctal(h[timeAt:][:timeDigits], b.mtime)
		}
		if b.blank&blankSize != 0 {
			putOctal(h[sizeAt:][:sizeDigits], size)
		}
		if b.blank&blankSum != 0 {
			putOctal(h[sumAt:][:sumDigits], checksum(h))
		}
	}
	return out
}

// octal reads digits without blanks: what putOctal writes.
func octal(b []byte) (n int64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int64(c-'0')
	}
	return n, true
}

func putOctal(b []byte, n int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = '0' + byte(n&7)
		n >>= 3
	}
}

// checksum is the sum of all bytes with the checksum itself as blanks.
func checksum(h []byte) (n int64) {
	for i, c := range h {
		if i >= sumAt && i < sumAt+8 {
			c = ' '
		}
		n += int64(c)
	}
	return n
}

func validSum(h []byte) bool {
	text := bytes.Trim(h[sumAt:sumAt+8], " \x00")
	n, err := strconv.ParseInt(string(text), 8, 64)
	return err == nil && n == checksum(h)
}

// path is the member's name, for guessing what it was made from.
func (e *entry) path() string {
	if len(e.blocks) == 0 {
		return ""
	}
	h := e.head[e.blocks[len(e.blocks)-1].offset:]
	name := cString(h[:nameEnd])
	if prefix := cString(h[prefixAt:prefixEnd]); prefix != "" && bytes.HasPrefix(h[257:], []byte("ustar\x00")) {
		name = prefix + "/" + name
	}
	for i, b := range e.blocks[:len(e.blocks)-1] {
		data := e.head[b.offset+blockSize : e.blocks[i+1].offset]
		switch e.head[b.offset+typeAt] {
		case 'L':
			name = cString(data)
		case 'x':
			if p, ok := paxPath(data); ok {
				name = p
			}
		}
	}
	return name
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// paxPath finds "<length> path=<value>\n".
func paxPath(data []byte) (string, bool) {
	for len(data) > 0 {
		digits, _, ok := bytes.Cut(data, []byte(" "))
		n, err := strconv.Atoi(string(digits))
		if !ok || err != nil || n <= len(digits)+1 || n > len(data) {
			return "", false
		}
		if key, value, ok := bytes.Cut(data[len(digits)+1:n], []byte("=")); ok && string(key) == "path" {
			return string(bytes.TrimSuffix(value, []byte("\n"))), true
		}
		data = data[n:]
	}
	return "", false
}

// A headKey stands for a head.
type headKey [16]byte

// key is the same for entries that differ in what was taken out only.
func (e *entry) key() headKey {
	h := sha256.New()
	h.Write(e.head)
	var b []byte
	for _, block := range e.blocks {
		b = binary.AppendUvarint(b, uint64(block.offset))
		b = append(b, block.blank)
	}
	h.Write(append(b, byte(len(e.blocks))))
	return headKey(h.Sum(nil)[:len(headKey{})])
}
