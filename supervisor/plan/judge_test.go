package plan

import (
	"testing"

	"github.com/minke-os/minke/supervisor/model"
)

func TestJudge(t *testing.T) {
	want := Want{Apps: []model.AppSpec{{ID: 1, Services: []model.Spec{{Service: "web", Running: true}, {Service: "off"}}}}, Stopped: map[string]bool{}}
	for _, tc := range []struct {
		name     string
		c        []Container
		ailment  string
		hopeless bool
	}{
		{"running", []Container{{State: "running"}}, "", false},
		{"healthy", []Container{{State: "running", Health: "healthy"}}, "", false},
		{"done", []Container{{State: "exited"}}, "", false},
		{"missing", nil, "web is not there", false},
		{"created", []Container{{State: "created"}}, "web is created", false},
		{"failed", []Container{{State: "exited", ExitCode: 2}}, "web ended with code 2", false},
		{"crashed once", []Container{{State: "running", Restarts: 1}}, "", false},
		{"crashing", []Container{{State: "restarting", Restarts: 3, ExitCode: 1}}, "web keeps ending: 3 times, the last with code 1", true},
		{"not yet", []Container{{State: "running", Health: "starting"}}, "web is not healthy yet", false},
		{"sick", []Container{{State: "running", Health: "unhealthy"}}, "web is unhealthy", false},
		{"the newest counts", []Container{{State: "exited", ExitCode: 2}, {State: "running"}}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range tc.c {
				tc.c[i].App, tc.c[i].Service = 1, "web"
			}
			got := Judge(want, Current{Containers: tc.c}, nil)
			switch {
			case tc.ailment == "" && len(got) == 0:
			case len(got) != 1 || got[0].String() != tc.ailment || got[0].Hopeless != tc.hopeless:
				t.Errorf("Judge = %v, want %q, hopeless %v", got, tc.ailment, tc.hopeless)
			}
		})
	}
	before := Current{Containers: []Container{{App: 1, Service: "web", State: "restarting", Restarts: 9}}}
	for _, a := range Judge(want, before, []Step{{Kind: Kill, App: 1, Service: "web"}}) {
		if a.Hopeless {
			t.Errorf("a container that is to be replaced makes %v hopeless", a)
		}
	}
}
