package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A setter writes limits and remembers which the host does not have.
type setter struct {
	g        *Group
	warnings []string
	err      error
}

// Set sets the limits that are given. It may be called again while the
// container runs.
func (g *Group) Set(r *specs.LinuxResources) (warnings []string, err error) {
	if r == nil {
		return nil, nil
	}
	s := &setter{g: g}
	if r.Pids != nil && r.Pids.Limit != nil {
		s.set("pids", "pids.max", limit(*r.Pids.Limit), "process number limit")
	}
	s.memory(r.Memory)
	s.cpu(r.CPU)
	s.io(r.BlockIO)
	if r.Network != nil && r.Network.ClassID != nil {
		s.set("net_cls", "net_cls.classid", strconv.FormatUint(uint64(*r.Network.ClassID), 10), "network class")
	}
	for _, h := range r.HugepageLimits {
		s.hugepages(h)
	}
	for name, value := range r.Unified {
		s.set(Unified, name, value, name)
	}
	return s.warnings, s.err
}

// v2 reports whether the controller is (or would be) on the version 2 tree,
// and where it is.
func (s *setter) v2(controller string) (dir string, v2 bool) {
	if dir, ok := s.g.Paths[controller]; ok && controller != Unified {
		return dir, false
	}
	return s.g.Paths[Unified], true
}

// set writes one file; what is the limit in words.
func (s *setter) set(controller, name, value, what string) {
	if s.err != nil {
		return
	}
	if dir, _ := s.v2(controller); dir != "" {
		err := write(dir, name, value)
		if !errors.Is(err, fs.ErrNotExist) {
			s.err = err
			return
		}
	}
	s.warnings = append(s.warnings, fmt.Sprintf("this host's kernel has no %s (%s); it is not applied", what, name))
}

// limit is n as cgroup files have it: all negative numbers mean none.
func limit[N int | int64](n N) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(int64(n), 10)
}

func (s *setter) memory(m *specs.LinuxMemory) {
	if m == nil {
		return
	}
	if _, v2 := s.v2("memory"); v2 {
		s.memoryV2(m)
		return
	}
	if m.Limit != nil || m.Swap != nil {
		s.memoryV1(m)
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		s.set("memory", "memory.soft_limit_in_bytes", strconv.FormatInt(*m.Reservation, 10), "memory reservation")
	}
	if m.Swappiness != nil {
		s.set("memory", "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10), "swappiness")
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		s.set("memory", "memory.oom_control", "1", "switch for the out-of-memory killer")
	}
}

// memoryV1 finds the order: the memory limit may never be above that of memory
// and swap together, neither before nor after.
func (s *setter) memoryV1(m *specs.LinuxMemory) {
	memory := func() {
		if m.Limit != nil && *m.Limit != 0 {
			s.set("memory", "memory.limit_in_bytes", strconv.FormatInt(*m.Limit, 10), "memory limit")
		}
	}
	swap := func() {
		if m.Swap != nil && *m.Swap != 0 {
			s.set("memory", "memory.memsw.limit_in_bytes", strconv.FormatInt(*m.Swap, 10), "swap limit")
		}
	}
	memory()
	swap()
	if errors.Is(s.err, unix.EINVAL) {
		s.err = nil
		swap()
		memory()
	}
}

func (s *setter) memoryV2(m *specs.LinuxMemory) {
	if m.Limit != nil && *m.Limit != 0 {
		s.set("memory", "memory.max", limit(*m.Limit), "memory limit")
	}
	if m.Swap != nil && *m.Swap != 0 {
		s.set("memory", "memory.swap.max", limit(swapOnly(m)), "swap limit")
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		s.set("memory", "memory.low", limit(*m.Reservation), "memory reservation")
	}
}

// swapOnly converts: the specification's value is memory and swap together.
func swapOnly(m *specs.LinuxMemory) int64 {
	if *m.Swap < 0 || m.Limit == nil || *m.Limit < 0 {
		return *m.Swap
	}
	return max(*m.Swap-*m.Limit, 0)
}

func (s *setter) cpu(c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	if _, v2 := s.v2("cpu"); v2 {
		s.cpuV2(c)
	} else {
		s.cpuV1(c)
	}
	if c.Cpus != "" {
		s.set("cpuset", "cpuset.cpus", c.Cpus, "choice of processors")
	}
	if c.Mems != "" {
		s.set("cpuset", "cpuset.mems", c.Mems, "choice of memory nodes")
	}
}

func (s *setter) cpuV1(c *specs.LinuxCPU) {
	if c.Shares != nil && *c.Shares != 0 {
		s.set("cpu", "cpu.shares", strconv.FormatUint(*c.Shares, 10), "processor shares")
	}
	if c.Period != nil && *c.Period != 0 {
		s.set("cpu", "cpu.cfs_period_us", strconv.FormatUint(*c.Period, 10), "processor quota")
	}
	if c.Quota != nil && *c.Quota != 0 {
		s.set("cpu", "cpu.cfs_quota_us", strconv.FormatInt(*c.Quota, 10), "processor quota")
	}
	if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		s.set("cpu", "cpu.rt_period_us", strconv.FormatUint(*c.RealtimePeriod, 10), "real-time quota")
	}
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
		s.set("cpu", "cpu.rt_runtime_us", strconv.FormatInt(*c.RealtimeRuntime, 10), "real-time quota")
	}
}

func (s *setter) cpuV2(c *specs.LinuxCPU) {
	if c.Shares != nil && *c.Shares != 0 {
		s.set("cpu", "cpu.weight", strconv.FormatUint(weightOf(*c.Shares), 10), "processor shares")
	}
	if max := s.cpuMax(c); max != "" {
		s.set("cpu", "cpu.max", max, "processor quota")
	}
	if c.Burst != nil {
		s.set("cpu", "cpu.max.burst", strconv.FormatUint(*c.Burst, 10), "processor burst")
	}
	if c.Idle != nil {
		s.set("cpu", "cpu.idle", strconv.FormatInt(*c.Idle, 10), "idle scheduling")
	}
}

// cpuMax is quota and period for cpu.max, where a quota alone keeps the
// period. A period alone takes along the quota that is there.
func (s *setter) cpuMax(c *specs.LinuxCPU) string {
	quota := ""
	switch {
	case c.Quota != nil && *c.Quota > 0:
		quota = strconv.FormatInt(*c.Quota, 10)
	case c.Quota != nil && *c.Quota < 0:
		quota = "max"
	}
	if c.Period == nil || *c.Period == 0 {
		return quota
	}
	if quota == "" {
		dir, _ := s.v2("cpu")
		now, _ := os.ReadFile(filepath.Join(dir, "cpu.max"))
		if quota, _, _ = strings.Cut(string(now), " "); quota == "" {
			quota = "max"
		}
	}
	return quota + " " + strconv.FormatUint(*c.Period, 10)
}

// weightOf maps shares (2–262144) to weights (1–10000) on a line, as runc
// and systemd did it when version 2 came.
func weightOf(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func (s *setter) io(b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	_, v2 := s.v2("blkio")
	if v2 {
		s.ioV2(b)
		return
	}
	if b.Weight != nil && *b.Weight != 0 {
		s.set("blkio", "blkio.bfq.weight", strconv.Itoa(int(*b.Weight)), "block device weight")
	}
	for _, w := range b.WeightDevice {
		if w.Weight != nil {
			s.set("blkio", "blkio.bfq.weight_device", fmt.Sprintf("%d:%d %d", w.Major, w.Minor, *w.Weight), "block device weight")
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			s.set("blkio", t.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate), "block device throttle")
		}
	}
}

func (s *setter) ioV2(b *specs.LinuxBlockIO) {
	if b.Weight != nil && *b.Weight != 0 {
		s.ioWeight("default", *b.Weight)
	}
	for _, w := range b.WeightDevice {
		if w.Weight != nil && *w.Weight != 0 {
			s.ioWeight(fmt.Sprintf("%d:%d", w.Major, w.Minor), *w.Weight)
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			s.set("io", "io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.v2, d.Rate), "block device throttle")
		}
	}
}

// ioWeight gives the weight to the BFQ scheduler where there is one, whose
// scale is the specification's, else to the kernel's cost model, which has
// 1–10000 for 10–1000.
func (s *setter) ioWeight(whom string, weight uint16) {
	if _, err := os.Stat(filepath.Join(s.g.Paths[Unified], "io.bfq.weight")); err == nil {
		s.set("io", "io.bfq.weight", fmt.Sprintf("%s %d", whom, weight), "block device weight")
		return
	}
	s.set("io", "io.weight", fmt.Sprintf("%s %d", whom, 1+(uint64(weight)-10)*9999/990), "block device weight")
}

type throttle struct {
	v1, v2  string
	devices []specs.LinuxThrottleDevice
}

func throttles(b *specs.LinuxBlockIO) []throttle {
	return []throttle{
		{"blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}

func (s *setter) hugepages(h specs.LinuxHugepageLimit) {
	name := "hugetlb." + h.Pagesize + ".max"
	if _, v2 := s.v2("hugetlb"); !v2 {
		name = "hugetlb." + h.Pagesize + ".limit_in_bytes"
	}
	s.set("hugetlb", name, strconv.FormatUint(h.Limit, 10), "huge page limit")
}
