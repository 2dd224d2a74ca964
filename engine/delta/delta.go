// Package delta makes and applies the difference between what a device has and
// an image layer that it wants. It does no I/O of its own: bytes come from
// readers and go to writers that the caller gives.
//
// The nouns:
//
//	Record     a step of writing a layer's tar: bytes, or the content of a file
//	skeleton   the records of a layer, without the contents
//	Content    the bytes of one file, named by their digest
//	base       a content that the device has, from which a patch makes another
//	segment    some new contents, compressed together; the unit of download
//
// A delta holds the target's skeleton, coded against that of one layer that the
// device has, and for each content of the target that the device lacks either
// all its bytes or a patch, whichever is smaller. Patches name their bases by
// digest, so any image that has these bytes will do.
//
// The way of a delta, and the files that each step is in:
//
//	Make                                      Read, Apply, WriteTar
//	records -> entries         entry.go       header                     header.go, scratch.go
//	what is new, from what?    make.go        contents, for each         apply.go
//	  at which base to look    guess.go         segment that is missing:
//	  what to copy of it       match.go         patch on a base          patch.go
//	  code that as a patch     patch.go         inside compressed files  opened.go
//	  inside compressed files  opened.go      entries -> the tar         writetar.go, entry.go
//	entries of the target      skeleton.go
//	header                     header.go      Inspect: what costs it     inspect.go
//
// Below opened.go are deflate.go and zstd.go, with zstdcodes.go, over bits.go.
// rsync.go is another format, balenaEngine's.
//
// What always holds: applying uses a bounded amount of memory, whatever the size of
// the image, of its files, and their number (Window bytes several times over; lists
// are in a Scratch), and every content, and the layer as a whole, is checked
// against its digest before anything can come of it. A delta is foreign bytes:
// whatever it says is checked before it is believed, and errors of kind
// errdef.Invalid say what is wrong.
//
// Nothing is kept while a delta is applied. A caller that stores each content as
// it is complete may ask, after whatever interrupted it, for the segments whose
// contents it still lacks (Segment.Missing) and needs no journal.
//
// The format is in docs/delta-format.md.
package delta

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"iter"

	"github.com/minke-os/minke/oci"
)

// Window is how much of a file is made at once, and how far back the
// compression looks. It bounds the memory of whoever applies a delta.
const Window = 2 << 20

// A Record is a step of writing a layer's tar.
type Record struct {
	Bytes   []byte   // written as they are; nil for a content. Valid only until the next record
	Content *Content // of a file, to be written here
}

// Records are those of one layer, in order. An error ends them.
type Records = iter.Seq2[Record, error]

// A Content is the bytes of one file.
type Content struct {
	Digest oci.Digest
	Size   int64
}

// A Layer is one whose skeleton is known.
type Layer struct {
	DiffID  oci.DiffID
	Records func() Records
}

// A File can be read anywhere.
type File interface {
	io.ReaderAt
	io.Closer
}

// sum is a digest in binary.
type sum [sha256.Size]byte

func (s sum) digest() oci.Digest { return oci.Digest(oci.Prefix + hex.EncodeToString(s[:])) }

func sumOf(d oci.Digest) (s sum, ok bool) {
	n, err := hex.Decode(s[:], []byte(d.Hex()))
	return s, err == nil && n == len(s)
}
