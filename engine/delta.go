package engine

import (
	"context"
	"io"
	"os"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// DeltaOptions say how to make a delta.
type DeltaOptions struct {
	Memory   int64 // about how much may be used, in bytes; 0 chooses
	Progress func(layer oci.DiffID, done, total int64)
}

// DeltaCreate makes what turns one image into another, for DeltaPush and
// DeltaSave. Close it.
func (e *Engine) DeltaCreate(ctx context.Context, base, target string, o DeltaOptions) (*store.ImageDelta, error) {
	from, err := e.image(base)
	if err != nil {
		return nil, err
	}
	to, err := e.image(target)
	if err != nil {
		return nil, err
	}
	return e.images.MakeDelta(ctx, from, to, store.DeltaOptions{Memory: o.Memory, Progress: o.Progress})
}

// DeltaInspect tells what costs the bytes of a delta.
func (e *Engine) DeltaInspect(ctx context.Context, d *store.ImageDelta) (store.DeltaReport, error) {
	var files []*os.File
	for _, l := range d.Layers {
		files = append(files, l.File)
	}
	return e.images.InspectDelta(ctx, d.Base.ID, files)
}

// DeltaInspectFile tells the same of an archive that DeltaSave has made.
func (e *Engine) DeltaInspectFile(ctx context.Context, r io.Reader) (store.DeltaReport, error) {
	base, files, err := archive.DeltaFiles(r, e.images.TempFile)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return store.DeltaReport{}, err
	}
	return e.images.InspectDelta(ctx, base, files)
}

// DeltaInspectAll tells the same of all deltas that a registry has of an image.
func (e *Engine) DeltaInspectAll(ctx context.Context, name string, c registry.Credentials) (all []store.DeltaReport, err error) {
	ref, _, err := joinReference(name, "")
	if err != nil {
		return nil, err
	}
	err = e.registry.Load().Deltas(ctx, ref, c, oci.Host(), func(d registry.FoundDelta) error {
		r, err := e.images.InspectDelta(ctx, d.Base, d.Files)
		all = append(all, r)
		return err
	})
	if err == nil && len(all) == 0 {
		err = errdef.NotFound.Errorf("the registry has no delta of %s", ref.Familiar())
	}
	return all, err
}

// DeltaPush brings a delta to a registry, beside its target, which must be
// there under the given name.
func (e *Engine) DeltaPush(ctx context.Context, d *store.ImageDelta, name string, o PushOptions) error {
	ref, _, err := joinReference(name, "")
	if err != nil {
		return err
	}
	done, err := e.registry.Load().PushDelta(ctx, ref, d, registry.PushOptions{Credentials: o.Credentials, Progress: o.Progress})
	if err != nil {
		return err
	}
	o.Pushed(done)
	return nil
}

// DeltaSave writes a delta as an archive that load takes.
func (e *Engine) DeltaSave(d *store.ImageDelta, w io.Writer) error {
	return archive.SaveDelta(w, d)
}

// ImageDelta makes an image that is a delta of balenaEngine's kind, and gives
// it a name if tag is not "".
func (e *Engine) ImageDelta(ctx context.Context, base, target, tag string, progress func(registry.Progress)) (oci.ImageID, error) {
	from, err := e.image(base)
	if err != nil {
		return "", err
	}
	to, err := e.image(target)
	if err != nil {
		return "", err
	}
	var name oci.Reference
	if tag != "" {
		if name, err = oci.ParseReference(tag); err != nil {
			return "", errdef.Invalid.Wrap(err)
		}
		if name.Digest != "" {
			return "", errdef.Invalid.Errorf("build tag cannot contain a digest")
		}
	}
	id, err := e.images.MakeRsyncDelta(ctx, from, to, func(l oci.DiffID, status string) {
		progress(registry.Progress{ID: oci.Digest(l).Hex()[:12], Status: status})
	})
	if err == nil && tag != "" {
		err = e.images.Tag(id, name)
	}
	return id, err
}

// undelta puts the image that a delta of balenaEngine's kind stands for in the
// delta's place. Other images it leaves alone.
func (e *Engine) undelta(ctx context.Context, id oci.ImageID, progress func(registry.Progress)) (oci.ImageID, error) {
	img, err := e.images.Image(id)
	if err != nil || !store.IsRsyncDelta(img) {
		return id, err
	}
	progress(registry.Progress{ID: id.Short(), Status: "Applying delta"})
	target, err := e.images.ApplyRsyncDelta(ctx, img)
	if err != nil {
		return id, err
	}
	_, err = e.images.Remove(string(id), store.RemoveOptions{Force: true}, e.imageUser)
	return target, err
}
