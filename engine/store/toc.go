package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A toc tells how to write a layer's tar again. It is tocMagic and then, in a
// zstd frame, records in the order of the tar:
//
//	'S' length bytes          bytes of the tar as they are: headers, padding
//	'F' size digest name      a file's content: digest of 32 bytes, then the
//	                          object's name with its length before it, or
//	                          just 0 if the name is the digest's
//	'K' size digest name      content that is needed though the tar has it in
//	                          another form, which precedes: a sparse file
//	'E'                       the end
//
// Numbers are unsigned varints.
const tocMagic = "minke toc 1\n"

// maxSegment bounds what a reader allocates for one 'S'; longer segments are
// written in parts.
const maxSegment = 64 << 10

type tocWriter struct {
	f   *os.File
	z   *zstd.Encoder
	seg []byte
}

func createToc(path string) (*tocWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(tocMagic); err != nil {
		f.Close()
		return nil, err
	}
	// Headers compress twentyfold whatever the level; a small window keeps
	// the writer under a megabyte.
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(128<<10), zstd.WithLowerEncoderMem(true))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &tocWriter{f: f, z: z, seg: make([]byte, 0, maxSegment)}, nil
}

// raw adds bytes that are not a file's content.
func (t *tocWriter) raw(p []byte) error {
	for len(p) > 0 {
		if len(t.seg) == cap(t.seg) {
			if err := t.flush(); err != nil {
				return err
			}
		}
		n := min(len(p), cap(t.seg)-len(t.seg))
		t.seg, p = append(t.seg, p[:n]...), p[n:]
	}
	return nil
}

func (t *tocWriter) flush() error {
	if len(t.seg) == 0 {
		return nil
	}
	head := binary.AppendUvarint([]byte{'S'}, uint64(len(t.seg)))
	if _, err := t.z.Write(head); err != nil {
		return err
	}
	_, err := t.z.Write(t.seg)
	t.seg = t.seg[:0]
	return err
}

// file adds content that lies in files/.
func (t *tocWriter) file(c content) error {
	if err := t.flush(); err != nil {
		return err
	}
	kind := byte('F')
	if c.sparse {
		kind = 'K'
	}
	name := c.object
	if name == c.digest.name() {
		name = "" // letters of a digest do not compress
	}
	b := binary.AppendUvarint([]byte{kind}, uint64(c.size))
	b = append(b, c.digest[:]...)
	b = binary.AppendUvarint(b, uint64(len(name)))
	_, err := t.z.Write(append(b, name...))
	return err
}

// finish writes the end. The caller syncs.
func (t *tocWriter) finish() error {
	err := t.flush()
	if err == nil {
		_, err = t.z.Write([]byte{'E'})
	}
	return errors.Join(err, t.z.Close(), t.f.Close())
}

// abort releases what is open, for a layer that will not be.
func (t *tocWriter) abort() {
	t.z.Close()
	t.f.Close()
}

// A content is one file's bytes and the object that holds them.
type content struct {
	digest sum
	size   int64
	object string // "" for an empty file, which needs none
	sparse bool   // the tar has the bytes in another form
}

// readToc calls raw and file in the order of the tar. The slice given to raw
// is valid only during the call.
func readToc(path string, raw func([]byte) error, file func(content) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, len(tocMagic))
	if _, err := io.ReadFull(f, magic); err != nil || string(magic) != tocMagic {
		return fmt.Errorf("%s: not a toc of version 1", path)
	}
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	if err := decodeToc(bufio.NewReader(z), raw, file); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func decodeToc(r *bufio.Reader, raw func([]byte) error, file func(content) error) error {
	buf := make([]byte, maxSegment)
	for {
		kind, err := r.ReadByte()
		if err != nil {
			return noEOF(err)
		}
		switch kind {
		case 'S':
			n, err := binary.ReadUvarint(r)
			if err != nil || n > maxSegment {
				return fmt.Errorf("segment of %d bytes: %w", n, noEOF(err))
			}
			if _, err := io.ReadFull(r, buf[:n]); err != nil {
				return noEOF(err)
			}
			if err := raw(buf[:n]); err != nil {
				return err
			}
		case 'F', 'K':
			c, err := decodeContent(r)
			if err != nil {
				return noEOF(err)
			}
			c.sparse = kind == 'K'
			if err := file(c); err != nil {
				return err
			}
		case 'E':
			return nil
		default:
			return fmt.Errorf("unknown record %q", kind)
		}
	}
}

func decodeContent(r *bufio.Reader) (content, error) {
	var c content
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return c, err
	}
	c.size = int64(size)
	if _, err := io.ReadFull(r, c.digest[:]); err != nil {
		return c, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return c, err
	}
	if c.size < 0 || n > 255 || n < nameLen && n != 0 {
		return c, fmt.Errorf("file of %d bytes with a name of %d", c.size, n)
	}
	if n == 0 && c.size > 0 {
		c.object = c.digest.name()
		return c, nil
	}
	name := make([]byte, n)
	_, err = io.ReadFull(r, name)
	c.object = string(name)
	return c, err
}

func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// LayerTar writes exactly the bytes that AddLayer read. An error after the
// last byte means that they are not the same: the disk has damaged the layer.
func (s *Store) LayerTar(ctx context.Context, id oci.ChainID, w io.Writer) error {
	release, err := s.Lease(id)
	if err != nil {
		return err
	}
	defer release()
	l, err := s.Layer(id)
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := s.replay(ctx, id, io.MultiWriter(w, h)); err != nil {
		return fmt.Errorf("tar of layer %s: %w", l.DiffID, err)
	}
	if got := oci.FromHash(h); got != oci.Digest(l.DiffID) {
		return errdef.Internal.Errorf("tar of layer %s: the disk gives bytes with digest %s; remove the image and pull it again", l.DiffID, got)
	}
	return nil
}

// replay writes a layer's tar as the disk has it.
func (s *Store) replay(ctx context.Context, id oci.ChainID, w io.Writer) error {
	return readToc(s.layerPath(id, "toc"),
		func(p []byte) error {
			_, err := w.Write(p)
			return err
		},
		func(c content) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return s.copyObject(w, c)
		})
}

func (s *Store) copyObject(w io.Writer, c content) error {
	if c.size == 0 || c.sparse {
		return nil
	}
	f, err := os.Open(s.objectFile(c.object))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(w, f, c.size); err != nil {
		return fmt.Errorf("object %s: %w", c.object, noEOF(err))
	}
	return nil
}
