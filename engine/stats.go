package engine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/engine/internal/cgroup"
	"github.com/minke-os/minke/internal/errdef"
)

// StatsOptions are those of docker stats.
type StatsOptions struct {
	Stream  bool // a sample a second until the container is removed
	OneShot bool // without Stream: do not wait for a second sample to compare with
}

const statsInterval = time.Second // Docker's; clients scale by it

// ContainerStats hands samples to emit until the client or the container is
// gone. A container that does not run has empty ones.
func (e *Engine) ContainerStats(ctx context.Context, name string, o StatsOptions, emit func(container.StatsResponse) error) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	r := c.snapshot()
	if !o.Stream && (o.OneShot || !r.runs()) {
		s, err := e.sample(ctx, c, nil)
		if err != nil {
			return err
		}
		return emit(s)
	}
	var last *container.StatsResponse
	ticker := time.NewTicker(statsInterval)
	defer ticker.Stop()
	for {
		s, err := e.sample(ctx, c, last)
		if err != nil {
			return err
		}
		// A client that wants one sample wants one that has a rate.
		if o.Stream || last != nil {
			if err := emit(s); err != nil || !o.Stream {
				return err
			}
		}
		last = &s
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-e.ctx.Done():
			return nil
		}
		if c.gone() {
			return nil
		}
	}
}

func (c *Container) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed
}

// sample is what the container has used by now, beside what it had by last.
func (e *Engine) sample(ctx context.Context, c *Container, last *container.StatsResponse) (container.StatsResponse, error) {
	r := c.snapshot()
	out := container.StatsResponse{ID: r.ID, Name: "/" + r.Name, OSType: "linux"}
	if !r.runs() {
		return out, nil
	}
	dirs, err := e.cgroupOf(ctx, r.ID)
	if err != nil {
		return out, err
	}
	used, err := dirs.Read()
	if err != nil {
		if c.snapshot().Pid != r.Pid {
			return out, nil // it ended meanwhile
		}
		return out, fmt.Errorf("stats of container %s: %w", r.Name, err)
	}
	out.Read = time.Now().UTC()
	out.CPUStats, out.MemoryStats, out.BlkioStats, out.PidsStats = used.CPU, used.Memory, used.Block, used.Pids
	out.CPUStats.SystemUsage, out.CPUStats.OnlineCPUs = hostCPUTime(), uint32(runtime.NumCPU())
	// Without a limit the kernel shows none, or more than there is.
	if total := uint64(memTotal()); out.MemoryStats.Limit == 0 || out.MemoryStats.Limit > total {
		out.MemoryStats.Limit = total
	}
	if !r.Host.NetworkMode.IsHost() && !r.Host.NetworkMode.IsContainer() {
		out.Networks = interfaceCounters(r.Pid)
	}
	if last != nil {
		out.PreRead, out.PreCPUStats = last.Read, last.CPUStats
	}
	return out, nil
}

func (e *Engine) cgroupOf(ctx context.Context, id string) (cgroup.Dirs, error) {
	states, err := e.rt.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		if s.ID == id {
			return s.Cgroups, nil
		}
	}
	return nil, errdef.Conflict.Errorf("container %s is not running", id)
}

// hostCPUTime is the time of all processors, busy or not, in nanoseconds.
func hostCPUTime() uint64 {
	fields := strings.Fields(readLine("/proc/stat"))
	var ticks uint64
	// cpu, then user nice system idle iowait irq softirq; guests are in user.
	for i := 1; i < len(fields) && i <= 7; i++ {
		n, _ := strconv.ParseUint(fields[i], 10, 64)
		ticks += n
	}
	return ticks * (1e9 / 100)
}

// interfaceCounters are those of the network namespace of a process, without
// loopback.
func interfaceCounters(pid int) map[string]container.NetworkStats {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil
	}
	return parseNetDev(data)
}

func parseNetDev(data []byte) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		words := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(words) < 12 {
			continue
		}
		var n [12]uint64
		for i := range n {
			n[i], _ = strconv.ParseUint(words[i], 10, 64)
		}
		out[name] = container.NetworkStats{
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
	}
	return out
}
