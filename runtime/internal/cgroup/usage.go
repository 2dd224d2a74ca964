package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Usage is what a container has used by now; what the host does not count is
// zero.
type Usage struct {
	CPU    uint64 // nanoseconds
	Memory uint64 // bytes
	Pids   uint64
}

// Usage reads the figures.
func (g *Group) Usage() (u Usage) {
	if dir := g.Paths["cpuacct"]; dir != "" {
		u.CPU = figure(dir, "cpuacct.usage")
	} else if dir := g.Paths[Unified]; dir != "" {
		stat, _ := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		for line := range strings.Lines(string(stat)) {
			if us, ok := strings.CutPrefix(line, "usage_usec "); ok {
				n, _ := strconv.ParseUint(strings.TrimSpace(us), 10, 64)
				u.CPU = n * 1000
			}
		}
	}
	if dir := g.Paths["memory"]; dir != "" {
		u.Memory = figure(dir, "memory.usage_in_bytes")
	} else {
		u.Memory = figure(g.Paths[Unified], "memory.current")
	}
	if dir := g.Paths["pids"]; dir != "" {
		u.Pids = figure(dir, "pids.current")
	} else {
		u.Pids = figure(g.Paths[Unified], "pids.current")
	}
	return u
}

func figure(dir, name string) uint64 {
	data, _ := os.ReadFile(filepath.Join(dir, name))
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}
