package engine

import (
	"context"

	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// PushOptions say how to push an image.
type PushOptions struct {
	Credentials registry.Credentials
	Progress    func(registry.Progress) // called from several goroutines
	Pushed      func(registry.Pushed)
}

// ImagePush pushes a tag of a repository, or all its tags if tag is empty and
// the name has none.
func (e *Engine) ImagePush(ctx context.Context, name, tag string, o PushOptions) error {
	ref, all, err := joinReference(name, tag)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return errdef.Invalid.Errorf("cannot push a digest reference")
	}
	o.Progress(registry.Progress{Status: "The push refers to repository [" + ref.Repository() + "]"})
	refs, err := e.pushRefs(ref, all)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		done, err := e.registry.Load().Push(ctx, ref, registry.PushOptions{Credentials: o.Credentials, Progress: o.Progress})
		if err != nil {
			return err
		}
		o.Pushed(done)
		e.publishImage(events.ActionPush, ref.Familiar(), ref.FamiliarRepository())
	}
	return nil
}

// pushRefs finds the tags to push among those of a repository that are here.
func (e *Engine) pushRefs(ref oci.Reference, all bool) ([]oci.Reference, error) {
	images, err := e.images.Images()
	if err != nil {
		return nil, err
	}
	var here []oci.Reference
	for _, img := range images {
		for _, t := range img.Tags {
			switch {
			case t.Repository() != ref.Repository():
			case t == ref && !all:
				return []oci.Reference{t}, nil
			default:
				here = append(here, t)
			}
		}
	}
	if len(here) == 0 {
		return nil, errdef.NotFound.Errorf("An image does not exist locally with the tag: %s", ref.FamiliarRepository())
	}
	if !all {
		return nil, errdef.NotFound.Errorf("tag does not exist: %s", ref.Familiar())
	}
	return here, nil
}

// RegistryLogin tries credentials and returns a token that can stand for the
// password, if the registry gives such.
func (e *Engine) RegistryLogin(ctx context.Context, server string, c registry.Credentials) (identity string, err error) {
	return e.registry.Load().Login(ctx, server, c)
}

// DistributionInspect describes what a registry has under a name.
func (e *Engine) DistributionInspect(ctx context.Context, name string, c registry.Credentials) (registry.Description, error) {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return registry.Description{}, errdef.Invalid.Wrap(err)
	}
	return e.registry.Load().Inspect(ctx, ref, c)
}
