// Package cgroup reads what a container's processes have used: time, memory,
// block I/O and process numbers, from cgroups of version 1 or 2.
//
// A reading is a snapshot of counters that the kernel keeps. It never fails for
// a controller that the host lacks: what cannot be read is zero, as in Docker.
// It fails with fs.ErrNotExist when the cgroup is gone. Nothing is kept between
// readings, so any number may go on at once. Cgroups are made, limited and
// removed by the runtime, not here.
package cgroup

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// Dirs are the directories of one cgroup by controller; the empty name is the
// version 2 tree's. Of a host with both, version 1 has the controllers.
type Dirs map[string]string

// Usage is one reading, in the API's words.
type Usage struct {
	CPU    container.CPUStats
	Memory container.MemoryStats
	Block  container.BlkioStats
	Pids   container.PidsStats
}

// Read takes a reading.
func (d Dirs) Read() (Usage, error) {
	for _, dir := range d {
		if _, err := os.Stat(dir); err != nil {
			return Usage{}, fmt.Errorf("read cgroup: %w", err)
		}
	}
	var u Usage
	if d["cpuacct"] != "" || d["memory"] != "" {
		d.readV1(&u)
	} else {
		readV2(d[""], &u)
	}
	return u, nil
}

func (d Dirs) readV1(u *Usage) {
	cpu := &u.CPU.CPUUsage
	cpu.TotalUsage = number(d["cpuacct"], "cpuacct.usage")
	for _, word := range strings.Fields(text(d["cpuacct"], "cpuacct.usage_percpu")) {
		n, _ := strconv.ParseUint(word, 10, 64)
		cpu.PercpuUsage = append(cpu.PercpuUsage, n)
	}
	ticks := pairs(d["cpuacct"], "cpuacct.stat")
	cpu.UsageInUsermode, cpu.UsageInKernelmode = ticks["user"]*nanosPerTick, ticks["system"]*nanosPerTick
	throttled := pairs(d["cpu"], "cpu.stat")
	u.CPU.ThrottlingData = container.ThrottlingData{
		Periods: throttled["nr_periods"], ThrottledPeriods: throttled["nr_throttled"], ThrottledTime: throttled["throttled_time"],
	}
	u.Memory = container.MemoryStats{
		Usage: number(d["memory"], "memory.usage_in_bytes"), MaxUsage: number(d["memory"], "memory.max_usage_in_bytes"),
		Failcnt: number(d["memory"], "memory.failcnt"), Limit: number(d["memory"], "memory.limit_in_bytes"), Stats: pairs(d["memory"], "memory.stat"),
	}
	u.Pids = pids(d["pids"])
	u.Block.IoServiceBytesRecursive = operations(d["blkio"], "blkio.throttle.io_service_bytes_recursive")
	u.Block.IoServicedRecursive = operations(d["blkio"], "blkio.throttle.io_serviced_recursive")
}

// nanosPerTick: the kernel shows user space times in hundredths of a second on
// every architecture we run on.
const nanosPerTick = 1e9 / 100

func readV2(dir string, u *Usage) {
	cpu := pairs(dir, "cpu.stat")
	u.CPU.CPUUsage = container.CPUUsage{
		TotalUsage: cpu["usage_usec"] * 1000, UsageInUsermode: cpu["user_usec"] * 1000, UsageInKernelmode: cpu["system_usec"] * 1000,
	}
	u.CPU.ThrottlingData = container.ThrottlingData{
		Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * 1000,
	}
	u.Memory = container.MemoryStats{
		Usage: number(dir, "memory.current"), Limit: number(dir, "memory.max"), Stats: pairs(dir, "memory.stat"), Failcnt: pairs(dir, "memory.events")["oom"],
	}
	u.Pids = pids(dir)
	for _, line := range strings.Split(text(dir, "io.stat"), "\n") {
		u.Block.IoServiceBytesRecursive = append(u.Block.IoServiceBytesRecursive, bytesMoved(line)...)
	}
}

func pids(dir string) container.PidsStats {
	return container.PidsStats{Current: number(dir, "pids.current"), Limit: number(dir, "pids.max")}
}

// bytesMoved reads a line of io.stat: "8:0 rbytes=1 wbytes=2 rios=3 …".
func bytesMoved(line string) (out []container.BlkioStatEntry) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil
	}
	major, minor, ok := device(words[0])
	if !ok {
		return nil
	}
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		op, known := map[string]string{"rbytes": "read", "wbytes": "write"}[name]
		n, err := strconv.ParseUint(value, 10, 64)
		if known && err == nil {
			out = append(out, container.BlkioStatEntry{Major: major, Minor: minor, Op: op, Value: n})
		}
	}
	return out
}

// operations reads version 1's "8:0 Read 123" lines; it leaves out the sum over
// all devices at the end.
func operations(dir, file string) (out []container.BlkioStatEntry) {
	for _, line := range strings.Split(text(dir, file), "\n") {
		words := strings.Fields(line)
		if len(words) != 3 {
			continue
		}
		major, minor, ok := device(words[0])
		n, err := strconv.ParseUint(words[2], 10, 64)
		if ok && err == nil {
			out = append(out, container.BlkioStatEntry{Major: major, Minor: minor, Op: words[1], Value: n})
		}
	}
	return out
}

func device(s string) (major, minor uint64, ok bool) {
	a, b, _ := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return major, minor, err1 == nil && err2 == nil
}

// pairs reads lines of a name and a number.
func pairs(dir, file string) map[string]uint64 {
	out := map[string]uint64{}
	for lines := bufio.NewScanner(strings.NewReader(text(dir, file))); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// number reads a file of one number; "max" and what is no number are zero.
func number(dir, file string) uint64 {
	n, _ := strconv.ParseUint(text(dir, file), 10, 64)
	return n
}

func text(dir, file string) string {
	if dir == "" {
		return ""
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}
