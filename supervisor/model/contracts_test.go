package model

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/minke-os/minke/supervisor/contract"
)

var onPi = []contract.Offer{{Type: contract.DeviceType, Slug: "raspberrypi4-64"}, {Type: contract.Supervisor, Version: "19.0.5"}}

const (
	forPi     = `{"type":"sw.container","requires":[{"type":"hw.device-type","slug":"raspberrypi4-64"}]}`
	forJetson = `{"type":"sw.container","requires":[{"type":"hw.device-type","slug":"jetson-nano"}]}`
	optional  = `"io.balena.features.optional":"1"`
)

// asking is an application of two services, of which web waits for extra.
func asking(t *testing.T, commit, web, extra, labels string) Target {
	t.Helper()
	target, err := ParseV3(fmt.Appendf(nil, `{"dev":{"apps":{"u1":{"id":5,"name":"app","releases":{%q:{"services":{
		"web":{"image":"web:1","contract":%s,"composition":{"depends_on":["extra"]}},
		"extra":{"image":"extra:1","contract":%s,"labels":{%s}}}}}}}}}`, commit, web, extra, labels), "dev")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestMeet(t *testing.T) {
	good := asking(t, "good", forPi, `{}`, "").Apps[0]
	bad := asking(t, "worse", forJetson, `{}`, "").Apps[0]
	const why = "web needs hw.device-type jetson-nano (this device has raspberrypi4-64)"
	tests := []struct {
		name              string
		web, extra, label string
		kept              *App
		services          string // that run, "frozen" for a frozen application
		commit            string
		refused           string
		leftOut           string
	}{
		{"all-is-met", forPi, `null`, "", nil, "extra web", "c1", "", ""},
		{"optional-and-met", forPi, forPi, optional, nil, "extra web", "c1", "", ""},
		{"optional-and-unmet", forPi, forJetson, optional, nil, "web", "c1", "", strings.ReplaceAll(why, "web", "extra")},
		{"needed-and-unmet", forJetson, `{}`, "", nil, "frozen", "", why, ""},
		{"needed-and-unmet-beside-optional", forJetson, forJetson, optional, nil, "frozen", "", why, ""},
		{"the-release-before-goes-on", forJetson, `{}`, "", &good, "extra web", "good", why, ""},
		{"one-before-that-cannot-run-either", forJetson, `{}`, "", &bad, "frozen", "", why, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target := asking(t, "c1", tt.web, tt.extra, tt.label)
			got := target.Meet(onPi, func(string) (App, bool) {
				if tt.kept == nil {
					return App{}, false
				}
				return *tt.kept, true
			})
			var names []string
			for _, s := range got.Apps[0].Services {
				names = append(names, s.Name)
			}
			services := strings.Join(names, " ")
			if got.Apps[0].Frozen {
				services = "frozen" + services
			}
			if services != tt.services || got.Apps[0].Commit != tt.commit || strings.Join(got.LeftOut, ";") != tt.leftOut {
				t.Errorf("Meet: %q of release %q run and %q are left out, want %q, %q, %q", services, got.Apps[0].Commit, got.LeftOut, tt.services, tt.commit, tt.leftOut)
			}
			if r := got.Refused["u1"]; r.Why != tt.refused || r.Why != "" && r.Commit != "c1" {
				t.Errorf("Meet refuses %+v, want %q of c1", r, tt.refused)
			}
			if again := got.Meet(onPi, func(string) (App, bool) { return App{}, false }); !reflect.DeepEqual(again.Apps[0].Services, got.Apps[0].Services) {
				t.Errorf("what can run becomes %+v when looked at again, want what it was", again.Apps[0])
			}
			spec, err := Compose(got.Apps[0], bench())
			if err != nil || spec.Frozen != got.Apps[0].Frozen {
				t.Errorf("Compose = %+v, %v", spec, err)
			}
			if tt.leftOut != "" && len(spec.Services[0].DependsOn) != 0 {
				t.Errorf("web waits for %v, which does not run here", spec.Services[0].DependsOn)
			}
		})
	}
}

func TestAContractOfAnUnknownKindIsRefusedWithItsPath(t *testing.T) {
	_, err := ParseV3([]byte(`{"dev":{"apps":{"u1":{"id":5,"releases":{"c1":{"services":{"web":{"image":"web:1","contract":{"requires":[{"type":"hw.wings"}]}}}}}}}}}`), "dev")
	if err == nil || !strings.HasPrefix(err.Error(), "dev.apps.u1.releases.c1.services.web.contract.requires.0.type: want one of") {
		t.Errorf("ParseV3 = %v, want the path of the requirement", err)
	}
}

func TestTheNetworkOfAServiceThatIsLeftOutCannotBeShared(t *testing.T) {
	target := asking(t, "c1", `{}`, forJetson, optional).Meet(onPi, nil)
	target.Apps[0].Services[0].Composition = map[string]any{"network_mode": "service:extra"}
	if _, err := Compose(target.Apps[0], bench()); err == nil || !strings.Contains(err.Error(), "service web: network_mode: the service extra") {
		t.Errorf("Compose = %v, want the reason", err)
	}
}
