package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/minke-os/minke/supervisor/model"
)

// An appPlan gathers the steps of one application.
type appPlan struct {
	want    model.AppSpec
	stopped map[string]bool
	cur     Current
	f       Facts

	containers []Container          // all of this application's
	newest     map[string]Container // by service
	doomed     map[string]string    // container ID -> why it must go
	steps      []Step
	wantLock   string // why the lock is needed, "" if it is not
	handing    bool   // an old container waits beside its successor
}

func newAppPlan(app model.AppSpec, stopped map[string]bool, cur Current, f Facts) *appPlan {
	p := &appPlan{want: app, stopped: stopped, cur: cur, f: f, newest: map[string]Container{}, doomed: map[string]string{}}
	for _, c := range cur.Containers {
		if c.App != app.ID {
			continue
		}
		p.containers = append(p.containers, c)
		if old, ok := p.newest[c.Service]; !ok || newer(c, old) {
			p.newest[c.Service] = c
		}
	}
	return p
}

// newer prefers, of two containers of a service, the one that is not on its
// way out, then the younger one.
func newer(a, b Container) bool {
	if ao, bo := a.Old(), b.Old(); ao != bo {
		return bo
	}
	return a.Created.After(b.Created)
}

func (p *appPlan) add(s Step) {
	s.App = p.want.ID
	p.steps = append(p.steps, s)
}

// addLocked adds a step that disturbs what runs.
func (p *appPlan) addLocked(s Step) {
	if !p.f.Locked[p.want.ID] {
		if p.wantLock == "" {
			s.App = 0
			p.wantLock = s.String()
		}
		return
	}
	p.add(s)
}

// finish adds the lock steps: taking it comes with whatever needs no lock,
// it is given back as soon as nothing can be done but wait.
func (p *appPlan) finish() []Step {
	held := p.f.Locked[p.want.ID]
	switch {
	case p.wantLock != "":
		p.add(Step{Kind: TakeLock, Why: p.wantLock})
	case held && !p.handing && !slices.ContainsFunc(p.steps, func(s Step) bool { return !s.Idle() }):
		p.add(Step{Kind: ReleaseLock})
	}
	return p.steps
}

// remove takes an application away that is no longer wanted.
func (p *appPlan) remove() {
	for _, c := range p.containers {
		p.addLocked(Step{Kind: Kill, Service: c.Service, Container: c.ID, Name: c.Name, Why: "the application is no longer wanted"})
	}
	if len(p.containers) > 0 {
		return
	}
	for _, n := range p.cur.Networks {
		if n.App == p.want.ID {
			p.add(Step{Kind: RemoveNetwork, Object: n.Name, Why: "the application is no longer wanted"})
		}
	}
	if p.f.KeepVolumes {
		return
	}
	for _, v := range p.cur.Volumes {
		if v.App == p.want.ID {
			p.add(Step{Kind: RemoveVolume, Object: v.Name, Why: "the application is no longer wanted"})
		}
	}
}

// run brings an application to its release: first images, networks and
// volumes, then services.
func (p *appPlan) run() {
	ready := p.images()
	p.networks()
	p.volumes()
	p.leftovers(ready)
	for _, s := range p.want.Services {
		p.service(s, ready)
	}
	p.kill()
}

// images asks for what is missing, and reports whether all images of the
// release are present.
func (p *appPlan) images() bool {
	ready := true
	asked := map[string]bool{}
	for _, s := range p.want.Services {
		if p.cur.Images[s.Image] != "" || asked[s.Image] {
			continue
		}
		ready, asked[s.Image] = false, true
		switch {
		case p.f.Fetching[s.Image]:
			p.add(Step{Kind: Wait, Service: s.Service, Why: "downloading " + s.Image})
		case p.goesFirst(s):
			// its download begins when the old container is gone
		default:
			p.add(Step{Kind: Fetch, Service: s.Service, Object: s.Image})
		}
	}
	return ready
}

// goesFirst is that the old container must make room before the new image
// comes.
func (p *appPlan) goesFirst(s model.Spec) bool {
	_, has := p.newest[s.Service]
	return has && (s.Strategy == model.KillThenDownload || s.Strategy == model.DeleteThenDownload)
}

func (p *appPlan) networks() {
	wanted := map[string]model.NetworkSpec{}
	for _, n := range p.want.Networks {
		wanted[n.Name] = n
	}
	have := map[string]bool{}
	for _, n := range p.cur.Networks {
		if n.App != p.want.ID {
			continue
		}
		have[n.Name] = true
		w, ok := wanted[n.Name]
		switch {
		case ok && (n.Print == "" || n.Print == w.Print):
		case ok:
			p.replace(n.Name, RemoveNetwork, func(c Container) bool { return slices.Contains(c.Networks, n.Name) },
				"network "+n.Name+" changed")
		case !p.used(func(c Container) bool { return slices.Contains(c.Networks, n.Name) }):
			p.add(Step{Kind: RemoveNetwork, Object: n.Name, Why: "no longer wanted"})
		}
	}
	for _, n := range p.want.Networks {
		if !have[n.Name] {
			p.add(Step{Kind: CreateNetwork, Object: n.Name})
		}
	}
}

func (p *appPlan) volumes() {
	have := map[string]Volume{}
	for _, v := range p.cur.Volumes {
		have[v.Name] = v
	}
	for _, w := range p.want.Volumes {
		v, ok := have[w.Name]
		switch {
		case !ok:
			p.add(Step{Kind: CreateVolume, Object: w.Name})
		case !w.Same(v.Driver, v.Options, v.Labels):
			p.replace(w.Name, RemoveVolume, func(c Container) bool { return slices.Contains(c.Volumes, w.Name) },
				"volume "+w.Name+" changed")
		}
	}
}

// replace removes an object once its users are gone; the next round makes it
// again.
func (p *appPlan) replace(object string, remove Kind, uses func(Container) bool, why string) {
	for _, c := range p.containers {
		if uses(c) {
			p.doom(c, why)
		}
	}
	if !p.used(uses) {
		p.addLocked(Step{Kind: remove, Object: object, Why: why})
	}
}

func (p *appPlan) used(uses func(Container) bool) bool {
	return slices.ContainsFunc(p.containers, uses)
}

func (p *appPlan) doom(c Container, why string) {
	if p.doomed[c.ID] == "" {
		p.doomed[c.ID] = why
	}
}

// leftovers are containers that no wanted service stands for.
func (p *appPlan) leftovers(ready bool) {
	wanted := map[string]model.Spec{}
	for _, s := range p.want.Services {
		wanted[s.Service] = s
	}
	for _, c := range p.containers {
		_, ok := wanted[c.Service]
		switch {
		case c.State == "dead" || c.State == "removing":
			p.doom(c, "it is dead")
		case !ok && ready:
			p.doom(c, "the service is no longer wanted")
		case !ok: // it may serve until the new release is complete
		case p.newest[c.Service].ID == c.ID:
		case !c.Old():
			p.doom(c, "a newer container of the service exists")
		default:
			p.handOver(c, wanted[c.Service])
		}
	}
}

// handOver lets the outgoing container go when its successor says so, is
// healthy, or time is up; the last is a fact from outside.
func (p *appPlan) handOver(old Container, s model.Spec) {
	next := p.newest[s.Service]
	switch {
	case !p.isCurrent(next, s):
		p.doom(old, "its successor was replaced")
	case next.Health == "healthy":
		p.doom(old, "its successor is healthy")
	case p.f.HandedOver[old.ID]:
		p.doom(old, "its successor has taken over")
	default:
		p.handing = true
		p.add(Step{Kind: Wait, Service: s.Service, Container: old.ID, Name: old.Name, Why: "waiting for the new container to take over"})
	}
}

// kill emits the steps for doomed containers, dependents before what they
// depend on.
func (p *appPlan) kill() {
	dying := map[string]bool{}
	for _, c := range p.containers {
		if p.doomed[c.ID] != "" && c.Runs() {
			dying[c.Service] = true
		}
	}
	for _, c := range p.containers {
		why := p.doomed[c.ID]
		if why == "" || p.hasDyingDependent(c.Service, dying) {
			continue
		}
		p.addLocked(Step{Kind: Kill, Service: c.Service, Container: c.ID, Name: c.Name, Why: why})
	}
}

func (p *appPlan) hasDyingDependent(service string, dying map[string]bool) bool {
	for _, s := range p.want.Services {
		if dying[s.Service] && s.Service != service &&
			slices.ContainsFunc(s.DependsOn, func(d model.Dependency) bool { return d.Service == service }) {
			return true
		}
	}
	return false
}

// isCurrent reports whether c is what s asks for, whatever its release.
func (p *appPlan) isCurrent(c Container, s model.Spec) bool { return p.difference(c, s) == "" }

// difference says in words why c is not what s asks for.
func (p *appPlan) difference(c Container, s model.Spec) string {
	image := p.cur.Images[s.Image]
	switch {
	case c.Print == "":
		return "another supervisor made the container"
	case image == "":
		return "the image changes to " + s.Image
	case c.ImageID != image:
		return "the image changed"
	case c.Print != s.Print:
		return strings.Join(c.Print.Changed(s.Print), ", ") + " changed"
	case s.NetworkOf != "" && c.NetworkOf != p.newest[s.NetworkOf].ID:
		return fmt.Sprintf("it shares the network of %s, which was replaced", s.NetworkOf)
	}
	for _, ep := range s.Endpoints {
		// A crash between creating a container and connecting it, or a person.
		if !slices.Contains(c.Networks, ep.Network) {
			return "it is not connected to " + ep.Network
		}
	}
	return ""
}
