package supervisor

import (
	"context"
	"fmt"
	"strings"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/minke-os/minke/supervisor/apply"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/plan"
)

func roundOf(want plan.Want, force bool) apply.Round { return apply.Round{Want: want, Force: force} }

func cut(key string) (before, after string, found bool) { return strings.Cut(key, "/") }

// removeVolumes looks at all containers, not just supervised ones: somebody
// else's data is not ours to remove while it is in use.
func (s *Supervisor) removeVolumes(ctx context.Context) error {
	used := map[string]bool{}
	want, _ := s.wanted()
	for _, app := range want.Apps {
		for _, v := range app.Volumes {
			used[v.Name] = true
		}
	}
	list, err := s.cfg.Engine.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range list.Items {
		for _, m := range c.Mounts {
			used[m.Name] = true
		}
	}
	volumes, err := s.cfg.Engine.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	for _, v := range volumes.Items {
		if used[v.Name] {
			continue
		}
		_, err := s.cfg.Engine.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{})
		if err != nil && !cerrdefs.IsNotFound(err) && !cerrdefs.IsConflict(err) {
			return fmt.Errorf("remove volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// removeImages removes what we once pulled and nobody wants any more. The
// engine refuses one that a container uses; then it goes another time. Images
// that others brought stay, and in local mode all do: a person who tries things
// wants them again. While a release is on trial, those of the one before may be
// needed.
func (s *Supervisor) removeImages(ctx context.Context, want plan.Want) {
	if s.localMode() || s.onTrial() {
		return
	}
	for _, ref := range s.store.Images() {
		if wantsImage(want, ref) {
			continue
		}
		_, err := s.cfg.Engine.ImageRemove(ctx, s.store.EngineName(ref), client.ImageRemoveOptions{PruneChildren: true})
		switch {
		case cerrdefs.IsConflict(err):
			s.log.Debug("an image that is not wanted is in use", "image", ref)
			continue
		case err != nil && !cerrdefs.IsNotFound(err):
			s.log.Warn("remove image", "image", ref, "err", err)
			continue
		}
		s.hub.System(fmt.Sprintf("Deleted image '%s'", ref))
		if err := s.store.SetImage(ref, ""); err != nil {
			s.log.Warn("remove image", "image", ref, "err", err)
		}
	}
}
