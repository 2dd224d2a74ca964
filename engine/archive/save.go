package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/oci"
)

// Save writes images, given by name or ID, as one archive. An image given by
// ID goes without names.
func Save(ctx context.Context, s *store.Store, w io.Writer, images []string) error {
	release, err := s.Lease("")
	if err != nil {
		return err
	}
	defer release()
	sv := &saving{s: s, blobs: map[oci.Digest]bool{}}
	defer sv.release()
	for _, name := range images {
		if err := sv.add(name); err != nil {
			return fmt.Errorf("save %s: %w", name, err)
		}
	}
	sv.tw = tar.NewWriter(w)
	if err := sv.write(ctx); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return sv.tw.Close()
}

// A saving is what the archive will have.
type saving struct {
	s  *store.Store
	tw *tar.Writer

	images   []*saved
	small    [][]byte // manifests and configurations
	layers   []store.Layer
	releases []func()
	blobs    map[oci.Digest]bool // planned already
}

// A saved is one image.
type saved struct {
	id   oci.ImageID
	desc v1.Descriptor
	refs []oci.Reference

	// its line in manifest.json
	Config   string
	RepoTags []string
	Layers   []string
}

func (sv *saving) release() {
	for _, f := range sv.releases {
		f()
	}
}

func (sv *saving) add(name string) error {
	id, ref, err := sv.s.Resolve(name)
	if err != nil {
		return err
	}
	img, err := sv.image(id)
	if err != nil || ref.Tag == "" || ref.Digest != "" || slices.Contains(img.refs, ref) {
		return err
	}
	img.refs = append(img.refs, ref)
	img.RepoTags = append(img.RepoTags, ref.Familiar())
	return nil
}

// image plans an image's blobs, once.
func (sv *saving) image(id oci.ImageID) (*saved, error) {
	for _, img := range sv.images {
		if img.id == id {
			return img, nil
		}
	}
	img, err := sv.s.Image(id)
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: descriptor(v1.MediaTypeImageConfig, img.Raw)}
	out := &saved{id: id, Config: blob(m.Config), Layers: []string{}}
	if m.Layers, err = sv.stack(img); err != nil {
		return nil, err
	}
	for _, d := range m.Layers {
		out.Layers = append(out.Layers, blob(d))
	}
	raw, err := sv.manifest(id, m)
	if err != nil {
		return nil, err
	}
	for _, b := range [][]byte{raw, img.Raw} {
		if !sv.planned(oci.FromBytes(b)) {
			sv.small = append(sv.small, b)
		}
	}
	out.desc = descriptor(v1.MediaTypeImageManifest, raw)
	out.desc.Platform = &v1.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
	sv.images = append(sv.images, out)
	return out, nil
}

// manifest is the one by which the image came, if it can be used again, else m.
func (sv *saving) manifest(id oci.ImageID, m v1.Manifest) ([]byte, error) {
	kept, err := sv.s.Manifests(id)
	if err != nil {
		return nil, err
	}
	var diffs []oci.DiffID
	for _, l := range m.Layers {
		diffs = append(diffs, oci.DiffID(l.Digest))
	}
	for _, k := range kept {
		var old v1.Manifest
		if json.Unmarshal(k.Raw, &old) == nil && describes(old, id, diffs) {
			return k.Raw, nil
		}
	}
	return json.Marshal(m)
}

// stack plans an image's layers and keeps them until the archive is written.
func (sv *saving) stack(img store.Image) ([]v1.Descriptor, error) {
	descs := []v1.Descriptor{}
	var chain oci.ChainID
	for _, d := range img.Config.RootFS.DiffIDs {
		chain = oci.Chain(chain, oci.DiffID(d))
		release, err := sv.s.Lease(chain)
		if err != nil {
			return nil, err
		}
		sv.releases = append(sv.releases, release)
		l, err := sv.s.Layer(chain)
		if err != nil {
			return nil, err
		}
		descs = append(descs, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: l.TarSize})
		if !sv.planned(oci.Digest(d)) {
			sv.layers = append(sv.layers, l)
		}
	}
	return descs, nil
}

func descriptor(mediaType string, b []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.Digest(oci.FromBytes(b)), Size: int64(len(b))}
}

func (sv *saving) planned(d oci.Digest) bool {
	was := sv.blobs[d]
	sv.blobs[d] = true
	return was
}

// index has a descriptor for each name, and one for an image without.
func (sv *saving) index() v1.Index {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for _, img := range sv.images {
		if len(img.refs) == 0 {
			index.Manifests = append(index.Manifests, img.desc)
		}
		for _, ref := range img.refs {
			d := img.desc
			d.Annotations = map[string]string{"io.containerd.image.name": ref.String(), v1.AnnotationRefName: ref.Tag}
			index.Manifests = append(index.Manifests, d)
		}
	}
	return index
}

// repositories is the oldest form, repository -> tag -> top layer, which some
// programs still read.
func (sv *saving) repositories() map[string]map[string]string {
	repos := map[string]map[string]string{}
	for _, img := range sv.images {
		for _, ref := range img.refs {
			repo := ref.FamiliarRepository()
			if repos[repo] == nil {
				repos[repo] = map[string]string{}
			}
			if n := len(img.Layers); n > 0 {
				repos[repo][ref.Tag] = path.Base(img.Layers[n-1])
			}
		}
	}
	return repos
}

func (sv *saving) write(ctx context.Context) error {
	for _, doc := range []struct {
		name string
		v    any
	}{
		{"oci-layout", v1.ImageLayout{Version: v1.ImageLayoutVersion}},
		{"index.json", sv.index()}, {"manifest.json", sv.images}, {"repositories", sv.repositories()},
	} {
		b, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if err := sv.file(doc.name, b); err != nil {
			return err
		}
	}
	for _, b := range sv.small {
		if err := sv.file("blobs/sha256/"+oci.FromBytes(b).Hex(), b); err != nil {
			return err
		}
	}
	for _, l := range sv.layers {
		if err := sv.header("blobs/sha256/"+oci.Digest(l.DiffID).Hex(), l.TarSize); err != nil {
			return err
		}
		if err := sv.s.LayerTar(ctx, l.ChainID, sv.tw); err != nil {
			return err
		}
	}
	return nil
}

func (sv *saving) file(name string, b []byte) error {
	if err := sv.header(name, int64(len(b))); err != nil {
		return err
	}
	_, err := sv.tw.Write(b)
	return err
}

func (sv *saving) header(name string, size int64) error {
	return sv.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
}
