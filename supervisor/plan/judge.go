package plan

import (
	"fmt"
	"strings"

	"github.com/minke-os/minke/supervisor/model"
)

// An Ailment is why a service is not as it should be.
type Ailment struct {
	App     model.AppID
	Service string
	Why     string
	// Hopeless is set for what time alone will not mend: a program that keeps
	// crashing.
	Hopeless bool
}

func (a Ailment) String() string { return strings.TrimSpace(a.Service + " " + a.Why) }

// crashes are so many ends, one after the other, after which a program counts
// as one that keeps crashing.
const crashes = 3

// Judge says what ails the services that should run, given the steps that are
// left. No steps mean that they are what was asked for; this, whether they work.
// While an application's containers are still to be changed, none is hopeless:
// they may be those of the release before.
func Judge(want Want, cur Current, left []Step) (out []Ailment) {
	changing := map[model.AppID]bool{}
	for _, st := range left {
		changing[st.App] = changing[st.App] || !st.Idle()
		out = append(out, Ailment{st.App, st.Service, "is not done: " + st.String(), false})
	}
	newest := map[string]Container{}
	for _, c := range cur.Containers { // by creation
		if !c.Old() {
			newest[ServiceKey(c.App, c.Service)] = c
		}
	}
	for _, app := range want.Apps {
		for _, spec := range app.Services {
			key := ServiceKey(app.ID, spec.Service)
			if !spec.Running || want.Stopped[key] {
				continue
			}
			c, ok := newest[key]
			if !ok {
				out = append(out, Ailment{app.ID, spec.Service, "is not there", false})
				continue
			}
			if why, hopeless := ails(c); why != "" {
				out = append(out, Ailment{app.ID, spec.Service, why, hopeless && !changing[app.ID]})
			}
		}
	}
	return out
}

func ails(c Container) (why string, hopeless bool) {
	switch {
	case c.Restarts >= crashes:
		return fmt.Sprintf("keeps ending: %d times, the last with code %d", c.Restarts, c.ExitCode), true
	case c.State == "restarting", c.State == "exited" && c.ExitCode != 0:
		return fmt.Sprintf("ended with code %d", c.ExitCode), false
	case c.State == "exited":
		return "", false // it had nothing more to do
	case c.State != "running":
		return "is " + c.State, false
	case c.Health == "unhealthy":
		return "is unhealthy", false
	case c.Health == "starting":
		return "is not healthy yet", false
	}
	return "", false
}
