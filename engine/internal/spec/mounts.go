package spec

import (
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What Docker hides from unprivileged containers, or shows them read-only.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// DefaultShmSize is the size of /dev/shm in bytes.
const DefaultShmSize = 64 << 20

// mounts are the system's own mounts, then the container's, each after the
// mounts that contain it. What the container mounts over a system mount
// replaces it.
func mounts(in Input) []specs.Mount {
	ro := "ro"
	if in.Host.Privileged {
		ro = "rw"
	}
	shm := in.Host.ShmSize
	if shm == 0 {
		shm = DefaultShmSize
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{ro, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
	}
	if in.Host.IpcMode.IsNone() {
		all = slices.DeleteFunc(all, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
	}
	if in.Shm != "" {
		all = replaceMount(all, bind(in.Shm, "/dev/shm"))
	}
	if in.Host.IpcMode.IsHost() {
		all = replaceMount(all, bind("/dev/shm", "/dev/shm"))
		if len(in.IDs.UIDs) > 0 { // its queues are another user namespace's, which alone may mount them
			all = hostQueues(all)
		}
	}
	if in.Host.PidMode.IsHost() && in.Host.Privileged {
		all = replaceMount(all, bind("/proc", "/proc"))
	}
	own := slices.Clone(in.Mounts)
	sort.SliceStable(own, func(i, j int) bool { return depth(own[i].Destination) < depth(own[j].Destination) })
	for _, m := range own {
		all = slices.DeleteFunc(all, func(o specs.Mount) bool {
			return o.Destination == m.Destination || m.Destination == "/dev" && strings.HasPrefix(o.Destination, "/dev/")
		})
	}
	return append(all, own...)
}

func hostQueues(all []specs.Mount) []specs.Mount {
	if _, err := os.Stat("/dev/mqueue"); err == nil {
		return replaceMount(all, bind("/dev/mqueue", "/dev/mqueue"))
	}
	return slices.DeleteFunc(all, func(m specs.Mount) bool { return m.Destination == "/dev/mqueue" })
}

func depth(path string) int { return strings.Count(strings.TrimSuffix(path, "/"), "/") }

func bind(source, target string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}
}

func replaceMount(all []specs.Mount, m specs.Mount) []specs.Mount {
	i := slices.IndexFunc(all, func(o specs.Mount) bool { return o.Destination == m.Destination })
	all[i] = m
	return all
}

// rootPropagation lets mounts made on the host appear in the container when
// one of its mounts asks for that.
func rootPropagation(mounts []specs.Mount) string {
	out := ""
	for _, m := range mounts {
		switch {
		case slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared"):
			return "shared"
		case slices.Contains(m.Options, "rslave") || slices.Contains(m.Options, "slave"):
			out = "rslave"
		}
	}
	return out
}
