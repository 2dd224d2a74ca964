package supervisor

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/minke-os/minke/supervisor/contract"
	"github.com/minke-os/minke/supervisor/model"
)

// compatible is the version of balena's supervisor whose interfaces these are.
// It is what contracts ask for; our own version says nothing to them.
const compatible = "19.0.5"

// offers is what this device has for contracts.
func (s *Supervisor) offers() []contract.Offer {
	b := s.bootNow()
	name, release := s.host.Kernel()
	return contract.Offers(contract.Facts{
		DeviceType: b.DeviceType, Arch: b.arch, Supervisor: compatible,
		OS: b.os["ID"], OSVersion: b.os["VERSION"], OSVersionID: b.os["VERSION_ID"],
		Kernel: name, KernelRelease: release,
	})
}

// meetContracts takes out of a target what this device cannot run. An
// application whose release is refused stays in the release that it had; those
// are in held, as the server sent them.
func (s *Supervisor) meetContracts(t model.Target) (out model.Target, held map[string]json.RawMessage) {
	before := s.appsBefore()
	held = map[string]json.RawMessage{}
	out = t.Meet(s.offers(), func(uuid string) (model.App, bool) {
		app, ok := s.parseApp(uuid, before[uuid])
		if ok {
			held[uuid] = before[uuid]
		}
		return app, ok
	})
	for _, app := range out.Apps {
		if app.Frozen {
			delete(held, app.UUID)
		}
	}
	return out, held
}

// appsBefore are the applications of the target that is applied until now.
func (s *Supervisor) appsBefore() map[string]json.RawMessage {
	s.mu.Lock()
	body := s.body
	s.mu.Unlock()
	if body == nil {
		body = s.store.Target().Body
	}
	apps := map[string]json.RawMessage{}
	var form map[string]struct{ Apps map[string]json.RawMessage }
	if json.Unmarshal(body, &form) == nil { // else it was posted to this device
		maps.Copy(apps, form[s.store.UUID()].Apps)
	}
	maps.Copy(apps, s.store.Held())
	return apps
}

func (s *Supervisor) parseApp(uuid string, raw json.RawMessage) (model.App, bool) {
	if raw == nil {
		return model.App{}, false
	}
	id := s.store.UUID()
	body, err := json.Marshal(map[string]any{id: map[string]any{"apps": map[string]any{uuid: raw}}})
	if err != nil {
		return model.App{}, false
	}
	t, err := model.ParseV3(body, id)
	if err != nil || len(t.Apps) != 1 || t.Apps[0].Commit == "" {
		return model.App{}, false // from an older program, or nothing ran
	}
	return t.Apps[0], true
}

// refusedText says which releases a device cannot run; "" if it can run all.
func refusedText(t model.Target) string {
	var parts []string
	for _, uuid := range slices.Sorted(maps.Keys(t.Refused)) {
		r, name := t.Refused[uuid], uuid
		for _, app := range t.Apps {
			if app.UUID == uuid && app.Name != "" {
				name = app.Name
			}
		}
		parts = append(parts, fmt.Sprintf("release %s of %s: %s", r.Commit, name, r.Why))
	}
	if len(parts) == 0 {
		return ""
	}
	return "Some releases were rejected due to having unmet requirements: " + strings.Join(parts, ", ")
}

// sayContracts tells people what of a target does not run, once.
func (s *Supervisor) sayContracts(t model.Target) {
	s.mu.Lock()
	before := s.target
	s.mu.Unlock()
	if text := refusedText(t); text != "" && text != refusedText(before) {
		s.log.Warn(text)
		s.hub.System(text)
	}
	if len(t.LeftOut) > 0 && !slices.Equal(t.LeftOut, before.LeftOut) {
		text := "Not running containers because of contract violations: " + strings.Join(t.LeftOut, ", ")
		s.log.Warn(text)
		s.hub.System(text)
	}
}
