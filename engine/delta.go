package engine

import (
	"context"
	"io"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
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

// DeltaPush brings a delta to a registry, beside its target, which must be
// there under the given name.
func (e *Engine) DeltaPush(ctx context.Context, d *store.ImageDelta, name string, o PushOptions) error {
	ref, _, err := joinReference(name, "")
	if err != nil {
		return err
	}
	done, err := e.registry.PushDelta(ctx, ref, d, registry.PushOptions{Credentials: o.Credentials, Progress: o.Progress})
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
