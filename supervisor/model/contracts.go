package model

import (
	"slices"
	"strings"

	"github.com/minke-os/minke/supervisor/contract"
)

// A Refusal is a release that a device cannot run, and why.
type Refusal struct{ Commit, Why string }

// Meet looks at the contracts of an application's services. It returns the
// application as this device can run it: without the optional services that it
// cannot, each of which leftOut explains. A reason in refused means that the
// release is to be refused as a whole.
func (a App) Meet(offers []contract.Offer) (out App, leftOut []string, refused string) {
	var missing []string
	out = a
	out.Services, out.Absent = nil, nil
	for _, s := range a.Services {
		unmet := s.Contract.Unmet(offers)
		if len(unmet) == 0 {
			out.Services = append(out.Services, s)
			continue
		}
		why := s.Name + " needs " + strings.Join(unmet, " and ")
		if s.Feature("optional") {
			out.Absent = append(out.Absent, s.Name)
			leftOut = append(leftOut, why)
		} else {
			missing = append(missing, why)
		}
	}
	return out, leftOut, strings.Join(missing, "; ")
}

// Meet does so for all applications. Of one whose release is refused the
// target then has what kept gives, an earlier release, or else the application
// frozen.
func (t Target) Meet(offers []contract.Offer, kept func(uuid string) (App, bool)) Target {
	t.Refused, t.LeftOut = nil, nil
	t.Apps = slices.Clone(t.Apps)
	for i, app := range t.Apps {
		met, leftOut, why := app.Meet(offers)
		if why != "" {
			if t.Refused == nil {
				t.Refused = map[string]Refusal{}
			}
			t.Refused[app.UUID] = Refusal{app.Commit, why}
			met, leftOut = frozen(app), nil
			if old, ok := kept(app.UUID); ok && old.ID == app.ID {
				if old, also, why := old.Meet(offers); why == "" {
					met, leftOut = old, also
				}
			}
		}
		t.Apps[i] = met
		t.LeftOut = append(t.LeftOut, leftOut...)
	}
	return t
}

func frozen(a App) App {
	return App{ID: a.ID, UUID: a.UUID, Name: a.Name, IsHost: a.IsHost, Frozen: true}
}
