package store

import (
	"context"
	"os"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/oci"
)

// A DeltaReport tells what costs the bytes of an image's delta.
type DeltaReport struct {
	Base   oci.ImageID // that it was made from
	Layers []LayerReport
}

// A LayerReport is about one layer's.
type LayerReport struct {
	delta.Report
	Target oci.DiffID
	Size   int64
	Bases  map[oci.Digest]string // paths of what patches build on, as far as known
}

// costlyFiles is how many files of a layer are reported on.
const costlyFiles = 100

// InspectDelta reports on the deltas of an image's layers. base, which they were
// made from, may be "" or another store's: some files then have no names.
func (s *Store) InspectDelta(ctx context.Context, base oci.ImageID, files []*os.File) (DeltaReport, error) {
	out := DeltaReport{Base: base}
	release, err := s.Lease("")
	if err != nil {
		return out, err
	}
	defer release()
	for _, f := range files {
		l, err := s.inspectLayerDelta(ctx, base, f)
		if err != nil {
			return out, err
		}
		out.Layers = append(out.Layers, l)
	}
	return out, nil
}

func (s *Store) inspectLayerDelta(ctx context.Context, base oci.ImageID, f *os.File) (LayerReport, error) {
	scratch, err := s.TempFile()
	if err != nil {
		return LayerReport{}, err
	}
	defer scratch.Close()
	d, r, err := delta.Inspect(ctx, f, scratch, func(id oci.DiffID) delta.Records {
		l, err := s.Find(id)
		if err != nil {
			return nil
		}
		return s.Records(l.ChainID)
	}, costlyFiles)
	if err != nil {
		return LayerReport{}, err
	}
	l := LayerReport{Report: *r, Target: d.Target, Size: d.Size(), Bases: map[oci.Digest]string{}}
	for _, f := range r.Files {
		if f.Base.Digest != "" {
			l.Bases[f.Base.Digest] = ""
		}
	}
	img, err := s.Image(base)
	if err != nil {
		return l, nil // not here
	}
	diffs := diffsOf(img)
	for i := range diffs {
		if err := delta.Names(s.Records(oci.ChainOf(diffs[:i+1])), l.Bases); err != nil {
			return l, err
		}
	}
	return l, nil
}
