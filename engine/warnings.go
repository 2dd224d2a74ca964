package engine

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
)

// createWarnings tell of settings that a new container asks for and this host
// cannot give, in Docker's words. The container runs without them.
func (e *Engine) createWarnings(h *container.HostConfig) []string {
	out := []string{}
	warn := func(when bool, text string) {
		if when {
			out = append(out, text)
		}
	}
	r := h.Resources
	warn(r.OomKillDisable != nil && *r.OomKillDisable && r.Memory == 0,
		"OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	warn(r.Memory > 0 && r.MemorySwap != -1 && !swapAccounted(),
		"Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
	warn(r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 && cgroupV2(),
		"Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
	warn(r.BlkioWeight > 0 && !blockWeights(),
		"Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
	warn((len(h.PortBindings) > 0 || h.PublishAllPorts) && h.NetworkMode.IsHost(),
		"Published ports are discarded when using host network mode")
	warn(!forwards() && !h.NetworkMode.IsHost() && !h.NetworkMode.IsNone(),
		"IPv4 forwarding is disabled. Networking will not work.")
	return out
}

// hostWarnings are those of docker info: what no container can have here.
func hostWarnings() []string {
	var out []string
	if !swapAccounted() {
		out = append(out, "WARNING: No swap limit support")
	}
	if !forwards() {
		out = append(out, "WARNING: IPv4 forwarding is disabled")
	}
	return out
}

func forwards() bool { return readLine("/proc/sys/net/ipv4/ip_forward") == "1" }

func swapAccounted() bool {
	if cgroupV2() {
		_, err := os.Stat("/proc/swaps") // there if the kernel can swap at all
		return err == nil
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return err == nil
}

func blockWeights() bool {
	if cgroupV2() {
		return true
	}
	for _, file := range []string{"blkio.weight", "blkio.bfq.weight"} {
		if _, err := os.Stat("/sys/fs/cgroup/blkio/" + file); err == nil {
			return true
		}
	}
	return false
}

// checkHost refuses settings that would be ignored in silence, to the harm of
// the application.
func checkHost(h *container.HostConfig) error {
	if slices.Contains(strings.Split(h.CgroupParent, "/"), "..") {
		return errdef.Invalid.Errorf("invalid cgroup parent %q: it leads out of the hierarchy", h.CgroupParent)
	}
	if len(h.StorageOpt) > 0 {
		return errdef.Invalid.Errorf("--storage-opt is not supported: a container's disk space is not limited; put what grows on a volume")
	}
	if h.UsernsMode != "" && !h.UsernsMode.IsHost() {
		return errdef.Invalid.Errorf("invalid user namespace mode %q: want host or nothing", h.UsernsMode)
	}
	for _, entry := range h.ExtraHosts {
		if name, addr, ok := strings.Cut(strings.Replace(entry, "=", ":", 1), ":"); !ok || name == "" || addr == "" {
			return errdef.Invalid.Errorf("bad format for add-host: %q", entry)
		}
	}
	r := h.Resources
	switch {
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return errdef.Invalid.Errorf("invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return errdef.Invalid.Errorf("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case h.Isolation != "" && !h.Isolation.IsDefault():
		return errdef.Invalid.Errorf("Invalid isolation: %q - linux only supports 'default'", h.Isolation)
	case r.IOMaximumBandwidth != 0:
		return errdef.Invalid.Errorf("Invalid QoS settings: linux does not support Maximum IO Bandwidth")
	case r.IOMaximumIOps != 0:
		return errdef.Invalid.Errorf("Invalid QoS settings: linux does not support Maximum IO IOPs")
	case r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0:
		return errdef.Invalid.Errorf("real-time scheduling of control groups is not supported: give the program a priority itself (chrt, with --cap-add sys_nice)")
	}
	return checkCPUs(h.CpusetCpus)
}

// checkResources refuses limits that cannot be, and a null where JSON allows
// one and nothing else does.
func checkResources(r container.Resources) error {
	missing := slices.Contains(r.Ulimits, nil) || slices.Contains(r.BlkioWeightDevice, nil)
	for _, list := range [][]*blkiodev.ThrottleDevice{r.BlkioDeviceReadBps, r.BlkioDeviceWriteBps, r.BlkioDeviceReadIOps, r.BlkioDeviceWriteIOps} {
		missing = missing || slices.Contains(list, nil)
	}
	if missing {
		return errdef.Invalid.Errorf("invalid JSON: null in a list of ulimits or of block device limits")
	}
	for _, u := range r.Ulimits {
		if u.Hard != -1 && u.Soft > u.Hard {
			return errdef.Invalid.Errorf("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
		if _, err := u.GetRlimit(); err != nil {
			return errdef.Invalid.Wrap(err)
		}
	}
	return spec.CheckResources(r)
}

// checkConfig refuses what could never run as it is meant, in Docker's words.
func checkConfig(c *container.Config) error {
	for _, kv := range c.Env {
		if kv == "" || kv[0] == '=' {
			return errdef.Invalid.Errorf("invalid environment variable: %s", kv)
		}
	}
	if _, err := signalOf(c.StopSignal, "", 0); err != nil {
		return err
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return errdef.Invalid.Errorf("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	return checkHealth(c.Healthcheck)
}

func checkHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name string
		time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.Duration != 0 && d.Duration < time.Millisecond {
			return errdef.Invalid.Errorf("%s in Healthcheck cannot be less than 1ms", d.name)
		}
	}
	if h.Retries < 0 {
		return errdef.Invalid.Errorf("Retries in Healthcheck cannot be negative")
	}
	return nil
}

// checkCPUs refuses processors that this host has not.
func checkCPUs(asked string) error {
	const onlineFile = "/sys/devices/system/cpu/online"
	list, err := parseCPUs(asked)
	if err != nil {
		return errdef.Invalid.Errorf("Invalid value %s for cpuset cpus", asked)
	}
	online, err := parseCPUs(readLine(onlineFile))
	if err != nil || len(online) == 0 {
		return nil // the kernel will tell
	}
	for _, cpu := range list {
		if !slices.Contains(online, cpu) {
			return errdef.Invalid.Errorf("Requested CPUs are not available - requested %s, available: %s", asked, readLine(onlineFile))
		}
	}
	return nil
}

const maxCPUs = 8192 // of any kernel

// parseCPUs reads the kernel's lists: "0-3,7".
func parseCPUs(list string) (out []int, err error) {
	if list == "" {
		return nil, nil
	}
	for _, part := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if first > last || last >= maxCPUs {
			return nil, fmt.Errorf("%s is no range of processors", part)
		}
		for cpu := first; cpu <= last; cpu++ {
			out = append(out, int(cpu))
		}
	}
	return out, nil
}
