package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
)

// ContainerRename gives a container another name.
func (e *Engine) ContainerRename(_ context.Context, name, newName string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	newName = strings.TrimPrefix(newName, "/")
	if newName == "" {
		return errdef.Invalid.Errorf("Neither old nor new names may be empty")
	}
	c.op.Lock()
	defer c.op.Unlock()
	old := c.snapshot().Name
	if newName == old {
		return errdef.Invalid.Errorf("Renaming a container with the same name as its current name")
	}
	if _, err := e.reserveName(newName, c.ID); err != nil {
		return err
	}
	networks := e.net.Rename(c.ID, newName)
	r := e.change(c, func(r *record) {
		r.Name = newName
		if networks != nil {
			r.Networks = networks
		}
	})
	e.releaseName(old)
	e.publish(events.ActionRename, &r, map[string]string{"oldName": "/" + old})
	return nil
}

// ContainerUpdate changes limits and the restart policy.
func (e *Engine) ContainerUpdate(ctx context.Context, name string, u container.UpdateConfig) (container.UpdateResponse, error) {
	out := container.UpdateResponse{Warnings: []string{}}
	c, err := e.find(name)
	if err != nil {
		return out, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r := c.snapshot()
	host := *r.Host
	updateResources(&host.Resources, u.Resources)
	if err := checkUpdate(&host, u); err != nil {
		return out, err
	}
	if u.RestartPolicy.Name != "" {
		host.RestartPolicy = u.RestartPolicy
	}
	if r.runs() {
		if err := e.rt.Update(ctx, c.ID, resourcesOf(host.Resources)); err != nil {
			return out, fmt.Errorf("Cannot update container %s: %w", r.ID, err)
		}
	}
	r = e.change(c, func(r *record) { r.Host = &host })
	e.publish(events.ActionUpdate, &r, nil)
	return out, nil
}

// updateResources sets the limits that u names; zero means unchanged.
func updateResources(r *container.Resources, u container.Resources) {
	set(&r.CPUShares, u.CPUShares)
	set(&r.Memory, u.Memory)
	set(&r.MemorySwap, u.MemorySwap)
	set(&r.MemoryReservation, u.MemoryReservation)
	set(&r.BlkioWeight, u.BlkioWeight)
	set(&r.CpusetCpus, u.CpusetCpus)
	set(&r.CpusetMems, u.CpusetMems)
	if u.PidsLimit != nil {
		r.PidsLimit = u.PidsLimit
	}
	// The two ways to limit CPU time replace each other.
	if u.NanoCPUs != 0 {
		r.NanoCPUs, r.CPUPeriod, r.CPUQuota = u.NanoCPUs, 0, 0
	}
	if u.CPUPeriod != 0 || u.CPUQuota != 0 {
		r.NanoCPUs = 0
		set(&r.CPUPeriod, u.CPUPeriod)
		set(&r.CPUQuota, u.CPUQuota)
	}
}

func set[T comparable](field *T, value T) {
	var zero T
	if value != zero {
		*field = value
	}
}

func checkUpdate(h *container.HostConfig, u container.UpdateConfig) error {
	if err := checkResources(h.Resources); err != nil {
		return err
	}
	if err := container.ValidateRestartPolicy(u.RestartPolicy); err != nil {
		return errdef.Invalid.Wrap(err)
	}
	if h.AutoRemove && !u.RestartPolicy.IsNone() {
		return errdef.Invalid.Errorf("Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	return nil
}

func resourcesOf(r container.Resources) *specs.LinuxResources { return spec.Resources(r) }
