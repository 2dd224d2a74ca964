package model

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"github.com/minke-os/minke/internal/order"
)

// LockDir is the host directory that a service sees as /tmp/balena.
func LockDir(root string, app AppID, service string) string {
	return path.Join(root, app.String(), service)
}

func (c *composer) mounts() {
	list, ok := c.c["volumes"].([]any)
	if !ok && c.c["volumes"] != nil {
		c.fail("volumes", "want a list")
	}
	for _, v := range list {
		switch v := v.(type) {
		case string:
			c.shortVolume(v)
		case map[string]any:
			c.longVolume(snakeKeys(v))
		default:
			c.fail("volumes", "cannot read %v", v)
		}
	}
	c.tmpfs()
	dir := LockDir(c.dev.LockRoot, c.app.ID, c.svc.Name)
	c.bindMount(dir + ":/tmp/resin")
	c.bindMount(dir + ":/tmp/balena")
	slices.Sort(c.spec.Host.Binds)
	order.By(c.spec.Host.Mounts, func(a, b mount.Mount) int { return strings.Compare(a.Target, b.Target) })
}

func (c *composer) bindMount(bind string) {
	c.spec.Host.Binds = append(c.spec.Host.Binds, bind)
}

// shortVolume reads "name:/path[:mode]" and "/path".
func (c *composer) shortVolume(s string) {
	source, rest, named := strings.Cut(s, ":")
	if !named {
		c.anonymous(source)
		return
	}
	if isPath(source) {
		c.noBind(s)
		return
	}
	name := VolumeName(c.app.ID, source)
	c.useVolume(name)
	c.bindMount(name + ":" + rest)
}

func isPath(s string) bool {
	return strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") || strings.HasPrefix(s, "~")
}

func (c *composer) noBind(s string) {
	c.warn("ignoring bind mount %s of service %s: use a named volume, or a label such as io.balena.features.sysfs", s, c.svc.Name)
}

func (c *composer) useVolume(name string) {
	if !slices.Contains(c.spec.Volumes, name) {
		c.spec.Volumes = append(c.spec.Volumes, name)
	}
}

func (c *composer) anonymous(target string) {
	if c.spec.Config.Volumes == nil {
		c.spec.Config.Volumes = map[string]struct{}{}
	}
	c.spec.Config.Volumes[target] = struct{}{}
}

func (c *composer) longVolume(m map[string]any) {
	kind, _ := text(m["type"])
	source, _ := text(m["source"])
	target, _ := text(m["target"])
	if target == "" {
		c.fail("volumes", "an entry has no target")
		return
	}
	out := mount.Mount{Target: target, ReadOnly: Truthy(m["read_only"])}
	switch {
	case kind == "tmpfs":
		out.Type = mount.TypeTmpfs
		if t, ok := m["tmpfs"].(map[string]any); ok {
			out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: bytesOf(t["size"], 0)}
		}
	case kind == "bind" || isPath(source):
		c.noBind(source + ":" + target)
		return
	case kind != "volume" && kind != "":
		c.fail("volumes", "unknown type %q; use volume or tmpfs", kind)
		return
	case source == "":
		c.anonymous(target)
		return
	default:
		out.Type, out.Source = mount.TypeVolume, VolumeName(c.app.ID, source)
		c.useVolume(out.Source)
		if v, ok := m["volume"].(map[string]any); ok {
			out.VolumeOptions = &mount.VolumeOptions{NoCopy: Truthy(v["nocopy"])}
		}
	}
	c.spec.Host.Mounts = append(c.spec.Host.Mounts, out)
}

func (c *composer) tmpfs() {
	for _, s := range c.set("tmpfs") {
		target, options, _ := strings.Cut(s, ":")
		if c.spec.Host.Tmpfs == nil {
			c.spec.Host.Tmpfs = map[string]string{}
		}
		c.spec.Host.Tmpfs[target] = options
	}
}

// volumes are the ones an application declares, and the ones its services
// name without declaring them.
func volumes(app App, services []Spec) []VolumeSpec {
	specs := map[string]VolumeSpec{}
	for _, name := range slices.Sorted(maps.Keys(app.Volumes)) {
		v := volume(app, app.Volumes[name])
		v.Name = VolumeName(app.ID, name)
		specs[v.Name] = v
	}
	for _, s := range services {
		for _, name := range s.Volumes {
			if _, ok := specs[name]; !ok {
				v := volume(app, nil)
				v.Name = name
				specs[name] = v
			}
		}
	}
	var out []VolumeSpec
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		out = append(out, specs[name])
	}
	return out
}

func volume(app App, body map[string]any) VolumeSpec {
	v := VolumeSpec{Driver: "local", Labels: map[string]string{}}
	if d, ok := Str(body["driver"]); ok {
		v.Driver = d
	}
	if opts, ok := body["driver_opts"].(map[string]any); ok && len(opts) > 0 {
		v.Options = stringMap(opts)
	}
	if labels, ok := body["labels"].(map[string]any); ok {
		v.Labels = stringMap(labels)
	}
	v.Labels[LabelSupervised] = "true"
	v.Labels[LabelAppUUID] = app.UUID
	return v
}

// Same reports whether the engine's volume is what v asks for. A difference
// costs the data, so only what a person can have meant counts.
func (v VolumeSpec) Same(driver string, options, labels map[string]string) bool {
	return v.Driver == driver && maps.Equal(v.Options, options) && maps.Equal(userLabels(v.Labels), userLabels(labels))
}

func userLabels(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	for _, own := range []string{"supervised", "app-uuid", "app-id"} {
		delete(out, "io.balena."+own)
		delete(out, "io.resin."+own)
	}
	return out
}
