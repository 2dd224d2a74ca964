package store

import (
	"fmt"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// Mount describes the read-only view of a stack of layers; set Upper and Work
// for a container. The stack must be leased or belong to an image for as long
// as the mount is in use.
func (s *Store) Mount(top oci.ChainID) (overlay.Mount, error) {
	var m overlay.Mount
	err := s.view(func(t tables) error {
		for id := top; id != ""; {
			r, err := t.layer(id)
			if err != nil {
				return err
			}
			m.Lower = append(m.Lower, s.layerPath(id, "diff"))
			if !r.Links {
				m.Data = []string{s.path("files")}
			}
			id = r.Parent
		}
		return nil
	})
	if err != nil {
		return overlay.Mount{}, fmt.Errorf("mount: %w", err)
	}
	if m.Data != nil && s.links {
		return overlay.Mount{}, errdef.Unavailable.Errorf("layer %s was stored by a newer kernel, and this one cannot read it: pull the image again or start Linux 6.5 or newer", top)
	}
	// Without an upper directory the kernel wants two.
	m.Lower = append(m.Lower, s.empty()[:max(0, 2-len(m.Lower))]...)
	return m, nil
}
