package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
	"github.com/minke-os/minke/supervisor/state"
)

func serviceKey(app model.AppID, service string) string { return plan.ServiceKey(app, service) }

// SetLocalTarget checks a target posted to this device, stores it, and starts
// applying it.
func (s *Supervisor) SetLocalTarget(ctx context.Context, body []byte) error {
	if !s.Open() {
		return errdef.Invalid.Errorf("Target state can only set when device is in local mode")
	}
	if err := s.adopt(body); err != nil {
		return errdef.Invalid.Errorf("Invalid target state.\n%w", err)
	}
	if err := s.store.SetTarget(state.SourceLocal, body); err != nil {
		return err
	}
	if err := s.forgetStops(); err != nil {
		return err
	}
	s.poke()
	return nil
}

// forgetStops drops what a person once said about services that are no more.
func (s *Supervisor) forgetStops() error {
	want, _ := s.wanted()
	gone := want.Stopped
	for _, app := range want.Apps {
		for _, svc := range app.Services {
			delete(gone, serviceKey(app.ID, svc.Service))
		}
	}
	return s.store.SetStopped(false, slices.Collect(maps.Keys(gone))...)
}

// adopt makes a target the one that is applied, or changes nothing.
func (s *Supervisor) adopt(body []byte) error {
	target, err := model.ParseLocal(body)
	if err != nil {
		return err
	}
	want, err := s.compose(target)
	if err != nil {
		return err
	}
	var top struct {
		Force any `json:"force"`
	}
	if err := json.Unmarshal(body, &top); err != nil {
		return err
	}
	for _, app := range want.Apps {
		for _, svc := range app.Services {
			for _, w := range svc.Warnings {
				s.log.Warn(w, "app", app.ID)
				s.hub.System(w)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	want.Generation = s.want.Generation + 1
	s.target, s.want = target, want
	s.force = model.Truthy(top.Force)
	s.problem = ""
	s.applying = s.applying || !bytes.Equal(body, s.body)
	s.body = body
	clear(s.failures) // a new target deserves a new try
	for ref, d := range s.fetching {
		if !wantsImage(want, ref) {
			d.cancel()
		}
	}
	return nil
}

// compose turns a target into engine objects, making the API keys its
// services will carry.
func (s *Supervisor) compose(t model.Target) (plan.Want, error) {
	var keys []string
	for _, app := range t.Apps {
		for _, svc := range app.Services {
			if svc.Feature("supervisor-api") {
				keys = append(keys, serviceKey(app.ID, svc.Name))
			}
		}
	}
	if err := s.store.EnsureKeys(keys); err != nil {
		return plan.Want{}, err
	}
	want := plan.Want{}
	dev := s.device(t)
	for _, app := range t.Apps {
		spec, err := model.Compose(app, dev)
		if err != nil {
			return plan.Want{}, fmt.Errorf("apps.%d: %w", app.ID, err)
		}
		want.Apps = append(want.Apps, spec)
	}
	return want, nil
}

func wantsImage(w plan.Want, ref string) bool {
	for _, app := range w.Apps {
		for _, svc := range app.Services {
			if svc.Image == ref {
				return true
			}
		}
	}
	return false
}

// images are the references of everything wanted.
func images(w plan.Want) []string {
	var out []string
	seen := map[string]bool{}
	for _, app := range w.Apps {
		for _, svc := range app.Services {
			if !seen[svc.Image] {
				seen[svc.Image] = true
				out = append(out, svc.Image)
			}
		}
	}
	return out
}

// wanted is the target as the plan reads it.
func (s *Supervisor) wanted() (w plan.Want, force bool) {
	s.mu.Lock()
	w, force = s.want, s.force
	s.mu.Unlock()
	w.Stopped = s.store.Stopped()
	return w, force
}
