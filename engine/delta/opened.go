package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
)

// A file that is compressed (gzip; zip, jar, wheel; zstd) is opened before it is
// compared, for in compressed bits a change shows everywhere behind it. It is not
// decompressed: then one would have to know which program compressed it, and how.
// Its symbols are laid out in whole bytes, from which the same bits are written
// again whoever made them. An opened file is parts, each
//
//	length, a varint, and bytes as they are
//	0: that was the last part; 1: a deflate stream follows, see deflate.go;
//	2: a zstd frame follows, see zstd.go
//
// Where streams begin is a part of the format: behind the header of a gzip file
// (RFC 1952), and behind each local header of a zip file whose method is 8. A
// frame begins where its file does.

// maxOpened is the most bytes of a file and of its opened form, which are in memory.
const maxOpened = 512 << 10

// What follows the bytes of a part.
const (
	nothingFollows = 0
	deflateFollows = 1
	zstdFollows    = 2 // only behind the first part, which has no bytes
)

// opened gives a file's opened form in a version of the format, appended to out; ok
// is false if there is nothing to open in it, or if it is too large.
func opened(out, b []byte, version int) (_ []byte, ok bool) {
	if len(b) > maxOpened {
		return out, false
	}
	out = slices.Grow(out, 2*len(b))
	at := 0
	if version >= opensZstd {
		if form, n, err := openFrame(append(out, 0, zstdFollows), b); err == nil {
			out, at, ok = form, n, true
		}
	}
	for from := at; ; {
		start := streamStart(b, from)
		if start < 0 {
			break
		}
		mark := len(out)
		out = binary.AppendUvarint(out, uint64(start-at))
		out = append(append(out, b[at:start]...), deflateFollows)
		stream, n, err := openStream(out, b[start:])
		if err != nil {
			out, from = out[:mark], start
			continue
		}
		if len(stream) > maxOpened {
			return out, false
		}
		out, ok = stream, true
		at = start + n
		from = at
	}
	out = append(binary.AppendUvarint(out, uint64(len(b)-at)), b[at:]...)
	return append(out, nothingFollows), ok && len(out) < maxOpened
}

// hasFrame reports whether a file was opened as a zstd file.
func hasFrame(form []byte) bool { return len(form) > 1 && form[0] == 0 && form[1] == zstdFollows }

// streamStart finds the next place where a stream may begin, or -1.
func streamStart(b []byte, from int) int {
	if from == 0 && bytes.HasPrefix(b, []byte{0x1f, 0x8b, 8}) {
		return gzipHeader(b)
	}
	const fixed, method, nameLength, extraLength = 30, 8, 26, 28 // APPNOTE.TXT 4.3.7
	for from < len(b) {
		i := bytes.Index(b[from:], []byte("PK\x03\x04"))
		if i < 0 || from+i+fixed > len(b) {
			return -1
		}
		h := b[from+i:]
		end := from + i + fixed + int(binary.LittleEndian.Uint16(h[nameLength:])) + int(binary.LittleEndian.Uint16(h[extraLength:]))
		if binary.LittleEndian.Uint16(h[method:]) == 8 && end > from && end < len(b) {
			return end
		}
		from += i + 4
	}
	return -1
}

// gzipHeader is the length of a gzip file's header, or -1.
func gzipHeader(b []byte) int {
	const crc, extra, name, comment = 2, 4, 8, 16
	if len(b) < 10 {
		return -1
	}
	at, flags := 10, b[3]
	if flags&extra != 0 {
		if at+2 > len(b) {
			return -1
		}
		at += 2 + int(binary.LittleEndian.Uint16(b[at:]))
	}
	for _, f := range []byte{name, comment} {
		if flags&f == 0 {
			continue
		}
		i := -1
		if at < len(b) {
			i = bytes.IndexByte(b[at:], 0)
		}
		if i < 0 {
			return -1
		}
		at += i + 1
	}
	if flags&crc != 0 {
		at += 2
	}
	if at >= len(b) {
		return -1
	}
	return at
}

// closed gives the file whose opened form this is, appended to out. It has at
// most limit bytes.
func closed(out, form []byte, limit int64, version int) ([]byte, error) {
	in := &column{form}
	w := &bitWriter{out: out}
	for first := true; ; first = false {
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return w.out, noEOF(err)
		}
		raw, err := in.take(n)
		if err != nil {
			return w.out, err
		}
		w.out = append(w.out, raw...)
		more, err := in.ReadByte()
		switch {
		case err != nil:
		case int64(len(w.out)) > limit:
			err = errors.New("a compressed file that is not what it says")
		case more == nothingFollows && in.Len() == 0:
			return w.out, nil
		case more == deflateFollows:
			err = closeStream(w, in, limit)
		case more == zstdFollows && first && n == 0 && version >= opensZstd:
			err = closeFrame(w, in, limit)
		default:
			err = errors.New("a compressed file that is not what it says")
		}
		if err != nil {
			return w.out, err
		}
	}
}
