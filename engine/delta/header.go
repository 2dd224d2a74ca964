package delta

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// How deltas are named where images are kept, in registries and archives: an
// artifact whose layers are deltas, one for each layer of the target image that
// the base image has not got. OCI image specification 1.1, manifest.md.
const (
	ArtifactType = "application/vnd.minke.delta.v1"
	MediaType    = "application/vnd.minke.layer.delta.v1"

	BaseImage   = "io.minke.delta.base"     // annotation of the artifact: ID of the image that it was made from
	TargetLayer = "io.minke.delta.layer"    // annotation of a layer: diff ID of the layer that it makes
	BaseLayer   = "io.minke.delta.skeleton" // annotation of a layer: diff ID of the layer whose skeleton it needs, if any
)

// magic begins a delta, with its version in place of the 1: the least that has what
// is in it.
const (
	magic     = "minke delta 1\n"
	versionAt = len("minke delta ")
)

const (
	opensDeflate = 2 // contents that are opened
	opensZstd    = 3 // also those of zstd
)

// Is reports whether these are the first bytes of a delta.
func Is(head []byte) bool { return versionOf(head) > 0 }

// versionOf is 0 for what is no delta, or of a later version.
func versionOf(head []byte) int {
	if len(head) < len(magic) || head[versionAt] < '1' || head[versionAt] > '0'+opensZstd {
		return 0
	}
	if string(head[:versionAt]) != magic[:versionAt] || string(head[versionAt+1:len(magic)]) != magic[versionAt+1:] {
		return 0
	}
	return int(head[versionAt] - '0')
}

// Limits of what is believed.
const (
	maxHeader   = 64 << 20 // bytes of a compressed header
	maxContents = 1 << 22
	maxTar      = 1 << 42
)

// A Delta is what its header says. The skeleton and the segments follow it. Its
// lists are in the scratch that Read was given: it takes no more memory for a
// million contents than for one.
type Delta struct {
	Target   oci.DiffID // of the layer that it makes
	TarSize  int64
	Base     oci.DiffID // the layer whose skeleton it builds on, or ""
	Skeleton Section

	version  int
	contents list // that it brings
	scratch  io.ReaderAt
	segments int
	first    int64 // where in scratch their records begin
	size     int64 // of the whole delta
}

// A Section is a part of the delta: bytes from its beginning.
type Section struct{ Offset, Length int64 }

// A Segment brings some contents.
type Segment struct {
	Section
	contents, bases list
}

// Size is the length of the whole delta.
func (d *Delta) Size() int64 { return d.size }

// Count is how many contents the delta brings.
func (d *Delta) Count() int { return d.contents.n }

// Segments are in the order of the delta. An error, of the scratch, ends them.
func (d *Delta) Segments() iter.Seq2[Segment, error] {
	return func(yield func(Segment, error) bool) {
		offset, record := d.Skeleton.Offset+d.Skeleton.Length, d.first
		contents := d.contents
		for range d.segments {
			var b [segmentRecord]byte
			if _, err := d.scratch.ReadAt(b[:], record); err != nil {
				yield(Segment{}, noEOF(err))
				return
			}
			count, bases := int(binary.BigEndian.Uint64(b[:])), int(binary.BigEndian.Uint64(b[16:]))
			s := Segment{
				Section:  Section{offset, int64(binary.BigEndian.Uint64(b[8:]))},
				contents: contents.part(0, count),
				bases:    list{d.scratch, record + segmentRecord, record + segmentRecord + int64(bases)*sizeRecord, bases},
			}
			if !yield(s, nil) {
				return
			}
			contents = contents.part(count, contents.n-count)
			record = s.bases.end()
			offset += s.Length
		}
	}
}

// Contents are what the segment brings, in order.
func (s Segment) Contents() iter.Seq2[Content, error] { return s.contents.all() }

// Bases are what its patches build on.
func (s Segment) Bases() iter.Seq2[Content, error] { return s.bases.all() }

// Missing reports whether it brings something that the device lacks.
func (s Segment) Missing(has func(Content) bool) (bool, error) {
	for c, err := range s.Contents() {
		if err != nil || !has(c) {
			return err == nil, err
		}
	}
	return false, nil
}

// Read reads a delta's header and nothing after it. Its lists go to scratch,
// which is empty, belongs to the delta, and takes 40 bytes for a content.
func Read(r io.Reader, scratch Scratch) (*Delta, error) {
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, invalid("header", noEOF(err))
	}
	version := versionOf(head)
	if version == 0 {
		return nil, errdef.Invalid.Errorf("not a delta of the versions 1 to %d", opensZstd)
	}
	n := binary.BigEndian.Uint32(head[len(magic):])
	if n > maxHeader {
		return nil, errdef.Invalid.Errorf("delta: a header of %d bytes is too large", n)
	}
	compressed := io.LimitReader(r, int64(n))
	z, err := decoder(compressed)
	if err != nil {
		return nil, invalid("header", err)
	}
	defer z.Close()
	d := &Delta{version: version, scratch: scratch}
	d.Skeleton.Offset = int64(len(head)) + int64(n)
	in := headerReader{Reader: bufio.NewReader(z), w: bufio.NewWriter(scratch), scratch: scratch}
	if err := in.decode(d); err != nil {
		return nil, err
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, errdef.Invalid.Errorf("delta: header: there is more than it says (%v)", err)
	}
	if m, err := io.Copy(io.Discard, compressed); err != nil || m > 0 {
		return nil, errdef.Invalid.Errorf("delta: header: it is shorter than it says (%v)", err)
	}
	return d, nil
}

// A headerReader decodes a header, and writes its lists to the scratch.
type headerReader struct {
	*bufio.Reader
	w       *bufio.Writer
	scratch io.ReaderAt
	at      int64 // where in scratch w is
	failed  error // of w
}

func (r *headerReader) decode(d *Delta) error {
	err := r.fields(d)
	if err != nil && r.failed == nil {
		err = invalid("header", err)
	}
	return errors.Join(err, r.w.Flush())
}

func (r *headerReader) fields(d *Delta) error {
	target, err := readSum(r)
	if err != nil {
		return err
	}
	d.Target = oci.DiffID(target.digest())
	if d.TarSize, err = number(r, maxTar); err != nil {
		return err
	}
	hasBase, err := r.ReadByte()
	if err != nil {
		return noEOF(err)
	}
	if hasBase > 1 {
		return errors.New("an unknown kind of base")
	}
	if hasBase == 1 {
		base, err := readSum(r)
		if err != nil {
			return err
		}
		d.Base = oci.DiffID(base.digest())
	}
	n, err := number(r, maxContents)
	if err != nil {
		return err
	}
	if d.contents, err = r.list(int(n)); err != nil {
		return err
	}
	if d.Skeleton.Length, err = number(r, maxTar); err != nil {
		return err
	}
	d.size = d.Skeleton.Offset + d.Skeleton.Length
	return r.segments(d)
}

func (r *headerReader) segments(d *Delta) error {
	n, err := number(r, int64(d.contents.n))
	if err != nil {
		return fmt.Errorf("segments: %w", err)
	}
	d.segments, d.first = int(n), r.at
	left := int64(d.contents.n)
	for range n {
		count, err := number(r, left)
		if err != nil {
			return fmt.Errorf("contents of a segment: %w", err)
		}
		left -= count
		length, err := number(r, maxTar)
		if err != nil {
			return err
		}
		if d.size += length; d.size > maxTar {
			return errors.New("segments that are larger than there can be")
		}
		bases, err := number(r, maxContents)
		if err != nil {
			return fmt.Errorf("bases: %w", err)
		}
		for _, v := range []int64{count, length, bases} {
			if err := r.write(binary.BigEndian.AppendUint64(nil, uint64(v))); err != nil {
				return err
			}
		}
		if _, err := r.list(int(bases)); err != nil {
			return fmt.Errorf("bases: %w", err)
		}
	}
	if left > 0 {
		return errors.New("contents that are in no segment")
	}
	return nil
}

// list takes over n contents.
func (r *headerReader) list(n int) (list, error) {
	l := list{r.scratch, r.at, r.at + int64(n)*sizeRecord, n}
	for range n {
		size, err := number(r, maxTar)
		if err == nil {
			err = r.write(binary.BigEndian.AppendUint64(nil, uint64(size)))
		}
		if err != nil {
			return l, err
		}
	}
	for range n {
		s, err := readSum(r)
		if err == nil {
			err = r.write(s[:])
		}
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

func (r *headerReader) write(b []byte) error {
	n, err := r.w.Write(b)
	r.at += int64(n)
	r.failed = err
	return err
}

func readSum(r io.Reader) (s sum, err error) {
	_, err = io.ReadFull(r, s[:])
	return s, noEOFIfAny(err)
}

func number(r io.ByteReader, limit int64) (int64, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, noEOF(err)
	}
	if n > uint64(limit) {
		return 0, fmt.Errorf("%d is more than there can be (%d)", n, limit)
	}
	return int64(n), nil
}

// A header is one in the making.
type header struct {
	target, base oci.DiffID
	tarSize      int64
	contents     []Content
	skeleton     int64 // bytes
	segments     []segmentCode
	version      int
}

// encode is the delta up to its skeleton.
func (h *header) encode() ([]byte, error) {
	raw, err := h.fields()
	if err != nil {
		return nil, err
	}
	var frame bytes.Buffer
	z, err := encoder(&frame, Window)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(raw); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if frame.Len() > maxHeader {
		return nil, errdef.Invalid.Errorf("a delta of %d contents is too large", len(h.contents))
	}
	b := append([]byte(magic), 0, 0, 0, 0)
	b[versionAt] = '0' + byte(h.version)
	binary.BigEndian.PutUint32(b[len(magic):], uint32(frame.Len()))
	return append(b, frame.Bytes()...), nil
}

// fields are what is compressed of it.
func (h *header) fields() ([]byte, error) {
	b, err := appendSum(nil, oci.Digest(h.target))
	if err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(b, uint64(h.tarSize))
	if h.base == "" {
		b = append(b, 0)
	} else {
		if b, err = appendSum(append(b, 1), oci.Digest(h.base)); err != nil {
			return nil, err
		}
	}
	if b, err = appendContents(b, h.contents); err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(b, uint64(h.skeleton))
	b = binary.AppendUvarint(b, uint64(len(h.segments)))
	for _, s := range h.segments {
		b = binary.AppendUvarint(b, uint64(s.count))
		b = binary.AppendUvarint(b, uint64(s.length))
		if b, err = appendContents(b, s.bases); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendContents(b []byte, list []Content) (_ []byte, err error) {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, c := range list {
		b = binary.AppendUvarint(b, uint64(c.Size))
	}
	for _, c := range list {
		if b, err = appendSum(b, c.Digest); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendSum(b []byte, d oci.Digest) ([]byte, error) {
	s, ok := sumOf(d)
	if !ok {
		return nil, errdef.Invalid.Errorf("the digest %q is no SHA-256", d)
	}
	return append(b, s[:]...), nil
}

func invalid(what string, err error) error {
	return errdef.Invalid.Errorf("delta: %s: %w", what, err)
}

// decoder reads one zstd frame within the memory that a delta may need.
func decoder(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(Window))
}
