package supervisor

import (
	"time"

	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// handOversLocked finds the old containers whose successors have said that
// they took over, or whose time is up.
func (s *Supervisor) handOversLocked(want plan.Want, cur plan.Current) {
	alive := map[string]bool{}
	for _, old := range cur.Containers {
		alive[old.ID] = true
		spec, next, ok := successor(want, cur, old)
		if !ok || s.handed[old.ID] {
			continue
		}
		done, err := s.locks.HandedOver(old.App, old.Service)
		if err != nil {
			s.log.Warn("hand-over", "service", old.Service, "err", err)
		}
		if done || time.Since(next.Created) > spec.HandOver {
			s.handed[old.ID] = true
		}
	}
	for id := range s.handed {
		if !alive[id] {
			delete(s.handed, id)
		}
	}
}

// successor finds the container that takes over from old.
func successor(want plan.Want, cur plan.Current, old plan.Container) (model.Spec, plan.Container, bool) {
	if !old.Old() {
		return model.Spec{}, plan.Container{}, false
	}
	for _, app := range want.Apps {
		for _, spec := range app.Services {
			if app.ID != old.App || spec.Service != old.Service {
				continue
			}
			for _, c := range cur.Containers {
				if c.App == old.App && c.Service == old.Service && !c.Old() {
					return spec, c, true
				}
			}
		}
	}
	return model.Spec{}, plan.Container{}, false
}
