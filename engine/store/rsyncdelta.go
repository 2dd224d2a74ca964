package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// balenaEngine's deltas are images. Their labels name the image that they were
// made from and have the configuration of the one that they make; each layer has
// one file, "delta", librsync's for that layer of the target against the tars of
// all layers of the base, one after the other. A layer that both images have at
// the same place is empty.
const (
	rsyncBaseLabel   = "io.resin.delta.base"
	rsyncConfigLabel = "io.resin.delta.config"
	rsyncFile        = "delta"
)

// IsRsyncDelta reports whether an image is one of balenaEngine's deltas.
func IsRsyncDelta(img Image) bool { return img.Config.Config.Labels[rsyncConfigLabel] != "" }

// ApplyRsyncDelta makes the image that such a delta stands for, and gives it
// the delta's names.
func (s *Store) ApplyRsyncDelta(ctx context.Context, d Image) (oci.ImageID, error) {
	id, err := s.applyRsyncDelta(ctx, d)
	if err != nil {
		return "", fmt.Errorf("apply delta %s: %w", d.ID.Short(), err)
	}
	return id, nil
}

func (s *Store) applyRsyncDelta(ctx context.Context, d Image) (oci.ImageID, error) {
	labels := d.Config.Config.Labels
	base, err := s.Image(oci.ImageID(labels[rsyncBaseLabel]))
	if err != nil {
		return "", errdef.NotFound.Errorf("it builds on the image %s, which is not here: pull that first, or the whole image", labels[rsyncBaseLabel])
	}
	raw := []byte(labels[rsyncConfigLabel])
	var target dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &target); err != nil {
		return "", errdef.Invalid.Errorf("label %s: %w", rsyncConfigLabel, err)
	}
	diffs, parts := diffsOf(Image{Config: target}), diffsOf(d)
	if len(diffs) != len(parts) || len(diffs) == 0 {
		return "", errdef.Invalid.Errorf("it has %d layers, the image that it makes %d", len(parts), len(diffs))
	}
	release, err := s.leaseAll(base, d)
	if err != nil {
		return "", err
	}
	defer release()
	tars, err := s.openTars(diffsOf(base))
	if err != nil {
		return "", err
	}
	defer tars.Close()
	var chain oci.ChainID
	for i, diff := range diffs {
		l, err := s.rsyncLayer(ctx, chain, diff, oci.ChainOf(parts[:i+1]), tars)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", diff, err)
		}
		chain = l.ChainID
	}
	id, err := s.PutImage(ctx, raw, "")
	if err != nil {
		return "", err
	}
	for _, ref := range slices.Concat(d.Tags, d.Digests) {
		if err := s.Tag(id, ref); err != nil {
			return "", err
		}
	}
	return id, nil
}

func (s *Store) leaseAll(images ...Image) (release func(), err error) {
	all := []oci.ChainID{""}
	for _, img := range images {
		all = append(all, oci.ChainOf(diffsOf(img)))
	}
	var done []func()
	release = func() {
		for _, f := range done {
			f()
		}
	}
	for _, chain := range all {
		f, err := s.Lease(chain)
		if err != nil {
			release()
			return nil, err
		}
		done = append(done, f)
	}
	return release, nil
}

// rsyncLayer makes one layer of the target.
func (s *Store) rsyncLayer(ctx context.Context, parent oci.ChainID, diff oci.DiffID, part oci.ChainID, tars *tarsAt) (Layer, error) {
	if l, err := s.Layer(oci.Chain(parent, diff)); err == nil {
		return l, nil
	}
	if _, err := s.Find(diff); err == nil {
		return s.Restack(ctx, parent, diff)
	}
	l, err := s.AddPacked(ctx, parent, func(w io.Writer) error {
		r, pw := io.Pipe()
		defer r.Close()
		go func() { pw.CloseWithError(s.LayerTar(ctx, part, pw)) }()
		tr := tar.NewReader(r)
		h, err := tr.Next()
		if err != nil || h.Name != rsyncFile {
			return errdef.Invalid.Errorf("the delta has no file %q for it, and it is not here", rsyncFile)
		}
		return delta.ApplyRsync(w, tr, tars, tars.size)
	})
	if err == nil && l.DiffID != diff {
		err = errdef.Invalid.Errorf("the delta makes %s in its place", l.DiffID)
	}
	return l, err
}

// MakeRsyncDelta makes an image that is such a delta. It has no name.
func (s *Store) MakeRsyncDelta(ctx context.Context, base, target Image, progress func(layer oci.DiffID, status string)) (oci.ImageID, error) {
	id, err := s.makeRsyncDelta(ctx, base, target, progress)
	if err != nil {
		return "", fmt.Errorf("make delta: %w", err)
	}
	return id, nil
}

func (s *Store) makeRsyncDelta(ctx context.Context, base, target Image, progress func(oci.DiffID, string)) (oci.ImageID, error) {
	release, err := s.leaseAll(base, target)
	if err != nil {
		return "", err
	}
	defer release()
	have, want := diffsOf(base), diffsOf(target)
	tars, err := s.openTars(have)
	if err != nil {
		return "", err
	}
	defer tars.Close()
	var parts []string
	var chain oci.ChainID
	for i, diff := range want {
		pack := func(w io.Writer) error { return tar.NewWriter(w).Close() }
		if i < len(have) && oci.ChainOf(have[:i+1]) == oci.ChainOf(want[:i+1]) {
			progress(diff, "Skipping common layer")
		} else {
			progress(diff, "Computing delta")
			pack = func(w io.Writer) error { return s.packRsync(ctx, w, oci.ChainOf(want[:i+1]), tars) }
		}
		l, err := s.AddPacked(ctx, chain, pack)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", diff, err)
		}
		progress(diff, "Delta complete")
		chain = l.ChainID
		parts = append(parts, string(l.DiffID))
	}
	raw, err := json.Marshal(map[string]any{
		"created": time.Now().UTC(), "os": target.Config.OS, "architecture": target.Config.Architecture,
		"config": map[string]any{"Labels": map[string]string{rsyncBaseLabel: string(base.ID), rsyncConfigLabel: string(target.Raw)}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": parts},
	})
	if err != nil {
		return "", err
	}
	return s.PutImage(ctx, raw, "")
}

func (s *Store) packRsync(ctx context.Context, w io.Writer, layer oci.ChainID, tars *tarsAt) error {
	f, err := s.TempFile()
	if err != nil {
		return err
	}
	defer f.Close()
	r, pw := io.Pipe()
	go func() { pw.CloseWithError(s.LayerTar(ctx, layer, pw)) }()
	err = delta.MakeRsync(f, r, tars, tars.size)
	r.CloseWithError(errors.Join(err, context.Canceled))
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: rsyncFile, Mode: 0o600, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(tw, io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	return tw.Close()
}

// tarsAt reads the tars of some layers, one after the other, anywhere. It has
// their headers in memory.
type tarsAt struct {
	s      *Store
	pieces []tarPiece
	size   int64
	last   *os.File // of the piece that was read last
	of     string   // its object
}

type tarPiece struct {
	at     int64 // where it begins
	bytes  []byte
	object string // in place of bytes
	size   int64
}

// openTars needs leases of the layers.
func (s *Store) openTars(diffs []oci.DiffID) (*tarsAt, error) {
	t := &tarsAt{s: s}
	for i := range diffs {
		err := readToc(s.layerPath(oci.ChainOf(diffs[:i+1]), "toc"),
			func(p []byte) error {
				t.add(tarPiece{bytes: bytes.Clone(p), size: int64(len(p))})
				return nil
			},
			func(c content) error {
				if !c.sparse {
					t.add(tarPiece{object: c.object, size: c.size})
				}
				return nil
			})
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *tarsAt) add(p tarPiece) {
	if p.size > 0 {
		p.at = t.size
		t.pieces = append(t.pieces, p)
		t.size += p.size
	}
}

func (t *tarsAt) Close() error {
	if t.last == nil {
		return nil
	}
	return t.last.Close()
}

// ReadAt implements io.ReaderAt, for one caller at a time.
func (t *tarsAt) ReadAt(b []byte, at int64) (n int, err error) {
	i := sort.Search(len(t.pieces), func(i int) bool { return t.pieces[i].at+t.pieces[i].size > at })
	for ; n < len(b) && i < len(t.pieces); i++ {
		p := t.pieces[i]
		from := at + int64(n) - p.at
		want := b[n:min(int64(len(b)), int64(n)+p.size-from)]
		if p.object == "" {
			n += copy(want, p.bytes[from:])
			continue
		}
		k, err := t.object(p.object, want, from)
		if n += k; err != nil {
			return n, err
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (t *tarsAt) object(name string, b []byte, at int64) (int, error) {
	if t.of != name {
		f, err := os.Open(t.s.objectFile(name))
		if err != nil {
			return 0, err
		}
		if t.last != nil {
			t.last.Close()
		}
		t.last, t.of = f, name
	}
	n, err := t.last.ReadAt(b, at)
	if n == len(b) {
		err = nil
	}
	return n, err
}
