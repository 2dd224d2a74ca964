// Package plan decides what to do next. It is the only place where the
// supervisor decides.
//
//	Want     the applications as engine objects (package model)
//	Current  what the engine has (package observe)
//	Facts    what neither of them knows: downloads and locks under way
//	Step     one action that may run now (package apply)
//
// Next is a pure function: no I/O, no clock, no memory. State is computed from
// what exists, never from how it came to be, so a crash between any two steps
// needs no recovery: the next observation simply gives the next steps. Every
// step is harmless when repeated.
//
// What always holds of the steps:
//   - no container of a release starts before all its images are present,
//     unless its strategy says that the old one goes first
//   - a container is stopped, renamed or started beside old ones only while
//     the application's update lock is ours
//   - a service starts after what it depends on
//   - volumes are removed only when their definition changed
//   - nothing is done to an application that is frozen
package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/supervisor/model"
)

// A Want is what should run.
type Want struct {
	Apps []model.AppSpec
	// Stopped are services that a person stopped, "app/service". They are not
	// started until a person starts them.
	Stopped map[string]bool
	// Generation tells a target from its predecessors; it decides nothing.
	Generation int
}

// ServiceKey is how Want.Stopped names a service.
func ServiceKey(app model.AppID, service string) string { return app.String() + "/" + service }

// Current is what the engine has of what the supervisor manages.
type Current struct {
	Containers []Container // by creation
	Networks   []Network
	Volumes    []Volume
	Images     map[string]string // reference -> the engine's image ID
}

// A Container is one that the supervisor made, or one made by another
// supervisor that we take over.
type Container struct {
	ID        string
	Name      string
	App       model.AppID
	Service   string
	ServiceID int
	ImageID   string // the engine's
	ImageRef  string // as it was created with
	State     string // created, running, paused, restarting, removing, exited, dead
	Health    string // "", starting, healthy, unhealthy
	ExitCode  int
	Restarts  int  // by its restart policy, since it was started
	Started   bool // has ever run
	Error     string
	Print     model.Fingerprint // "" when another supervisor made it
	NetworkOf string            // ID of the container whose network it shares
	Networks  []string
	Volumes   []string
	Restart   string // restart policy
	TTY       bool
	Created   time.Time
	Env       []string
}

// Runs reports whether the container has, or is about to have, a process.
func (c Container) Runs() bool {
	return c.State == "running" || c.State == "restarting" || c.State == "paused"
}

// Old reports whether the container is the outgoing one of a hand-over.
func (c Container) Old() bool { return strings.HasPrefix(c.Name, model.OldPrefix) }

// A Network is one of the engine's.
type Network struct {
	Name  string
	App   model.AppID // 0 when not an application's
	Print model.Fingerprint
	// Right is, for the supervisor's own network, that it has the right
	// bridge and addresses.
	Right bool
}

// A Volume is one of the engine's.
type Volume struct {
	Name    string
	App     model.AppID
	Driver  string
	Options map[string]string
	Labels  map[string]string
}

// Facts are what is known beside the target and the engine.
type Facts struct {
	Fetching   map[string]bool      // image references being downloaded
	Locked     map[model.AppID]bool // update locks that we hold
	HandedOver map[string]bool      // old containers, by ID, that may go now
	// Rested are services, by ServiceKey, that the target before this one kept
	// from running.
	Rested map[string]bool
	// New are services, by ServiceKey, whose container was made since the host
	// booted, of those that a reboot must come before.
	New map[string]bool
	// Asked is that a person waits for this plan: nothing needs a reboot then.
	Asked bool
	// KeepVolumes keeps the volumes of applications that are gone.
	KeepVolumes bool
}

// A Kind is what a step does.
type Kind string

const (
	EnsureAPINetwork Kind = "ensure supervisor network"
	CreateNetwork    Kind = "create network"
	RemoveNetwork    Kind = "remove network"
	CreateVolume     Kind = "create volume"
	RemoveVolume     Kind = "remove volume"
	Fetch            Kind = "fetch"
	TakeLock         Kind = "take lock"
	ReleaseLock      Kind = "release lock"
	Kill             Kind = "kill"   // stop and remove
	Stop             Kind = "stop"   // stop and keep
	Create           Kind = "create" // and do not start
	Start            Kind = "start"  // create if there is no container yet
	Rename           Kind = "rename" // same container, new release
	StepAside        Kind = "step aside"
	Reboot           Kind = "reboot" // the host, once there is nothing else to do
	Wait             Kind = "wait"   // only time or the outside world can help
)

// A Step is one action. Its fields beside Kind are those the kind needs.
type Step struct {
	Kind      Kind
	App       model.AppID
	Service   string
	Object    string // network, volume or image
	Container string // ID
	Name      string // container name
	Why       string // for people
}

func (s Step) String() string {
	var b strings.Builder
	b.WriteString(string(s.Kind))
	for _, part := range []string{s.Service, s.Object} {
		if part != "" {
			b.WriteString(" " + part)
		}
	}
	if s.App != 0 {
		fmt.Fprintf(&b, " of app %d", s.App)
	}
	if s.Why != "" {
		b.WriteString(": " + s.Why)
	}
	return b.String()
}

// Idle is that a step is for later, or for the outside world.
func (s Step) Idle() bool { return s.Kind == Wait || s.Kind == Reboot }

// Next returns the steps that may run now, in a stable order, to bring cur
// closer to want. They may run at the same time. No steps means the device has
// converged; steps that are all Wait or Reboot mean it has not, but only time, a
// reboot or the outside world can help.
func Next(want Want, cur Current, f Facts) []Step {
	if steps := apiNetwork(want, cur, f); len(steps) > 0 {
		return steps
	}
	var steps []Step
	for _, app := range want.Apps {
		p := newAppPlan(app, want.Stopped, cur, f)
		if !app.Frozen {
			p.run()
		}
		steps = append(steps, p.finish()...)
	}
	for _, gone := range goneApps(want, cur, f) {
		p := newAppPlan(gone, nil, cur, f)
		p.remove()
		steps = append(steps, p.finish()...)
	}
	return steps
}

// apiNetwork keeps the network on which services reach the supervisor.
func apiNetwork(want Want, cur Current, f Facts) []Step {
	if len(want.Apps) == 0 {
		return nil
	}
	i := slices.IndexFunc(cur.Networks, func(n Network) bool { return n.Name == model.SupervisorNetwork })
	if i >= 0 && cur.Networks[i].Right {
		return nil
	}
	var steps []Step
	if i >= 0 {
		// A wrong one can be replaced only when nobody uses it.
		for _, c := range cur.Containers {
			if slices.Contains(c.Networks, model.SupervisorNetwork) {
				steps = append(steps, Step{Kind: Kill, App: c.App, Service: c.Service, Container: c.ID, Why: "the supervisor's network must be made again"})
			}
		}
	}
	if len(steps) > 0 {
		return locked(steps, f)
	}
	return []Step{{Kind: EnsureAPINetwork, Object: model.SupervisorNetwork}}
}

// locked replaces the steps of applications whose lock is not ours by taking it.
func locked(steps []Step, f Facts) []Step {
	var out []Step
	asked := map[model.AppID]bool{}
	for _, s := range steps {
		switch {
		case f.Locked[s.App]:
			out = append(out, s)
		case !asked[s.App]:
			asked[s.App] = true
			out = append(out, Step{Kind: TakeLock, App: s.App, Why: s.String()})
		}
	}
	return out
}

// goneApps are the applications of which the engine still has something.
func goneApps(want Want, cur Current, f Facts) []model.AppSpec {
	seen := map[model.AppID]bool{0: true}
	for _, a := range want.Apps {
		seen[a.ID] = true
	}
	var out []model.AppSpec
	add := func(id model.AppID) {
		if !seen[id] {
			seen[id] = true
			out = append(out, model.AppSpec{ID: id})
		}
	}
	for _, c := range cur.Containers {
		add(c.App)
	}
	for _, n := range cur.Networks {
		add(n.App)
	}
	if !f.KeepVolumes {
		for _, v := range cur.Volumes {
			add(v.App)
		}
	}
	for id, held := range f.Locked {
		if held {
			add(id)
		}
	}
	order.By(out, func(a, b model.AppSpec) int { return int(a.ID) - int(b.ID) })
	return out
}
