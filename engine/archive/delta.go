package archive

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// SaveDelta writes a delta as an OCI image layout with one artifact, whose
// configuration is the target image's. Load makes the image of it where the
// base is.
func SaveDelta(w io.Writer, d *store.ImageDelta) error {
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: delta.ArtifactType,
		Config: descriptor(v1.MediaTypeImageConfig, d.Target.Raw), Layers: []v1.Descriptor{},
		Annotations: map[string]string{delta.BaseImage: string(d.Base.ID)},
	}
	for _, l := range d.Layers {
		notes := map[string]string{delta.TargetLayer: string(l.Target)}
		if l.Base != "" {
			notes[delta.BaseLayer] = string(l.Base)
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: delta.MediaType, Digest: digest.Digest(l.Digest), Size: l.Size, Annotations: notes})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	desc := descriptor(v1.MediaTypeImageManifest, raw)
	desc.ArtifactType = delta.ArtifactType
	for _, ref := range d.Target.Tags {
		named := desc
		named.Annotations = map[string]string{"io.containerd.image.name": ref.String(), v1.AnnotationRefName: ref.Tag}
		index.Manifests = append(index.Manifests, named)
	}
	if len(index.Manifests) == 0 {
		index.Manifests = []v1.Descriptor{desc}
	}
	sv := saving{tw: tar.NewWriter(w)}
	for _, doc := range []struct {
		name string
		v    any
	}{{"oci-layout", v1.ImageLayout{Version: v1.ImageLayoutVersion}}, {"index.json", index}} {
		b, err := json.Marshal(doc.v)
		if err == nil {
			err = sv.file(doc.name, b)
		}
		if err != nil {
			return err
		}
	}
	for _, b := range [][]byte{raw, d.Target.Raw} {
		if err := sv.file("blobs/sha256/"+oci.FromBytes(b).Hex(), b); err != nil {
			return err
		}
	}
	for _, l := range d.Layers {
		if err := sv.header("blobs/sha256/"+l.Digest.Hex(), l.Size); err != nil {
			return err
		}
		if _, err := io.Copy(sv.tw, io.NewSectionReader(l.File, 0, l.Size)); err != nil {
			return err
		}
	}
	return sv.tw.Close()
}

// DeltaFiles takes the deltas out of an archive that SaveDelta made, or of a
// single layer's delta, into files that temp makes and the caller closes. base
// is the image that they were made from, if the archive tells.
func DeltaFiles(r io.Reader, temp func() (*os.File, error)) (base oci.ImageID, files []*os.File, err error) {
	plain, err := Decompress(r)
	if err != nil {
		return "", nil, err
	}
	defer plain.Close()
	take := func(r io.Reader) error {
		f, err := temp()
		if err != nil {
			return err
		}
		files = append(files, f)
		_, err = io.Copy(f, r)
		return err
	}
	whole := bufio.NewReaderSize(plain, 4096)
	head, err := whole.Peek(512)
	if delta.Is(head) {
		return "", files, take(whole)
	}
	if !IsTar(head) {
		return "", nil, errdef.Invalid.Errorf("this is no delta: it begins with neither a tar nor a delta (%v)", err)
	}
	for tr := tar.NewReader(whole); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names only name here
			return base, files, errdef.Invalid.Errorf("archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b := bufio.NewReaderSize(tr, 4096)
		head, _ := b.Peek(64)
		if delta.Is(head) {
			if err := take(b); err != nil {
				return base, files, err
			}
			continue
		}
		var m v1.Manifest
		if json.NewDecoder(io.LimitReader(b, maxDocument)).Decode(&m) == nil && m.ArtifactType == delta.ArtifactType {
			base = oci.ImageID(m.Annotations[delta.BaseImage])
		}
	}
	if len(files) == 0 {
		return base, nil, errdef.Invalid.Errorf("the archive has no delta")
	}
	return base, files, nil
}

// A loadedDelta is one whose contents are in the store.
type loadedDelta struct {
	*delta.Delta
	lists, skeleton *os.File
}

func (d loadedDelta) close() error { return errors.Join(d.lists.Close(), d.skeleton.Close()) }

// delta brings the contents of a delta into the store. The layer is added when
// it is known what lies below it.
func (l *loading) delta(r *bufio.Reader) (err error) {
	var d loadedDelta
	if d.lists, err = l.s.TempFile(); err != nil {
		return err
	}
	if d.skeleton, err = l.s.TempFile(); err != nil {
		return errors.Join(err, d.lists.Close())
	}
	if d.Delta, err = delta.Read(r, d.lists); err != nil {
		return errors.Join(err, d.close())
	}
	if twin, ok := l.deltas[d.Target]; ok {
		twin.close()
	}
	l.deltas[d.Target] = d
	if l.loose == nil {
		if l.loose, err = l.s.Loose(); err != nil {
			return err
		}
	}
	if _, err := io.CopyN(d.skeleton, r, d.Skeleton.Length); err != nil {
		return errdef.Invalid.Errorf("the archive is cut: %w", err)
	}
	for seg, err := range d.Segments() {
		if err == nil {
			err = l.ctx.Err()
		}
		if err != nil {
			return err
		}
		if err := l.segment(d.Delta, seg, io.LimitReader(r, seg.Length)); err != nil {
			return err
		}
	}
	return nil
}

func (l *loading) segment(d *delta.Delta, seg delta.Segment, r io.Reader) error {
	missing, err := seg.Missing(l.loose.Has)
	if err != nil {
		return err
	}
	if missing {
		err := l.applier.Apply(d, seg, r, func(c delta.Content) (delta.File, error) { return l.loose.Open(c) }, l.loose.Create)
		if errdef.Is(err, errdef.NotFound) {
			return fmt.Errorf("the delta builds on an image that is not here: load or pull that first (%w)", err)
		}
		if err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// stackDelta makes the layers of an image of what is here and the deltas.
func (l *loading) stackDelta(diffs []oci.DiffID) error {
	l.applier.Close()
	var chain oci.ChainID
	for _, diff := range diffs {
		next := oci.Chain(chain, diff)
		_, err := l.s.Layer(next)
		if d, ok := l.deltas[diff]; err != nil && ok {
			if _, err = d.skeleton.Seek(0, io.SeekStart); err == nil {
				_, err = l.s.AddDelta(l.ctx, chain, d.Delta, d.skeleton, l.loose)
			}
		} else if err != nil {
			_, err = l.s.Restack(l.ctx, chain, diff)
		}
		if errdef.Is(err, errdef.NotFound) {
			return fmt.Errorf("the delta builds on an image that is not here: load or pull that first (%w)", err)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", diff, err)
		}
		chain = next
	}
	return nil
}

// closeDeltas gives up what deltas brought, for good if the image is there.
func (l *loading) closeDeltas(done bool) error {
	l.applier.Close()
	var errs []error
	for _, d := range l.deltas {
		errs = append(errs, d.close())
	}
	if l.loose != nil && done {
		errs = append(errs, l.loose.Done())
	} else if l.loose != nil {
		errs = append(errs, l.loose.Close())
	}
	return errors.Join(errs...)
}
