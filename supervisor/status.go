package supervisor

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/supervisor/api"
	"github.com/minke-os/minke/supervisor/logs"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// Open reports whether the API needs no key: nobody manages this device from
// afar, or it is in local mode.
func (s *Supervisor) Open() bool {
	return !s.managed() || s.localMode()
}

// managed reports whether a fleet server manages this device.
func (s *Supervisor) managed() bool { return s.bootNow().APIEndpoint != "" }

// localMode reports whether targets are posted to this device: always, unless a
// fleet server manages it and does not say so.
func (s *Supervisor) localMode() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boot.APIEndpoint == "" || flag(s.target.Config, "SUPERVISOR_LOCAL_MODE")
}

// Scope is what an API key may act on.
func (s *Supervisor) Scope(key string) (api.Scope, bool) {
	global, app, service, ok := s.store.Scope(key)
	scope := api.Scope{Global: global, App: app}
	if ok && !global {
		t := s.Target()
		a, _ := t.App(app)
		svc, _ := a.Service(service)
		scope.Device = model.Truthy(svc.Labels[model.ControlLabel]) || flag(t.Config, "SUPERVISOR_COMPATIBLE_SCOPES")
	}
	return scope, ok
}

// Healthy is that the loop works and, on a managed device, that the server
// answers.
func (s *Supervisor) Healthy() bool {
	s.mu.Lock()
	offline := s.offline
	s.mu.Unlock()
	return s.link == nil || s.link.Healthy() && !offline
}

// Target is the target state being applied.
func (s *Supervisor) Target() model.Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target
}

// Update looks at the target again, ignoring services' update locks if forced.
// It reports whether it does: where updates are not instant, they must be
// forced. With cancel, downloads that go on are given up first.
func (s *Supervisor) Update(force, cancel bool) bool {
	if !force && !s.settings().Instant {
		return false
	}
	s.mu.Lock()
	s.force = s.force || force
	clear(s.failures)
	if cancel {
		for _, d := range s.fetching {
			d.cancel()
		}
	}
	s.mu.Unlock()
	if s.link != nil {
		s.link.Poll()
	}
	s.poke()
	return true
}

func (s *Supervisor) overrideLock() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return flag(s.target.Config, "SUPERVISOR_OVERRIDE_LOCK")
}

// StreamLogs sends containers' and our own lines.
func (s *Supervisor) StreamLogs(ctx context.Context, o logs.Options, emit func(logs.Message) error) error {
	return s.hub.Stream(ctx, o, emit)
}

// Device is what the API says of the device.
func (s *Supervisor) Device() api.Device {
	s.mu.Lock()
	target := s.target
	s.mu.Unlock()
	d := s.device(target)
	return api.Device{
		Name: d.Name, Type: d.Type, Arch: d.Arch, OSVersion: d.OSVersion,
		Port: s.port(), Version: s.cfg.Version,
		IPs: addresses(), MACs: hardwareAddresses(),
	}
}

// Status is what runs, what is wanted and what is between the two.
func (s *Supervisor) Status(ctx context.Context) (api.Status, error) {
	want, _ := s.wanted()
	cur, err := s.observe(ctx, want)
	if err != nil {
		return api.Status{}, err
	}
	undone := s.undone()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := api.Status{Applying: s.applying, Problem: s.problem, Failed: len(s.failures) > 0 || undone != "", Undone: undone != ""}
	if t := s.trial; t != nil && !t.lost {
		st.Trial = t.limit
		if !t.started.IsZero() {
			st.Trial = max(time.Until(t.started.Add(t.limit)), time.Second)
		}
	}
	if text := refusedText(s.target); text != "" {
		st.Failed = true
		st.Problem = cmp.Or(st.Problem, text)
	}
	st.Problem = cmp.Or(st.Problem, s.hostProblem)
	if undone != "" && st.Problem == "" {
		st.Problem = "rolled back to the release before: " + undone
	}
	for _, c := range cur.Containers {
		st.Containers = append(st.Containers, s.containerLocked(c, cur))
	}
	for _, app := range s.target.Apps {
		for _, svc := range app.Services {
			st.Images = append(st.Images, s.imageLocked(app, svc, cur))
			if !slices.ContainsFunc(cur.Containers, func(c plan.Container) bool { return c.App == app.ID && c.Service == svc.Name }) {
				st.Missing = append(st.Missing, api.Missing{App: app.ID, Service: svc.Name, Status: s.doing[serviceKey(app.ID, svc.Name)]})
			}
		}
	}
	st.Reasons = maps.Clone(s.reasons)
	for _, app := range want.Apps {
		st.Commits = append(st.Commits, api.Commit{App: app.ID, Commit: s.commits[app.ID]})
	}
	return st, nil
}

var words = map[string]string{"running": "Running", "created": "Installed", "dead": "Dead"}

func (s *Supervisor) containerLocked(c plan.Container, cur plan.Current) api.Container {
	out := api.Container{Container: c, Status: c.State}
	if w, ok := words[c.State]; ok {
		out.Status = w
	}
	if w := s.doing[serviceKey(c.App, c.Service)]; w != "" {
		out.Status = w
	}
	handing := slices.ContainsFunc(cur.Containers, func(o plan.Container) bool {
		return o.App == c.App && o.Service == c.Service && o.ID != c.ID && o.Old() != c.Old()
	})
	if handing && c.Old() {
		out.Status = "Handing over"
	} else if handing {
		out.Status = "Awaiting handover"
	}
	out.ReleaseImage, out.Release, out.Commit, _ = model.ParseContainerName(c.Name)
	return out
}

func (s *Supervisor) imageLocked(app model.App, svc model.Service, cur plan.Current) api.Image {
	img := api.Image{Name: svc.Image, App: app.ID, Service: svc.Name, ReleaseImage: svc.ImageID, EngineID: cur.Images[svc.Image]}
	switch d := s.fetching[svc.Image]; {
	case d != nil:
		p := d.progress
		img.Status, img.Progress = "Downloading", &p
	case img.EngineID != "":
		img.Status = "Downloaded"
	default:
		zero := 0
		img.Status, img.Progress, img.Problem = "Downloading", &zero, s.fetchProblemLocked(svc.Image)
	}
	return img
}

// fetchProblemLocked is why an image could not be downloaded.
func (s *Supervisor) fetchProblemLocked(ref string) string {
	for k, f := range s.failures {
		if strings.HasPrefix(k, string(plan.Fetch)+"/") && strings.HasSuffix(k, "/"+ref) {
			return f.err.Error()
		}
	}
	return ""
}

// engineInterfaces are interfaces that containers, not people, reach a device by.
var engineInterfaces = []string{"balena", "docker", "rce", "tun", "resin-vpn", "lo", "resin-dns", "supervisor0", "br-", "veth", "minke"}

func interfaces() []net.Interface {
	all, err := net.Interfaces()
	if err != nil { // a device without interfaces has no addresses
		return nil
	}
	return slices.DeleteFunc(all, func(i net.Interface) bool {
		return i.Flags&net.FlagLoopback != 0 ||
			slices.ContainsFunc(engineInterfaces, func(p string) bool { return strings.HasPrefix(i.Name, p) })
	})
}

func addresses() []string {
	var out []string
	for _, i := range interfaces() {
		addrs, err := i.Addrs()
		if err != nil { // it went away
			continue
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if ok && n.IP.IsGlobalUnicast() {
				out = append(out, n.IP.String())
			}
		}
	}
	return out
}

func hardwareAddresses() []string {
	var out []string
	for _, i := range interfaces() {
		if len(i.HardwareAddr) > 0 {
			out = append(out, strings.ToUpper(i.HardwareAddr.String()))
		}
	}
	return out
}
