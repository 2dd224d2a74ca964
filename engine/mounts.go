package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/minke-os/minke/engine/internal/volume"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
)

// resolveMounts turns binds, mounts, image volumes and volumes-from into mount
// points, creating volumes that do not exist; made are those without a name.
func (e *Engine) resolveMounts(r *record) (points []container.MountPoint, made []string, err error) {
	defer func() {
		if err != nil {
			for _, v := range made {
				e.volumes.Remove(v)
			}
			made = nil
		}
	}()
	byTarget := map[string]int{}
	add := func(p container.MountPoint) {
		p.Destination = filepath.Clean(p.Destination)
		if i, ok := byTarget[p.Destination]; ok {
			points[i] = p
			return
		}
		byTarget[p.Destination] = len(points)
		points = append(points, p)
	}
	for _, from := range r.Host.VolumesFrom {
		inherited, err := e.volumesFrom(from)
		if errdef.Is(err, errdef.NotFound) { // which the docker CLI would take for the image
			err = errdef.Invalid.Errorf("%w", err)
		}
		if err != nil {
			return nil, made, err
		}
		for _, p := range inherited {
			add(p)
		}
	}
	seen := map[string]bool{}
	unique := func(target string) error {
		target = filepath.Clean(target)
		if seen[target] {
			return errdef.Invalid.Errorf("Duplicate mount point: %s", target)
		}
		seen[target] = true
		return nil
	}
	for _, b := range r.Host.Binds {
		p, err := e.parseBind(b, r.Host.VolumeDriver)
		if err == nil {
			err = unique(p.Destination)
		}
		if err != nil {
			return nil, made, err
		}
		add(p)
	}
	for _, m := range r.Host.Mounts {
		p, anonymous, err := e.mountPoint(r.ID, m)
		if err == nil {
			err = unique(p.Destination)
		}
		if anonymous {
			made = append(made, p.Name)
		}
		if err != nil {
			return nil, made, err
		}
		add(p)
	}
	for target := range r.Host.Tmpfs {
		if !filepath.IsAbs(target) {
			return nil, made, errdef.Invalid.Errorf("invalid mount path: '%s' mount path must be absolute", target)
		}
		if err := unique(target); err != nil {
			return nil, made, err
		}
	}
	for _, target := range sortedKeys(r.Config.Volumes) {
		if _, ok := byTarget[filepath.Clean(target)]; ok || seen[filepath.Clean(target)] {
			continue
		}
		if !filepath.IsAbs(target) {
			return nil, made, errdef.Invalid.Errorf("invalid volume specification: '%s': the path in the container must be absolute", target)
		}
		p, err := e.anonymousPoint(r.ID, volume.Volume{}, target)
		if err != nil {
			return nil, made, err
		}
		made = append(made, p.Name)
		add(p)
	}
	return points, made, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// anonymousPoint makes a volume without a name for a container that is being
// made. A note in the container's directory comes first, so that the volume of
// a container that never came to be is found (see removeStray).
func (e *Engine) anonymousPoint(owner string, v volume.Volume, target string) (container.MountPoint, error) {
	v.Name = newID()
	v.Labels = merged(v.Labels, map[string]string{volume.AnonymousLabel: ""})
	note := filepath.Join(e.containerDir(owner), madeVolumes, v.Name)
	if err := os.MkdirAll(note, 0o700); err != nil {
		return container.MountPoint{}, err
	}
	return e.volumePointOf(v, target)
}

// madeVolumes holds, in a container's directory, an empty directory for each
// volume that was made for it.
const madeVolumes = "volumes"

// volumePoint makes sure that the volume exists.
func (e *Engine) volumePoint(name, target string, labels map[string]string) (container.MountPoint, error) {
	return e.volumePointOf(volume.Volume{Name: name, Labels: labels}, target)
}

func (e *Engine) volumePointOf(v volume.Volume, target string) (container.MountPoint, error) {
	v, err := e.createVolume(v)
	if err != nil {
		return container.MountPoint{}, err
	}
	return container.MountPoint{
		Type: mount.TypeVolume, Name: v.Name, Source: e.volumes.Path(v.Name), Destination: target, Driver: v.Driver, Mode: "z", RW: true,
	}, nil
}

// parseBind reads "source:target[:mode]".
func (e *Engine) parseBind(text, driver string) (container.MountPoint, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return container.MountPoint{}, errdef.Invalid.Errorf("invalid volume specification: '%s'", text)
	}
	source, target := parts[0], parts[1]
	if !filepath.IsAbs(target) {
		return container.MountPoint{}, errdef.Invalid.Errorf("invalid volume specification: '%s': invalid mount config: invalid mount path: '%s' mount path must be absolute", text, target)
	}
	if filepath.Clean(target) == "/" {
		return container.MountPoint{}, errdef.Invalid.Errorf("invalid volume specification: '%s': invalid mount config: invalid specification: destination can't be '/'", text)
	}
	mode := ""
	if len(parts) == 3 {
		mode = parts[2]
	}
	p := container.MountPoint{Type: mount.TypeBind, Source: filepath.Clean(source), Destination: target, RW: true, Propagation: mount.PropagationRPrivate}
	if !filepath.IsAbs(source) {
		var err error
		if p, err = e.volumePointOf(volume.Volume{Name: source, Driver: driver}, target); err != nil {
			return container.MountPoint{}, err
		}
	}
	if mode != "" {
		p.Mode = mode
	}
	if err := oncePerKind(text, mode); err != nil {
		return container.MountPoint{}, err
	}
	for _, word := range strings.FieldsFunc(mode, func(r rune) bool { return r == ',' }) {
		switch {
		case word == "ro":
			p.RW = false
		case word == "rw", word == "z", word == "Z", word == "nocopy", word == "consistent", word == "cached", word == "delegated":
		case slices.Contains(mount.Propagations, mount.Propagation(word)) && p.Type == mount.TypeBind:
			p.Propagation = mount.Propagation(word)
		default:
			return container.MountPoint{}, errdef.Invalid.Errorf("invalid volume specification: '%s': invalid mode: %s", text, mode)
		}
	}
	return p, nil
}

// oncePerKind refuses a mode that says two things about one matter.
func oncePerKind(text, mode string) error {
	words := strings.Split(mode, ",")
	for _, kind := range [][]string{{"ro", "rw"}, {"z", "Z"}, {"nocopy"}, {"private", "rprivate", "shared", "rshared", "slave", "rslave"}} {
		n := 0
		for _, w := range words {
			if slices.Contains(kind, w) {
				n++
			}
		}
		if n > 1 {
			return errdef.Invalid.Errorf("invalid volume specification: '%s': invalid mode: %s", text, mode)
		}
	}
	return nil
}

// mountPoint settles one entry of HostConfig.Mounts.
func (e *Engine) mountPoint(owner string, m mount.Mount) (p container.MountPoint, anonymous bool, err error) {
	bad := func(format string, args ...any) (container.MountPoint, bool, error) {
		return p, false, errdef.Invalid.Errorf("invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	if !filepath.IsAbs(m.Target) {
		return bad("invalid mount path: '%s' mount path must be absolute", m.Target)
	}
	if filepath.Clean(m.Target) == "/" {
		return bad("invalid specification: destination can't be '/'")
	}
	for _, o := range []struct {
		set  bool
		of   mount.Type
		name string
	}{
		{m.BindOptions != nil, mount.TypeBind, "BindOptions"}, {m.VolumeOptions != nil, mount.TypeVolume, "VolumeOptions"},
		{m.TmpfsOptions != nil, mount.TypeTmpfs, "TmpfsOptions"}, {m.ImageOptions != nil, mount.TypeImage, "ImageOptions"},
	} {
		if o.set && o.of != m.Type {
			return bad("field %s must not be specified", o.name)
		}
	}
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if !filepath.IsAbs(m.Source) {
			return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		p = container.MountPoint{Type: mount.TypeBind, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly, Propagation: mount.PropagationRPrivate}
		if m.BindOptions != nil && m.BindOptions.Propagation != "" {
			p.Propagation = m.BindOptions.Propagation
		}
		if o := m.BindOptions; o != nil {
			if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
				return bad("invalid propagation mode: %s", o.Propagation)
			}
			if o.ReadOnlyForceRecursive && (!m.ReadOnly || o.NonRecursive || o.ReadOnlyNonRecursive || p.Propagation != mount.PropagationRPrivate) {
				return bad("a mount that must be read-only recursively is read-only, recursive and of propagation rprivate")
			}
			if o.ReadOnlyNonRecursive && !m.ReadOnly {
				return bad("ReadOnlyNonRecursive is set, but the mount is not read-only")
			}
		}
		if _, err := os.Stat(m.Source); err != nil && (m.BindOptions == nil || !m.BindOptions.CreateMountpoint) {
			return bad("bind source path does not exist: %s", m.Source)
		}
	case mount.TypeVolume:
		v := volume.Volume{Name: m.Source}
		if o := m.VolumeOptions; o != nil {
			v.Labels = o.Labels
			if o.DriverConfig != nil {
				v.Driver, v.Options = o.DriverConfig.Name, o.DriverConfig.Options
			}
		}
		if anonymous = m.Source == ""; anonymous {
			p, err = e.anonymousPoint(owner, v, m.Target)
		} else {
			p, err = e.volumePointOf(v, m.Target)
		}
		if err != nil {
			return p, false, err
		}
		p.RW = !m.ReadOnly
	case mount.TypeTmpfs:
		if m.Source != "" {
			return bad("field Source must not be specified")
		}
		if m.TmpfsOptions != nil {
			for _, o := range m.TmpfsOptions.Options {
				if len(o) < 1 || len(o) > 2 || o[0] == "" {
					return bad("invalid option of the tmpfs: %q", o)
				}
			}
		}
		p = container.MountPoint{Type: mount.TypeTmpfs, Destination: m.Target, RW: !m.ReadOnly}
	case mount.TypeImage:
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if m.ImageOptions != nil && m.ImageOptions.Subpath != "" {
			return bad("a directory of an image cannot be mounted alone; mount the image, which costs nothing, and use the path below it")
		}
		p = container.MountPoint{Type: mount.TypeImage, Name: m.Source, Destination: m.Target}
	case mount.TypeNamedPipe, mount.TypeCluster:
		return bad("there are none on a Linux device outside of a swarm")
	default:
		return p, false, errdef.Invalid.Errorf("invalid mount config: mount type %q is unknown or not supported on this platform", m.Type)
	}
	return p, anonymous, nil
}

func (e *Engine) volumesFrom(text string) ([]container.MountPoint, error) {
	name, mode, _ := strings.Cut(text, ":")
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	points := slices.Clone(c.snapshot().Mounts)
	if mode == "ro" {
		for i := range points {
			points[i].RW = false
		}
	}
	return points, nil
}

// askedMount is the entry of HostConfig.Mounts that a mount point came from,
// nil if it came from elsewhere.
func askedMount(r *record, p container.MountPoint) *mount.Mount {
	i := slices.IndexFunc(r.Host.Mounts, func(m mount.Mount) bool { return filepath.Clean(m.Target) == p.Destination })
	if i < 0 {
		return nil
	}
	return &r.Host.Mounts[i]
}

// noCopy reports whether the user forbade copying the image's content.
func noCopy(r *record, p container.MountPoint) bool {
	if slices.Contains(strings.Split(p.Mode, ","), "nocopy") {
		return true
	}
	m := askedMount(r, p)
	return m != nil && m.VolumeOptions != nil && (m.VolumeOptions.NoCopy || m.VolumeOptions.Subpath != "")
}

// populateVolumes offers the image's content to volumes that are new.
func (e *Engine) populateVolumes(r *record) error {
	var view *os.File
	defer func() {
		if view != nil {
			view.Close()
		}
	}()
	for _, p := range r.Mounts {
		if p.Type != mount.TypeVolume || noCopy(r, p) || r.Layer == "" {
			continue
		}
		err := e.volumes.CopyUp(p.Name, func(dir string) (err error) {
			if view == nil {
				if view, err = e.imageView(r); err != nil {
					return err
				}
			}
			return copyTree(overlay.Path(view), p.Destination, dir)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// imageView is the image's root, read-only.
func (e *Engine) imageView(r *record) (*os.File, error) {
	m, err := e.images.Mount(r.Layer)
	if err != nil {
		return nil, err
	}
	return m.Open()
}

// rootfs describes the container's root: the image below, its own changes on top.
func (e *Engine) rootfs(r *record) (overlay.Mount, error) {
	m, err := e.images.Mount(r.Layer)
	if err != nil {
		return m, err
	}
	dir := e.containerDir(r.ID)
	m.Upper, m.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	return m, nil
}
