package engine

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/oci"
)

// storageDriver is the name that clients see; images and containers are kept
// by overlay mounts over a store of files.
const storageDriver = "overlay2"

// ContainerInspect is everything about a container.
func (e *Engine) ContainerInspect(name string, size bool) (container.InspectResponse, error) {
	c, err := e.find(name)
	if err != nil {
		return container.InspectResponse{}, err
	}
	c.mu.Lock()
	r, h, execs := c.record, c.health, slices.Clone(c.execIDs)
	c.mu.Unlock()
	dir := e.containerDir(r.ID)
	out := container.InspectResponse{
		ID: r.ID, Created: r.Created.Format(time.RFC3339Nano), Path: r.Path, Args: r.Args, Name: "/" + r.Name,
		State: &container.State{
			Status: r.status(), Running: r.Running, Paused: r.Paused, Restarting: r.Restarting, OOMKilled: r.OOMKilled, Dead: r.Dead,
			Pid: r.Pid, ExitCode: r.ExitCode, Error: r.Error, StartedAt: stamp(r.StartedAt), FinishedAt: stamp(r.FinishedAt), Health: h.snapshot(),
		},
		Image: string(r.Image), LogPath: e.shownLogPath(&r), RestartCount: r.RestartCount,
		ResolvConfPath: filepath.Join(dir, resolvFile), HostnamePath: filepath.Join(dir, hostnameFile), HostsPath: filepath.Join(dir, hostsFile),
		Driver: storageDriver, Platform: "linux", ExecIDs: e.liveExecs(execs), HostConfig: r.Host, Mounts: slices.Clone(r.Mounts), Config: r.Config,
		GraphDriver:     &storage.DriverData{Name: storageDriver, Data: map[string]string{"UpperDir": filepath.Join(dir, "upper"), "WorkDir": filepath.Join(dir, "work")}},
		NetworkSettings: e.networkSettings(&r),
	}
	if out.Mounts == nil {
		out.Mounts = []container.MountPoint{}
	}
	if r.Args == nil {
		out.Args = []string{}
	}
	if size {
		rw := e.writtenSize(&r)
		root := rw + e.imageSize(&r)
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return out, nil
}

// shownLogPath is the file that log collectors read: Docker shows no other
// driver's.
func (e *Engine) shownLogPath(r *record) string {
	if r.Host.LogConfig.Type != "json-file" {
		return ""
	}
	return e.logPath(r)
}

// stamp is a time as Docker shows it; never is the year 1.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func (e *Engine) networkSettings(r *record) *container.NetworkSettings {
	s := &container.NetworkSettings{Ports: network.PortMap{}, Networks: map[string]*network.EndpointSettings{}}
	if r.runs() {
		s.SandboxID, s.SandboxKey = r.ID, "/proc/"+strconv.Itoa(r.Pid)+"/ns/net"
		for p := range r.Config.ExposedPorts {
			s.Ports[p] = nil
		}
		maps.Copy(s.Ports, r.Ports)
	}
	for name, ep := range r.Networks {
		ep = ep.Copy()
		if !r.runs() { // what it had may be another's by now
			*ep = network.EndpointSettings{
				IPAMConfig: ep.IPAMConfig, Links: ep.Links, Aliases: ep.Aliases, DriverOpts: ep.DriverOpts, GwPriority: ep.GwPriority,
				NetworkID: ep.NetworkID, DNSNames: ep.DNSNames,
			}
		}
		s.Networks[name] = ep
	}
	return s
}

// writtenSize is what a container wrote: the files in its upper directory.
func (e *Engine) writtenSize(r *record) (n int64) {
	filepath.WalkDir(filepath.Join(e.containerDir(r.ID), "upper"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += diskSize(fi)
			}
		}
		return nil // files come and go while we look
	})
	return n
}

func (e *Engine) imageSize(r *record) int64 {
	img, err := e.images.Image(r.Image)
	if err != nil {
		return 0
	}
	return img.Size
}

// ListOptions are those of docker ps.
type ListOptions struct {
	All     bool
	Limit   int
	Size    bool
	Filters Filters
}

// ContainerList lists containers, youngest first.
func (e *Engine) ContainerList(_ context.Context, o ListOptions) ([]container.Summary, error) {
	keep, err := e.listFilter(o)
	if err != nil {
		return nil, err
	}
	type item struct {
		r record
		h *container.Health
	}
	var found []item
	for _, c := range e.all() {
		c.mu.Lock()
		it := item{c.record, nil}
		h := c.health
		c.mu.Unlock()
		it.h = h.snapshot()
		if keep(&it.r, it.h) {
			found = append(found, it)
		}
	}
	order.By(found, func(a, b item) int {
		return cmp.Or(b.r.Created.Compare(a.r.Created), cmp.Compare(a.r.ID, b.r.ID))
	})
	if o.Limit > 0 && len(found) > o.Limit {
		found = found[:o.Limit]
	}
	now := time.Now()
	out := make([]container.Summary, len(found))
	names := e.imageNames()
	for i, it := range found {
		out[i] = e.summary(&it.r, it.h, now, names)
		if o.Size {
			out[i].SizeRw = e.writtenSize(&it.r)
			out[i].SizeRootFs = out[i].SizeRw + e.imageSize(&it.r)
		}
	}
	return out, nil
}

func (e *Engine) summary(r *record, h *container.Health, now time.Time, shownImage func(*record) string) container.Summary {
	s := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: shownImage(r), ImageID: string(r.Image),
		Command: strings.Join(append([]string{r.Path}, r.Args...), " "), Created: r.Created.Unix(),
		Ports: portSummaries(r), Labels: r.Config.Labels, State: r.status(), Status: r.describe(h, now),
		Mounts: slices.Clone(r.Mounts), NetworkSettings: &container.NetworkSettingsSummary{Networks: e.networkSettings(r).Networks},
		Health: &container.HealthSummary{Status: container.NoHealthcheck},
	}
	if h != nil {
		s.Health = &container.HealthSummary{Status: h.Status, FailingStreak: h.FailingStreak}
	}
	s.HostConfig.NetworkMode = string(r.Host.NetworkMode)
	s.HostConfig.Annotations = r.Host.Annotations
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Mounts == nil {
		s.Mounts = []container.MountPoint{}
	}
	return s
}

// imageNames gives the name a container was made from, or the image's ID where
// that name has moved on to another image. Each name is looked up once.
func (e *Engine) imageNames() func(*record) string {
	ids := map[string]oci.ImageID{}
	return func(r *record) string {
		id, known := ids[r.Config.Image]
		if !known {
			id, _, _ = e.images.Resolve(r.Config.Image) // "" is no image's
			ids[r.Config.Image] = id
		}
		if id != r.Image {
			return string(r.Image)
		}
		return r.Config.Image
	}
}

func portSummaries(r *record) []container.PortSummary {
	out := []container.PortSummary{}
	if !r.runs() {
		return out
	}
	for p := range r.Config.ExposedPorts {
		if _, published := r.Ports[p]; !published {
			out = append(out, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
	}
	for p, bindings := range r.Ports {
		for _, b := range bindings {
			public, _ := strconv.ParseUint(b.HostPort, 10, 16)
			ip := b.HostIP
			if !ip.IsValid() {
				ip = netip.IPv4Unspecified()
			}
			out = append(out, container.PortSummary{IP: ip, PrivatePort: p.Num(), PublicPort: uint16(public), Type: string(p.Proto())})
		}
	}
	order.By(out, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.PublicPort, b.PublicPort), cmp.Compare(a.Type, b.Type), a.IP.Compare(b.IP))
	})
	return out
}

// listFilter is the predicate of docker ps's options.
func (e *Engine) listFilter(o ListOptions) (func(*record, *container.Health) bool, error) {
	f := o.Filters
	if err := f.check("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since", "status", "volume"); err != nil {
		return nil, err
	}
	for _, s := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, errdef.Invalid.Errorf("invalid filter 'status=%s'", s)
		}
	}
	for _, s := range f["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return nil, errdef.Invalid.Errorf("invalid filter 'exited=%s'", s)
		}
	}
	for _, s := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(s)); err != nil {
			return nil, errdef.Invalid.Errorf("invalid filter 'health=%s'", s)
		}
	}
	var before, since time.Time
	for _, bound := range []struct {
		key string
		at  *time.Time
	}{{"before", &before}, {"since", &since}} {
		for _, name := range f[bound.key] {
			c, err := e.find(name)
			if err != nil {
				return nil, err
			}
			*bound.at = c.snapshot().Created
		}
	}
	published, err := portFilter(f["publish"])
	if err != nil {
		return nil, err
	}
	exposed, err := portFilter(f["expose"])
	if err != nil {
		return nil, err
	}
	ancestors := map[oci.ImageID]bool{}
	for _, name := range f["ancestor"] {
		if id, _, err := e.images.Resolve(name); err == nil {
			ancestors[id] = true
		}
	}
	all := o.All || o.Limit > 0 || len(f["status"])+len(f["exited"])+len(f["before"])+len(f["since"])+len(f["health"]) > 0
	return func(r *record, h *container.Health) bool {
		healthStatus := container.NoHealthcheck
		if h != nil {
			healthStatus = h.Status
		}
		switch {
		case !all && !r.Running:
			return false
		case !f.any("status", string(r.status())), !f.any("health", string(healthStatus)):
			return false
		case !f.prefix("id", r.ID), !f.match("name", "/"+r.Name) && !f.match("name", r.Name), !f.Labels("label", r.Config.Labels):
			return false
		case len(f["exited"]) > 0 && (r.Running || r.StartedAt.IsZero() || !f.any("exited", strconv.Itoa(r.ExitCode))):
			return false
		case !before.IsZero() && !r.Created.Before(before), !since.IsZero() && !r.Created.After(since):
			return false
		case len(f["ancestor"]) > 0 && !ancestors[r.Image]:
			return false
		case !f.some("network", r.networkNames()), !f.some("volume", r.volumeNames()):
			return false
		case !somePort(published, r.Host.PortBindings), !somePort(exposed, r.Config.ExposedPorts):
			return false
		}
		return true
	}, nil
}

func (r *record) networkNames() (out []string) {
	for name, ep := range r.Networks {
		out = append(out, name, ep.NetworkID)
	}
	return out
}

func (r *record) volumeNames() (out []string) {
	for _, p := range r.Mounts {
		out = append(out, p.Destination)
		if p.Type == mount.TypeVolume {
			out = append(out, p.Name)
		}
	}
	return out
}

// portFilter reads "80", "80/udp" and "80-90/tcp", ports in the container.
func portFilter(values []string) (out []network.PortRange, err error) {
	for _, v := range values {
		p, err := network.ParsePortRange(v)
		if err != nil {
			return nil, errdef.Invalid.Errorf("invalid port filter %q: %w; want for example 80, 80/udp or 8000-8010/tcp", v, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// somePort reports whether one of the ports is asked for, or nothing was asked.
func somePort[V any](asked []network.PortRange, ports map[network.Port]V) bool {
	if len(asked) == 0 {
		return true
	}
	for p := range ports {
		for _, want := range asked {
			if want.Proto() == p.Proto() && want.Start() <= p.Num() && p.Num() <= want.End() {
				return true
			}
		}
	}
	return false
}

// diskSize is the disk that a file takes: for a metadata copy, none.
func diskSize(fi os.FileInfo) int64 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fi.Size()
	}
	return min(fi.Size(), st.Blocks*512)
}
