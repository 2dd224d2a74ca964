package spec

import (
	"runtime"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// MinMemory is the least memory limit Docker accepts, in bytes.
const MinMemory = 6 << 20

// CheckResources refuses limits that make no sense, in Docker's words.
func CheckResources(r container.Resources) error {
	switch {
	case r.Memory != 0 && r.Memory < MinMemory:
		return errdef.Invalid.Errorf("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return errdef.Invalid.Errorf("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return errdef.Invalid.Errorf("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemoryReservation != 0 && r.MemoryReservation < MinMemory:
		return errdef.Invalid.Errorf("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation:
		return errdef.Invalid.Errorf("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs > 0 && (r.CPUPeriod > 0 || r.CPUQuota > 0):
		return errdef.Invalid.Errorf("Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(runtime.NumCPU())*1e9:
		return errdef.Invalid.Errorf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", runtime.NumCPU(), runtime.NumCPU())
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return errdef.Invalid.Errorf("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return errdef.Invalid.Errorf("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return errdef.Invalid.Errorf("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return errdef.Invalid.Errorf("Range of blkio weight is from 10 to 1000")
	case r.OomKillDisable != nil && *r.OomKillDisable && r.Memory == 0:
		// Docker warns; a container without a limit never meets its own OOM.
		return nil
	}
	return nil
}

// Resources are the limits in OCI's words. Device rules are not in it.
func Resources(r container.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{},
		CPU:     &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems},
		BlockIO: blockIO(r),
	}
	if r.Memory > 0 {
		out.Memory.Limit = &r.Memory
		// Docker's default: as much swap again as memory.
		swap := r.MemorySwap
		if swap == 0 {
			swap = 2 * r.Memory
		}
		out.Memory.Swap = &swap
	}
	if r.MemoryReservation > 0 {
		out.Memory.Reservation = &r.MemoryReservation
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		s := uint64(*r.MemorySwappiness)
		out.Memory.Swappiness = &s
	}
	out.Memory.DisableOOMKiller = r.OomKillDisable
	if r.CPUShares > 0 {
		shares := uint64(r.CPUShares)
		out.CPU.Shares = &shares
	}
	period, quota := uint64(r.CPUPeriod), r.CPUQuota
	if r.NanoCPUs > 0 {
		period, quota = 100_000, r.NanoCPUs/10_000
	}
	if period > 0 {
		out.CPU.Period = &period
	}
	if quota != 0 {
		out.CPU.Quota = &quota
	}
	if r.PidsLimit != nil && *r.PidsLimit != 0 {
		out.Pids = &specs.LinuxPids{Limit: r.PidsLimit}
	}
	return out
}

func blockIO(r container.Resources) *specs.LinuxBlockIO {
	out := &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   throttle(r.BlkioDeviceReadBps),
		ThrottleWriteBpsDevice:  throttle(r.BlkioDeviceWriteBps),
		ThrottleReadIOPSDevice:  throttle(r.BlkioDeviceReadIOps),
		ThrottleWriteIOPSDevice: throttle(r.BlkioDeviceWriteIOps),
	}
	if r.BlkioWeight > 0 {
		out.Weight = &r.BlkioWeight
	}
	for _, d := range r.BlkioWeightDevice {
		if major, minor, ok := deviceNumber(d.Path); ok {
			w := specs.LinuxWeightDevice{Weight: &d.Weight}
			w.Major, w.Minor = major, minor
			out.WeightDevice = append(out.WeightDevice, w)
		}
	}
	return out
}

func throttle(in []*blkiodev.ThrottleDevice) (out []specs.LinuxThrottleDevice) {
	for _, d := range in {
		if major, minor, ok := deviceNumber(d.Path); ok {
			t := specs.LinuxThrottleDevice{Rate: d.Rate}
			t.Major, t.Minor = major, minor
			out = append(out, t)
		}
	}
	return out
}

func deviceNumber(path string) (major, minor int64, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0, 0, false
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), true
}
