package store

import (
	"crypto/sha256"

	"github.com/minke-os/minke/oci"
)

// A sideHash hashes a stream beside the goroutine that reads it. A layer's
// bytes are hashed twice, as a tar and as files; on a board without SHA
// instructions that is most of the work, and this is the half that another
// core can do.
type sideHash struct {
	buf  []byte      // being filled
	full chan []byte // to be hashed
	free chan []byte // hashed
	sum  chan oci.Digest
}

// startHash starts the goroutine that finish ends.
func startHash() *sideHash {
	const buffers = 3 // one being filled, one hashed, one on its way
	s := &sideHash{full: make(chan []byte, 1), free: make(chan []byte, buffers), sum: make(chan oci.Digest, 1)}
	for range buffers {
		s.free <- make([]byte, 0, chunk)
	}
	s.buf = <-s.free
	go s.run()
	return s
}

func (s *sideHash) run() {
	h := sha256.New()
	for p := range s.full {
		h.Write(p)
		s.free <- p[:0]
	}
	s.sum <- oci.FromHash(h)
}

func (s *sideHash) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), cap(s.buf)-len(s.buf))
		s.buf, p = append(s.buf, p[:n]...), p[n:]
		if len(s.buf) == cap(s.buf) {
			s.full <- s.buf
			s.buf = <-s.free
		}
	}
}

// finish waits for the digest of all that was written. It must be called once.
func (s *sideHash) finish() oci.Digest {
	s.full <- s.buf
	close(s.full)
	return <-s.sum
}
