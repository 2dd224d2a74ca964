package engine

import (
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	volumetypes "github.com/moby/moby/api/types/volume"

	"github.com/minke-os/minke/engine/internal/volume"
	"github.com/minke-os/minke/internal/errdef"
)

// VolumeCreate makes a volume, or returns the one of that name.
func (e *Engine) VolumeCreate(req volumetypes.CreateRequest) (volumetypes.Volume, error) {
	v := volume.Volume{Name: req.Name, Driver: req.Driver, Options: req.DriverOpts, Labels: req.Labels}
	if v.Name == "" {
		v.Name = newID()
		v.Labels = merged(v.Labels, map[string]string{volume.AnonymousLabel: ""})
	}
	v, err := e.createVolume(v)
	return e.shownVolume(v), err
}

func (e *Engine) createVolume(v volume.Volume) (volume.Volume, error) {
	_, err := e.volumes.Get(v.Name)
	v, cerr := e.volumes.Create(v)
	if cerr == nil && err != nil {
		e.publishVolume(events.ActionCreate, v.Name, nil)
	}
	return v, cerr
}

func (e *Engine) shownVolume(v volume.Volume) volumetypes.Volume {
	return volumetypes.Volume{
		Name: v.Name, Driver: v.Driver, Labels: v.Labels, Options: v.Options, Scope: "local",
		Mountpoint: e.volumes.Path(v.Name), CreatedAt: v.Created.Format(time.RFC3339), Status: e.volumes.Status(v),
	}
}

// VolumeInspect finds a volume by its full name.
func (e *Engine) VolumeInspect(name string) (volumetypes.Volume, error) {
	v, err := e.volumes.Get(name)
	return e.shownVolume(v), err
}

// VolumeList lists volumes by name.
func (e *Engine) VolumeList(f Filters) (volumetypes.ListResponse, error) {
	out := volumetypes.ListResponse{Volumes: []volumetypes.Volume{}, Warnings: []string{}}
	if err := f.check("dangling", "driver", "label", "name"); err != nil {
		return out, err
	}
	dangling, asked, err := f.is("dangling")
	if err != nil {
		return out, err
	}
	all, err := e.volumes.List()
	if err != nil {
		return out, err
	}
	users := e.volumeUsers()
	for _, v := range all {
		if !f.match("name", v.Name) || !f.any("driver", v.Driver) || !f.Labels("label", v.Labels) || asked && dangling != (len(users[v.Name]) == 0) {
			continue
		}
		out.Volumes = append(out.Volumes, e.shownVolume(v))
	}
	return out, nil
}

// volumeUsers are the containers that mount each volume.
func (e *Engine) volumeUsers() map[string][]record {
	out := map[string][]record{}
	for _, c := range e.all() {
		r := c.snapshot()
		for _, p := range r.Mounts {
			if p.Type == mount.TypeVolume {
				out[p.Name] = append(out[p.Name], r)
			}
		}
	}
	return out
}

// VolumeRemove deletes a volume and its data, unless a container uses it. With
// force a volume that is not there is no error.
func (e *Engine) VolumeRemove(name string, force bool) error {
	if users := e.volumeUsers()[name]; len(users) > 0 {
		var ids, names []string
		for _, r := range users {
			ids, names = append(ids, r.ID), append(names, r.Name)
		}
		slices.Sort(ids)
		slices.Sort(names)
		return errdef.Conflict.Errorf("remove %s: volume is in use - [%s]; remove %s first", name, strings.Join(ids, ", "), strings.Join(names, ", "))
	}
	err := e.volumes.Remove(name)
	if force && errdef.Is(err, errdef.NotFound) {
		return nil
	}
	if err == nil {
		e.publishVolume(events.ActionDestroy, name, nil)
	}
	return err
}

// VolumePrune removes volumes that no container mounts: those without a name,
// and with all=true the others, too.
func (e *Engine) VolumePrune(f Filters) (volumetypes.PruneReport, error) {
	out := volumetypes.PruneReport{VolumesDeleted: []string{}}
	if err := f.check("all", "label", "label!"); err != nil {
		return out, err
	}
	named, _, err := f.is("all")
	if err != nil {
		return out, err
	}
	all, err := e.volumes.List()
	if err != nil {
		return out, err
	}
	users := e.volumeUsers()
	for _, v := range all {
		if len(users[v.Name]) > 0 || !named && !v.Anonymous() || !f.Labels("label", v.Labels) || !f.unlabelled("label!", v.Labels) {
			continue
		}
		size := e.volumes.Size(v.Name)
		if err := e.VolumeRemove(v.Name, true); err != nil {
			return out, err
		}
		out.VolumesDeleted = append(out.VolumesDeleted, v.Name)
		out.SpaceReclaimed += uint64(max(size, 0))
	}
	e.publishPrune(events.VolumeEventType, int64(out.SpaceReclaimed))
	return out, nil
}

// removeAnonymous removes the volumes that only this container knows of.
func (e *Engine) removeAnonymous(r *record) {
	users := e.volumeUsers()
	for _, p := range r.Mounts {
		if p.Type != mount.TypeVolume || len(users[p.Name]) > 1 {
			continue
		}
		v, err := e.volumes.Get(p.Name)
		if err != nil || !v.Anonymous() {
			continue
		}
		if err := e.volumes.Remove(p.Name); err != nil {
			e.log.Error("remove anonymous volume", "volume", p.Name, "err", err)
			continue
		}
		e.publishVolume(events.ActionDestroy, p.Name, nil)
	}
}
