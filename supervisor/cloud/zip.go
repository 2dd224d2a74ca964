package cloud

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/flate"
)

// A zipper writes gzip (RFC 1952) of text that comes in drops. It remembers the
// 8 kB before as a dictionary and nothing else, where gzip.Writer keeps 800 kB for as long
// as a stream is open: as much as all else that a connection costs. The stream is a
// fifth longer for it. (The library's own gzip.StatelessCompression has no dictionary,
// and each line would be compressed alone.)
type zipper struct {
	w       io.Writer
	begun   bool
	pending []byte // written and not compressed yet
	before  []byte // what was compressed last, at most zipWindow of it
	sum     uint32
	size    uint32 // of all text, as the format has it, modulo 2^32
}

const (
	zipWindow = 8 << 10
	zipMost   = 16 << 10 // that waits for a Flush
)

// Write sends the beginning of the format at once: whoever writes first then waits
// for the connection, and learns of it if there is none.
func (z *zipper) Write(p []byte) (int, error) {
	if err := z.begin(); err != nil {
		return 0, err
	}
	z.pending = append(z.pending, p...)
	if len(z.pending) < zipMost {
		return len(p), nil
	}
	return len(p), z.Flush()
}

func (z *zipper) begin() error {
	if z.begun {
		return nil
	}
	z.begun = true
	const deflate, unknownSystem = 8, 255
	_, err := z.w.Write([]byte{0x1f, 0x8b, deflate, 0, 0, 0, 0, 0, 0, unknownSystem})
	return err
}

// Flush sends all that was written, so that whoever reads sees it.
func (z *zipper) Flush() error {
	if err := z.begin(); err != nil || len(z.pending) == 0 {
		return err
	}
	if err := flate.StatelessDeflate(z.w, z.pending, false, z.before); err != nil {
		return err
	}
	z.sum = crc32.Update(z.sum, crc32.IEEETable, z.pending)
	z.size += uint32(len(z.pending))
	fresh := z.pending[max(len(z.pending)-zipWindow, 0):]
	z.before = slices.Delete(z.before, 0, max(len(z.before)+len(fresh)-zipWindow, 0))
	z.before = append(z.before, fresh...)
	z.pending = z.pending[:0]
	return nil
}

// Close ends the gzip stream, and leaves the writer below open.
func (z *zipper) Close() error {
	if err := z.Flush(); err != nil {
		return err
	}
	if err := flate.StatelessDeflate(z.w, nil, true, nil); err != nil {
		return err
	}
	end := binary.LittleEndian.AppendUint32(nil, z.sum)
	_, err := z.w.Write(binary.LittleEndian.AppendUint32(end, z.size))
	return err
}
