package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/oci"
)

// An ImageDelta is what makes one image of another, in files that are gone when
// it is closed.
type ImageDelta struct {
	Base, Target Image
	Layers       []LayerDelta // of the target's layers that the base has not got, from the bottom
}

// A LayerDelta makes one layer.
type LayerDelta struct {
	Target, Base oci.DiffID // Base is the layer whose skeleton it needs, or ""
	Digest       oci.Digest
	Size         int64
	File         *os.File
}

// Close drops the files.
func (d *ImageDelta) Close() error {
	var errs []error
	for _, l := range d.Layers {
		errs = append(errs, l.File.Close())
	}
	return errors.Join(errs...)
}

// DeltaOptions say how to make a delta. The zero value works.
type DeltaOptions struct {
	Memory int64 // about how much may be used, in bytes; see delta.Options
	// Progress is told, for a layer, how many bytes of new content are coded.
	Progress func(layer oci.DiffID, done, total int64)
}

// MakeDelta makes the delta between two images of the store. Close it.
func (s *Store) MakeDelta(ctx context.Context, base, target Image, o DeltaOptions) (_ *ImageDelta, err error) {
	d := &ImageDelta{Base: base, Target: target}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make delta: %w", err), d.Close())
		}
	}()
	loose, err := s.Loose()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, loose.Close()) }()
	have := diffsOf(base)
	for _, diffs := range [][]oci.DiffID{have, diffsOf(target)} {
		release, err := s.Lease(oci.ChainOf(diffs))
		if err != nil {
			return nil, err
		}
		defer release()
	}
	var bases []delta.Layer
	for i := range slices.Backward(have) { // the top hides what is below
		bases = append(bases, s.deltaLayer(have[:i+1]))
	}
	seen := map[oci.DiffID]bool{}
	diffs := diffsOf(target)
	for i, diff := range diffs {
		if slices.Contains(have, diff) || seen[diff] {
			continue
		}
		seen[diff] = true
		l, err := s.makeLayerDelta(ctx, s.deltaLayer(diffs[:i+1]), bases, loose, o)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", diff, err)
		}
		d.Layers = append(d.Layers, l)
	}
	return d, nil
}

func diffsOf(img Image) []oci.DiffID {
	out := make([]oci.DiffID, len(img.Config.RootFS.DiffIDs))
	for i, d := range img.Config.RootFS.DiffIDs {
		out[i] = oci.DiffID(d)
	}
	return out
}

func (s *Store) deltaLayer(diffs []oci.DiffID) delta.Layer {
	chain := oci.ChainOf(diffs)
	return delta.Layer{DiffID: diffs[len(diffs)-1], Records: func() delta.Records { return s.Records(chain) }}
}

func (s *Store) makeLayerDelta(ctx context.Context, target delta.Layer, bases []delta.Layer, loose *Loose, o DeltaOptions) (l LayerDelta, err error) {
	scratch, err := s.TempFile()
	if err != nil {
		return l, err
	}
	defer scratch.Close()
	if l.File, err = s.TempFile(); err != nil {
		return l, err
	}
	defer func() {
		if err != nil {
			l.File.Close()
		}
	}()
	options := delta.Options{Memory: o.Memory}
	if o.Progress != nil {
		options.Progress = func(done, total int64) { o.Progress(target.DiffID, done, total) }
	}
	h := sha256.New()
	out := &counter{w: io.MultiWriter(l.File, h)}
	open := func(c delta.Content) (delta.File, error) { return loose.Open(c) }
	from, err := delta.Make(ctx, out, target, bases, open, scratch, options)
	if err != nil {
		return l, err
	}
	l.Target, l.Base = target.DiffID, from
	l.Digest, l.Size = oci.FromHash(h), out.n
	return l, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
