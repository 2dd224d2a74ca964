package engine

import (
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
)

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
	if err := spec.CheckResources(h.Resources); err != nil {
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
