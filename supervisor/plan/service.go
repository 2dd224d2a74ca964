package plan

import (
	"fmt"

	"github.com/minke-os/minke/supervisor/model"
)

// service brings one service to what s asks for.
func (p *appPlan) service(s model.Spec, ready bool) {
	c, has := p.newest[s.Service]
	switch {
	case !has:
		p.bringUp(s, ready)
	case p.doomed[c.ID] != "":
		// it goes first
	case p.isCurrent(c, s):
		p.keep(c, s, ready)
	default:
		p.replaceService(c, s, ready)
	}
}

// bringUp makes the container of a service that has none.
func (p *appPlan) bringUp(s model.Spec, ready bool) {
	if why := p.blocked(s, ready); why != "" {
		p.add(Step{Kind: Wait, Service: s.Service, Why: why})
		return
	}
	if !p.running(s) || s.Reboots && !p.f.Asked {
		p.addLocked(Step{Kind: Create, Service: s.Service, Name: s.Name})
		return
	}
	if why := p.waitsFor(s); why != "" {
		p.add(Step{Kind: Wait, Service: s.Service, Why: why})
		return
	}
	p.addLocked(Step{Kind: Start, Service: s.Service, Name: s.Name})
}

// running is that nobody, neither the target nor a person, wants it stopped.
func (p *appPlan) running(s model.Spec) bool {
	return s.Running && !p.stopped[ServiceKey(s.App, s.Service)]
}

// keep handles a container that is what it should be.
func (p *appPlan) keep(c Container, s model.Spec, ready bool) {
	switch {
	case c.Name != s.Name:
		// The same configuration in a new release needs no restart, but the
		// release is not current before all of it is there.
		if ready {
			p.addLocked(Step{Kind: Rename, Service: s.Service, Container: c.ID, Name: s.Name, Why: "same configuration in a new release"})
		}
	case !p.running(s) && c.Runs():
		p.addLocked(Step{Kind: Stop, Service: s.Service, Container: c.ID, Name: c.Name, Why: "it should not run"})
	case p.starts(c, s):
		p.start(c, s, ready)
	}
}

// starts is that the container is there and only has to be started. One that has
// exited is left alone, for its restart policy decided so, unless the target
// kept it from running until now.
func (p *appPlan) starts(c Container, s model.Spec) bool {
	ended := c.State == "exited" && p.f.Rested[ServiceKey(s.App, s.Service)]
	return p.running(s) && (c.State == "created" || ended)
}

func (p *appPlan) start(c Container, s model.Spec, ready bool) {
	if s.Reboots && p.f.New[ServiceKey(s.App, s.Service)] && !c.Started && !p.f.Asked {
		p.add(Step{Kind: Reboot, Service: s.Service, Why: "it starts after a reboot"})
		return
	}
	why := p.blocked(s, ready)
	if why == "" {
		why = p.waitsFor(s)
	}
	if why != "" {
		p.add(Step{Kind: Wait, Service: s.Service, Why: why})
		return
	}
	p.addLocked(Step{Kind: Start, Service: s.Service, Container: c.ID, Name: s.Name})
}

// replaceService replaces a container in the way its service asks for.
func (p *appPlan) replaceService(c Container, s model.Spec, ready bool) {
	why := p.difference(c, s)
	switch {
	case p.goesFirst(s):
		p.doom(c, why)
	case !ready:
		// The images step says what it waits for; the old one runs on.
	case s.Strategy == model.HandOver && !s.Reboots && c.Runs() && p.running(s) && p.objectsReady(s):
		p.stepAside(c, s, why)
	default:
		p.doom(c, why)
	}
}

// stepAside makes room for the successor's name; the successor is then a
// service without a container, and the two run side by side.
func (p *appPlan) stepAside(c Container, s model.Spec, why string) {
	if waits := p.waitsFor(s); waits != "" {
		p.add(Step{Kind: Wait, Service: s.Service, Why: waits})
		return
	}
	if !c.Old() {
		p.addLocked(Step{Kind: StepAside, Service: s.Service, Container: c.ID, Name: model.OldPrefix + c.Name, Why: why})
		return
	}
	p.addLocked(Step{Kind: Start, Service: s.Service, Name: s.Name, Why: why})
}

// blocked says what a container cannot be created without.
func (p *appPlan) blocked(s model.Spec, ready bool) string {
	if !ready {
		return "waiting for all images of the release"
	}
	if !p.objectsReady(s) {
		return "waiting for its networks and volumes"
	}
	if s.NetworkOf != "" {
		if _, ok := p.newest[s.NetworkOf]; !ok {
			return "waiting for the network of " + s.NetworkOf
		}
	}
	return ""
}

func (p *appPlan) objectsReady(s model.Spec) bool {
	for _, name := range s.Networks {
		if !p.networkReady(name) {
			return false
		}
	}
	for _, name := range s.Volumes {
		if !p.volumeReady(name) {
			return false
		}
	}
	return true
}

func (p *appPlan) networkReady(name string) bool {
	for _, w := range p.want.Networks {
		if w.Name != name {
			continue
		}
		for _, n := range p.cur.Networks {
			if n.Name == name && (n.Print == "" || n.Print == w.Print) {
				return true
			}
		}
	}
	return false
}

func (p *appPlan) volumeReady(name string) bool {
	for _, w := range p.want.Volumes {
		if w.Name != name {
			continue
		}
		for _, v := range p.cur.Volumes {
			if v.Name == name && w.Same(v.Driver, v.Options, v.Labels) {
				return true
			}
		}
	}
	return false
}

// waitsFor says which dependency does not hold yet.
func (p *appPlan) waitsFor(s model.Spec) string {
	for _, d := range s.DependsOn {
		if why := p.dependency(d); why != "" {
			return why
		}
	}
	return ""
}

func (p *appPlan) dependency(d model.Dependency) string {
	var spec model.Spec
	for _, s := range p.want.Services {
		if s.Service == d.Service {
			spec = s
		}
	}
	c, ok := p.newest[d.Service]
	switch {
	case !ok || !p.isCurrent(c, spec) || p.doomed[c.ID] != "" || !c.Started || p.starts(c, spec):
		return fmt.Sprintf("waiting for %s to start", d.Service)
	case d.Condition == model.Healthy && c.Health == "" && c.Runs():
		return fmt.Sprintf("waiting for %s to be healthy, but it has no health check", d.Service)
	case d.Condition == model.Healthy && c.Health != "healthy":
		return fmt.Sprintf("waiting for %s to be healthy", d.Service)
	case d.Condition == model.Completed && c.State != "exited":
		return fmt.Sprintf("waiting for %s to complete", d.Service)
	case d.Condition == model.Completed && c.ExitCode != 0:
		return fmt.Sprintf("%s exited with code %d and must exit with 0 first", d.Service, c.ExitCode)
	}
	return ""
}
