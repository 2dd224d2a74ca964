package engine

import (
	"strconv"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"github.com/minke-os/minke/engine/internal/volume"
)

// publish tells listeners what happened to a container, with the attributes
// Docker gives: its labels, its image's name, its name.
func (e *Engine) publish(a events.Action, r *record, more map[string]string) {
	attributes := merged(r.Config.Labels, map[string]string{"image": r.Config.Image, "name": r.Name})
	for k, v := range more {
		attributes[k] = v
	}
	e.events.Publish(events.ContainerEventType, a, r.ID, attributes)
}

func (e *Engine) publishImage(a events.Action, id, name string) {
	e.events.Publish(events.ImageEventType, a, id, map[string]string{"name": name})
}

func (e *Engine) publishVolume(a events.Action, name string, more map[string]string) {
	driver := volume.Local
	if v, err := e.volumes.Get(name); err == nil {
		driver = v.Driver
	}
	e.events.Publish(events.VolumeEventType, a, name, merged(map[string]string{"driver": driver}, more))
}

func (e *Engine) publishNetwork(a events.Action, id, name, driver string, more map[string]string) {
	e.events.Publish(events.NetworkEventType, a, id, merged(map[string]string{"name": name, "type": driver}, more))
}

// publishMounts tells of the volumes that a container begins or ceases to use.
func (e *Engine) publishMounts(a events.Action, r *record) {
	for _, p := range r.Mounts {
		if p.Type != mount.TypeVolume {
			continue
		}
		more := map[string]string{"container": r.ID}
		if a == events.ActionMount {
			more["destination"], more["read/write"], more["propagation"] = p.Destination, strconv.FormatBool(p.RW), string(p.Propagation)
		}
		e.publishVolume(a, p.Name, more)
	}
}

// publishPrune tells how many bytes a prune has freed.
func (e *Engine) publishPrune(t events.Type, reclaimed int64) {
	e.events.Publish(t, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatInt(reclaimed, 10)})
}

// Events returns the events still kept and a channel of those that follow; it
// is closed when the listener falls too far behind. Call stop when done.
func (e *Engine) Events() (past []events.Message, next <-chan events.Message, stop func()) {
	return e.events.Listen()
}
