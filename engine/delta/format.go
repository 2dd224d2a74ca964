package delta

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

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

// Version 2 has contents that are opened.
const (
	magic  = "minke delta 1\n"
	magic2 = "minke delta 2\n"
)

// Is reports whether these are the first bytes of a delta.
func Is(head []byte) bool {
	return bytes.HasPrefix(head, []byte(magic)) || bytes.HasPrefix(head, []byte(magic2))
}

// Limits of what is believed.
const (
	maxHeader   = 64 << 20 // bytes of a compressed header
	maxContents = 1 << 22
	maxTar      = 1 << 42
)

// A Delta is what its header says. The skeleton and the segments follow it.
type Delta struct {
	Target   oci.DiffID // of the layer that it makes
	TarSize  int64
	Base     oci.DiffID // the layer whose skeleton it builds on, or ""
	Contents []Content  // that it brings
	Skeleton Section
	Segments []Segment

	opens bool // some content is opened: version 2
}

// A Section is a part of the delta: bytes from its beginning.
type Section struct{ Offset, Length int64 }

// A Segment brings some contents.
type Segment struct {
	Section
	First, Count int       // of Contents
	Bases        []Content // that its patches build on
}

// Size is the length of the whole delta.
func (d *Delta) Size() int64 {
	end := d.Skeleton.Offset + d.Skeleton.Length
	for _, s := range d.Segments {
		end += s.Length
	}
	return end
}

// Missing are the segments that bring something the device lacks.
func (d *Delta) Missing(has func(Content) bool) (out []Segment) {
	for _, s := range d.Segments {
		for _, c := range d.Contents[s.First:][:s.Count] {
			if !has(c) {
				out = append(out, s)
				break
			}
		}
	}
	return out
}

// encode is the header without magic and length, not yet compressed.
func (d *Delta) encode() ([]byte, error) {
	b, err := appendSum(nil, oci.Digest(d.Target))
	if err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(b, uint64(d.TarSize))
	if d.Base == "" {
		b = append(b, 0)
	} else {
		if b, err = appendSum(append(b, 1), oci.Digest(d.Base)); err != nil {
			return nil, err
		}
	}
	if b, err = appendContents(b, d.Contents); err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(b, uint64(d.Skeleton.Length))
	b = binary.AppendUvarint(b, uint64(len(d.Segments)))
	for _, s := range d.Segments {
		b = binary.AppendUvarint(b, uint64(s.Count))
		b = binary.AppendUvarint(b, uint64(s.Length))
		if b, err = appendContents(b, s.Bases); err != nil {
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

// Read reads a delta's header and nothing after it.
func Read(r io.Reader) (*Delta, error) {
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, invalid("header", noEOF(err))
	}
	if !Is(head) {
		return nil, errdef.Invalid.Errorf("not a delta of version 1 or 2")
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
	d := &Delta{opens: string(head[:len(magic)]) == magic2}
	br := bufio.NewReader(z)
	if err := d.decode(br); err != nil {
		return nil, invalid("header", err)
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, errdef.Invalid.Errorf("delta: header: there is more than it says (%v)", err)
	}
	if m, err := io.Copy(io.Discard, compressed); err != nil || m > 0 {
		return nil, errdef.Invalid.Errorf("delta: header: it is shorter than it says (%v)", err)
	}
	d.place(int64(len(head)) + int64(n))
	return d, nil
}

// place computes where the sections are.
func (d *Delta) place(end int64) {
	d.Skeleton.Offset = end
	end += d.Skeleton.Length
	first := 0
	for i := range d.Segments {
		s := &d.Segments[i]
		s.Offset, s.First = end, first
		end, first = end+s.Length, first+s.Count
	}
}

func (d *Delta) decode(r *bufio.Reader) error {
	target, err := readSum(r)
	if err != nil {
		return err
	}
	d.Target = oci.DiffID(target)
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
		d.Base = oci.DiffID(base)
	}
	if d.Contents, err = readContents(r); err != nil {
		return err
	}
	if d.Skeleton.Length, err = number(r, maxTar); err != nil {
		return err
	}
	n, err := number(r, int64(len(d.Contents)))
	if err != nil {
		return fmt.Errorf("segments: %w", err)
	}
	left := int64(len(d.Contents))
	for range n {
		var s Segment
		count, err := number(r, left)
		if err != nil {
			return fmt.Errorf("contents of a segment: %w", err)
		}
		left -= count
		s.Count = int(count)
		if s.Length, err = number(r, maxTar); err != nil {
			return err
		}
		if s.Bases, err = readContents(r); err != nil {
			return fmt.Errorf("bases: %w", err)
		}
		d.Segments = append(d.Segments, s)
	}
	if left > 0 {
		return errors.New("contents that are in no segment")
	}
	return nil
}

func readContents(r *bufio.Reader) ([]Content, error) {
	n, err := number(r, maxContents)
	if err != nil {
		return nil, err
	}
	var list []Content // grows with what is really there
	for range n {
		size, err := number(r, maxTar)
		if err != nil {
			return nil, err
		}
		list = append(list, Content{Size: size})
	}
	for i := range list {
		if list[i].Digest, err = readSum(r); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func readSum(r io.Reader) (oci.Digest, error) {
	var s sum
	_, err := io.ReadFull(r, s[:])
	if err != nil {
		return "", noEOF(err)
	}
	return s.digest(), nil
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

// How a content in a segment is made.
const (
	whole   = 0 // its bytes follow
	patched = 1 // the number of its base, then a patch
	inside  = 2 // the same, and the size of its opened form, which the patch makes of the base's
)

// An Applier makes contents. It keeps what it needs for one segment for the next.
// The zero value works; Close it.
type Applier struct {
	z   *zstd.Decoder
	r   *bufio.Reader
	buf patchBuffers

	file, form, made []byte // of what is opened
}

// Apply makes the contents of one segment of d. r has the segment's bytes; open
// opens a base; create is called for each content, and what it returns is closed
// once the content is complete and has the right digest, or, before, given up by
// Abort.
func (a *Applier) Apply(d *Delta, s Segment, r io.Reader, open func(Content) (File, error), create func(Content) (Sink, error)) error {
	if err := a.start(io.LimitReader(r, s.Length)); err != nil {
		return invalid("segment", err)
	}
	for _, c := range d.Contents[s.First:][:s.Count] {
		sink, err := create(c)
		if err != nil {
			return err
		}
		if err := a.content(c, s.Bases, d.opens, open, sink); err != nil {
			sink.Abort()
			return fmt.Errorf("content %s: %w", c.Digest, err)
		}
		if err := sink.Close(); err != nil {
			return err
		}
	}
	if _, err := a.r.ReadByte(); !errors.Is(err, io.EOF) {
		return errdef.Invalid.Errorf("delta: a segment has more than its contents (%v)", err)
	}
	return nil
}

func (a *Applier) start(r io.Reader) (err error) {
	if a.z != nil {
		err = a.z.Reset(r)
	} else if a.z, err = decoder(r); err == nil {
		a.r = bufio.NewReaderSize(nil, 64<<10)
	}
	if err == nil {
		a.r.Reset(a.z)
	}
	return err
}

// Close gives the memory back.
func (a *Applier) Close() {
	if a.z != nil {
		a.z.Close()
	}
	*a = Applier{}
}

// A Sink takes the bytes of one content.
type Sink interface {
	io.WriteCloser
	Abort()
}

func (a *Applier) content(c Content, bases []Content, opens bool, open func(Content) (File, error), w io.Writer) error {
	h := sha256.New()
	if err := a.make(c, bases, opens, open, io.MultiWriter(w, h)); err != nil {
		return err
	}
	return verify(h, c)
}

func verify(h hash.Hash, c Content) error {
	if got := oci.FromHash(h); got != c.Digest {
		return errdef.Invalid.Errorf("the delta makes bytes with the digest %s", got)
	}
	return nil
}

func (a *Applier) make(c Content, bases []Content, opens bool, open func(Content) (File, error), w io.Writer) error {
	kind, err := a.r.ReadByte()
	if err != nil {
		return invalid("segment", noEOF(err))
	}
	switch {
	case kind == whole:
		if _, err := io.CopyN(w, a.r, c.Size); err != nil {
			return invalid("segment", noEOF(err))
		}
		return nil
	case kind == patched || kind == inside && opens:
		base, err := readBase(a.r, bases)
		if err != nil {
			return invalid("base", err)
		}
		f, err := open(base)
		if err != nil {
			return fmt.Errorf("base %s: %w", base.Digest, err)
		}
		if kind == inside {
			err = a.inside(w, f, base, c)
		} else {
			err = applyPatch(w, a.r, f, base.Size, c.Size, &a.buf)
		}
		if err != nil {
			err = invalid("patch", err)
		}
		return errors.Join(err, f.Close())
	}
	return errdef.Invalid.Errorf("delta: a content of an unknown kind")
}

// inside makes a content whose opened form a patch makes of that of the base.
func (a *Applier) inside(w io.Writer, f File, base, c Content) error {
	size, err := number(a.r, maxOpened)
	if err != nil {
		return err
	}
	if base.Size > maxOpened || c.Size > maxOpened {
		return errors.New("a file that is too large to be opened")
	}
	a.file = slices.Grow(a.file[:0], int(base.Size))[:base.Size]
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, base.Size), a.file); err != nil {
		return noEOF(err)
	}
	form, ok := opened(a.form[:0], a.file)
	if a.form = form; !ok {
		return errors.New("a base that cannot be opened")
	}
	made := bytes.NewBuffer(slices.Grow(a.made[:0], int(size)))
	err = applyPatch(made, a.r, bytes.NewReader(form), int64(len(form)), size, &a.buf)
	if a.made = made.Bytes(); err != nil {
		return err
	}
	a.file, err = closed(slices.Grow(a.file[:0], int(c.Size)), a.made, c.Size)
	if err == nil && int64(len(a.file)) != c.Size {
		err = errors.New("a compressed file of another size than it says")
	}
	if err == nil {
		_, err = w.Write(a.file)
	}
	return err
}

// readBase reads which of the bases a patch builds on.
func readBase(r io.ByteReader, bases []Content) (Content, error) {
	n, err := number(r, int64(len(bases)))
	if err != nil || n == int64(len(bases)) {
		return Content{}, errors.Join(err, errors.New("a base that is not in the list"))
	}
	return bases[n], nil
}

// header is the delta up to its skeleton.
func (d *Delta) header() ([]byte, error) {
	raw, err := d.encode()
	if err != nil {
		return nil, err
	}
	var frame bytes.Buffer
	z, err := encoder(&frame)
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
		return nil, errdef.Invalid.Errorf("a delta of %d contents is too large", len(d.Contents))
	}
	version := magic
	if d.opens {
		version = magic2
	}
	b := append([]byte(version), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(magic):], uint32(frame.Len()))
	return append(b, frame.Bytes()...), nil
}
