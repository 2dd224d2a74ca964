package supervisor

import (
	"context"
	"fmt"
	"slices"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
	"github.com/minke-os/minke/supervisor/state"
)

// artefacts remembers what the engine had when a managed device entered local
// mode, and removes what came since when it leaves: what people made to try
// things is not the fleet's. It runs before anything is done about the target.
func (s *Supervisor) artefacts(ctx context.Context, want plan.Want) error {
	before := s.store.BeforeLocal()
	local := s.localMode()
	switch {
	case !s.managed() || want.Generation == 0 || local == (before != nil):
		return nil
	case local:
		now, err := s.inventory(ctx)
		if err != nil {
			return err
		}
		return s.store.SetBeforeLocal(&now)
	}
	now, err := s.inventory(ctx)
	if err != nil {
		return err
	}
	s.hub.System("Removing what was made in local mode")
	s.removeSince(ctx, *before, now, want)
	return s.store.SetBeforeLocal(nil)
}

// inventory lists all that the engine has, of whomever.
func (s *Supervisor) inventory(ctx context.Context) (state.Inventory, error) {
	var out state.Inventory
	e := s.cfg.Engine
	containers, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return out, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers.Items {
		out.Containers = append(out.Containers, c.ID)
	}
	images, err := e.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return out, fmt.Errorf("list images: %w", err)
	}
	for _, i := range images.Items {
		out.Images = append(out.Images, i.ID)
	}
	volumes, err := e.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return out, fmt.Errorf("list volumes: %w", err)
	}
	for _, v := range volumes.Items {
		out.Volumes = append(out.Volumes, v.Name)
	}
	networks, err := e.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return out, fmt.Errorf("list networks: %w", err)
	}
	for _, n := range networks.Items {
		out.Networks = append(out.Networks, n.Name)
	}
	return out, nil
}

// removeSince removes what is there now and was not before, but what the target
// names. What cannot be removed is told of, and stays.
func (s *Supervisor) removeSince(ctx context.Context, before, now state.Inventory, want plan.Want) {
	e := s.cfg.Engine
	keep := state.Inventory{Networks: []string{model.SupervisorNetwork, "bridge", "host", "none"}}
	for _, ref := range images(want) {
		if img, err := e.ImageInspect(ctx, s.store.EngineName(ref)); err == nil {
			keep.Images = append(keep.Images, img.ID)
		}
	}
	for _, app := range want.Apps {
		for _, v := range app.Volumes {
			keep.Volumes = append(keep.Volumes, v.Name)
		}
		for _, n := range app.Networks {
			keep.Networks = append(keep.Networks, n.Name)
		}
	}
	remove := func(what string, now, before, keep []string, remove func(string) error) {
		for _, name := range now {
			if slices.Contains(before, name) || slices.Contains(keep, name) {
				continue
			}
			if err := remove(name); err != nil && !cerrdefs.IsNotFound(err) {
				s.log.Warn("remove what was made in local mode", what, name, "err", err)
			}
		}
	}
	remove("container", now.Containers, before.Containers, nil, func(id string) error {
		_, err := e.ContainerRemove(ctx, id, client.ContainerRemoveOptions{RemoveVolumes: true, Force: true})
		return err
	})
	remove("network", now.Networks, before.Networks, keep.Networks, func(name string) error {
		_, err := e.NetworkRemove(ctx, name, client.NetworkRemoveOptions{})
		return err
	})
	remove("volume", now.Volumes, before.Volumes, keep.Volumes, func(name string) error {
		_, err := e.VolumeRemove(ctx, name, client.VolumeRemoveOptions{})
		return err
	})
	remove("image", now.Images, before.Images, keep.Images, func(id string) error {
		_, err := e.ImageRemove(ctx, id, client.ImageRemoveOptions{Force: true, PruneChildren: true})
		return err
	})
}
