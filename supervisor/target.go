package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

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
	if err := s.adoptLocal(body); err != nil {
		return errdef.Invalid.Errorf("Invalid target state.\n%w", err)
	}
	if err := s.store.SetRejected("", ""); err != nil { // a person wants it tried again
		return err
	}
	var err error
	if s.managed() {
		err = s.store.SetLocal(body)
	} else {
		err = s.store.SetTarget(state.SourceLocal, body)
	}
	if err == nil {
		err = s.forgetStops()
	}
	s.poke()
	return err
}

// SetTarget takes a target state from the fleet server. An error means that it
// is refused, and what runs goes on.
func (s *Supervisor) SetTarget(body []byte) error {
	hash, _ := s.store.Rejected()
	if hash != "" && hash == hashOf(body) {
		return nil // it was undone; the server does not know yet
	}
	if err := s.adoptCloud(body); err != nil {
		return err
	}
	if hash != "" {
		if err := s.store.SetRejected("", ""); err != nil {
			return err
		}
	}
	if err := s.store.SetTarget(s.bootNow().APIEndpoint, body); err != nil {
		return err
	}
	err := s.forgetStops()
	s.poke()
	return err
}

// adoptStored takes up what was wanted before a restart. A target of another
// server counts for nothing.
func (s *Supervisor) adoptStored() error {
	stored := s.store.Target()
	switch {
	case stored.Body == nil:
		return nil
	case s.undone() != "" && s.store.Good() != nil:
		s.log.Warn("going on with the target before, for the last one did not work")
		return s.adoptAny(s.store.Good())
	case stored.Source == state.SourcePreload:
		return s.adoptCloud(stored.Body)
	case !s.managed():
		return s.adoptLocal(stored.Body)
	case stored.Source == s.boot.APIEndpoint:
		return s.adoptCloud(stored.Body)
	case stored.Source == state.SourceLocal:
		return s.adoptLocal(stored.Body) // until the server has spoken
	}
	return nil
}

// adoptCloud makes a fleet server's target the one that is applied. In local
// mode it decides the device's settings only; the applications are those that
// were posted here.
func (s *Supervisor) adoptCloud(body []byte) error {
	target, err := model.ParseV3(body, s.store.UUID())
	if err != nil {
		return err
	}
	if flag(target.Config, "SUPERVISOR_LOCAL_MODE") {
		target.Apps = nil
		if local := s.store.Local(); local.Body != nil {
			posted, err := model.ParseLocal(local.Body)
			if err != nil {
				return err
			}
			target.Apps = posted.Apps
		}
	} else if err := s.store.SetLocal(nil); err != nil {
		return err
	}
	target, held := s.meetContracts(target)
	if err := s.adopt(target, body, false); err != nil {
		return err
	}
	return s.store.SetHeld(held)
}

// adoptLocal does so with one that was posted. On a managed device the server's
// settings stay.
func (s *Supervisor) adoptLocal(body []byte) error {
	target, err := model.ParseLocal(body)
	if err != nil {
		return err
	}
	// A person who posts a target can be told at once.
	target = target.Meet(s.offers(), func(string) (model.App, bool) { return model.App{}, false })
	if len(target.Refused) > 0 {
		return errdef.Invalid.Errorf("%s", refusedText(target))
	}
	var top struct {
		Force any `json:"force"`
	}
	if err := json.Unmarshal(body, &top); err != nil {
		return err
	}
	s.mu.Lock()
	if s.boot.APIEndpoint != "" && s.target.Config != nil {
		target.Config, target.Name = s.target.Config, s.target.Name
	}
	s.mu.Unlock()
	return s.adopt(target, body, model.Truthy(top.Force))
}

// forgetStops drops what a person once said about services that are no more.
func (s *Supervisor) forgetStops() error {
	want, _ := s.wanted()
	gone := want.Stopped
	for _, app := range want.Apps {
		if app.Frozen {
			prefix := serviceKey(app.ID, "")
			maps.DeleteFunc(gone, func(k string, _ bool) bool { return strings.HasPrefix(k, prefix) })
		}
		for _, svc := range app.Services {
			delete(gone, serviceKey(app.ID, svc.Service))
		}
	}
	return s.store.SetStopped(false, slices.Collect(maps.Keys(gone))...)
}

// adopt makes a target the one that is applied, or changes nothing.
func (s *Supervisor) adopt(target model.Target, body []byte, force bool) error {
	want, err := s.compose(target)
	if err != nil {
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
	s.sayContracts(target)
	s.sayMistakes(target.Config)
	trial, err := s.newTrial(target, body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	want.Generation = s.want.Generation + 1
	s.target, s.want = target, want
	s.force = force
	s.problem = ""
	s.applying = s.applying || !bytes.Equal(body, s.body)
	s.body, s.trial = body, trial
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
