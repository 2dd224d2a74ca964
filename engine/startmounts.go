package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/volume"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
)

// startMounts are the record's mounts in the runtime's words. It takes up the
// volumes they need, for the container to give back with releaseVolumes; on an
// error it has done so itself. Missing sources of plain binds are created, as
// Docker does.
func (e *Engine) startMounts(ctx context.Context, r *record) (out []specs.Mount, err error) {
	defer func() {
		if err != nil {
			e.releaseVolumes(r)
		}
	}()
	for _, p := range r.Mounts {
		var more []specs.Mount
		switch p.Type {
		case mount.TypeTmpfs:
			more = []specs.Mount{tmpfsMount(r, p)}
		case mount.TypeVolume:
			more, err = e.volumeMounts(ctx, r, p)
		case mount.TypeImage:
			more, err = e.imageMount(r, p)
		default:
			err = ensureBindSource(p.Source)
			more = []specs.Mount{bindMount(r, p)}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	for _, target := range sortedKeys(r.Host.Tmpfs) {
		m := specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "nosuid", "nodev"}}
		for _, o := range strings.FieldsFunc(r.Host.Tmpfs[target], func(r rune) bool { return r == ',' }) {
			m.Options = withOption(m.Options, o)
		}
		out = append(out, m)
	}
	return out, nil
}

// withOption adds an option; exec, suid and dev undo the defaults.
func withOption(options []string, o string) []string {
	switch o {
	case "exec", "suid", "dev":
		return slices.DeleteFunc(options, func(d string) bool { return d == "no"+o })
	}
	return append(options, o)
}

func bindMount(r *record, p container.MountPoint) specs.Mount {
	m := specs.Mount{Destination: p.Destination, Type: "bind", Source: p.Source}
	var o mount.BindOptions
	if asked := askedMount(r, p); asked != nil && asked.BindOptions != nil {
		o = *asked.BindOptions
	}
	how, access := "rbind", "rw"
	if o.NonRecursive {
		how = "bind"
	}
	switch {
	case p.RW:
	case o.ReadOnlyNonRecursive || o.NonRecursive:
		access = "ro"
	default:
		access = "rro" // what is mounted below is read-only, too, as in Docker since 25
	}
	m.Options = []string{how, string(p.Propagation), access}
	return m
}

// volumeMounts take a volume up. One that may come late lies upon an empty
// directory that cannot be written to, where it appears and disappears.
func (e *Engine) volumeMounts(ctx context.Context, r *record, p container.MountPoint) (out []specs.Mount, err error) {
	present, err := e.volumes.Use(ctx, p.Name, r.ID)
	if err != nil {
		return nil, err
	}
	if late, _ := e.volumes.Late(p.Name); late {
		out = append(out, specs.Mount{Destination: p.Destination, Type: "tmpfs", Source: "absent", Options: []string{"ro", "nosuid", "nodev", "noexec", "size=4k", "mode=555"}})
	}
	if !present {
		return out, nil
	}
	source, err := subpath(r, p)
	if err != nil {
		return nil, err
	}
	access := "rw"
	if !p.RW {
		access = "ro"
	}
	options := []string{"rbind", "rprivate", access}
	if !e.volumes.IsBind(p.Name) {
		options = append(options, e.mapOption(r, source)...)
	}
	return append(out, specs.Mount{Destination: p.Destination, Type: "bind", Source: source, Options: options}), nil
}

// subpath is the directory of a volume that a mount asked for.
func subpath(r *record, p container.MountPoint) (string, error) {
	sub := volumeSubpath(r, p)
	if sub == "" {
		return p.Source, nil
	}
	f, err := pathrs.OpenInRoot(p.Source, sub)
	if err != nil {
		return "", errdef.Invalid.Errorf("volume %s has no %s: %w", p.Name, sub, err)
	}
	defer f.Close()
	return os.Readlink(overlay.Path(f))
}

func volumeSubpath(r *record, p container.MountPoint) string {
	if m := askedMount(r, p); m != nil && m.VolumeOptions != nil {
		return m.VolumeOptions.Subpath
	}
	return ""
}

// releaseVolumes gives up what startMounts took.
func (e *Engine) releaseVolumes(r *record) {
	for _, p := range r.Mounts {
		if p.Type == mount.TypeVolume {
			e.volumes.Release(p.Name, r.ID)
		}
	}
}

// imageMount is another image, read-only.
func (e *Engine) imageMount(r *record, p container.MountPoint) ([]specs.Mount, error) {
	m, err := e.images.Mount(r.ImageMounts[p.Destination])
	if err != nil {
		return nil, fmt.Errorf("mount image %s: %w", p.Name, err)
	}
	return []specs.Mount{{Destination: p.Destination, Type: "overlay", Source: "image", Options: append(m.Options(), "ro")}}, nil
}

func ensureBindSource(source string) error {
	_, err := os.Stat(source)
	if err == nil {
		return nil
	}
	if !os.IsNotExist(err) {
		return errdef.Invalid.Errorf("bind source path %s: %w", source, err)
	}
	if err := os.MkdirAll(source, 0o755); err != nil {
		return errdef.Invalid.Errorf("error while creating mount source path '%s': %w", source, err)
	}
	return nil
}

func tmpfsMount(r *record, p container.MountPoint) specs.Mount {
	m := specs.Mount{Destination: p.Destination, Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "nosuid", "nodev", "rprivate"}}
	if !p.RW {
		m.Options = append(m.Options, "ro")
	}
	asked := askedMount(r, p)
	if asked == nil || asked.TmpfsOptions == nil {
		return m
	}
	o := asked.TmpfsOptions
	if o.SizeBytes > 0 {
		m.Options = append(m.Options, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		m.Options = append(m.Options, fmt.Sprintf("mode=%o", o.Mode&0o7777))
	}
	for _, words := range o.Options {
		m.Options = withOption(m.Options, strings.Join(words, "="))
	}
	return m
}

// volumeChanged shows a share or a stick to the running containers that have
// it, or takes it away from them. The event is Docker's of a container that
// mounts a volume, without a container.
func (e *Engine) volumeChanged(name string, present bool) {
	action := events.ActionUnmount
	if present {
		action = events.ActionMount
	}
	e.publishVolume(action, name, nil)
	for _, c := range e.all() {
		if r := c.snapshot(); r.runs() {
			e.settleVolumes(&r, name)
		}
	}
}

// settleVolumes makes a running container see its late volumes as they are; of
// one name, or all of them.
func (e *Engine) settleVolumes(r *record, name string) {
	for _, p := range r.Mounts {
		if p.Type != mount.TypeVolume || name != "" && p.Name != name {
			continue
		}
		late, present := e.volumes.Late(p.Name)
		if !late {
			continue
		}
		place := volume.Place{Pid: r.Pid, Target: p.Destination, Subpath: volumeSubpath(r, p), ReadOnly: !p.RW}
		show := e.volumes.Hide
		if present {
			show = func(at volume.Place) error { return e.volumes.Show(p.Name, at) }
		}
		if err := show(place); err != nil && !gone(r.Pid) {
			e.log.Error("volume came or went, but a container does not see it", "volume", p.Name, "container", r.Name, "err", err)
		}
	}
}

func gone(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return err != nil
}
