package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// TestControlGroups holds for both versions; make test-vm runs it where there
// is only version 2.
func TestControlGroups(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Config: sh("while true; do head -c 1000 /dev/zero; done > /dev/null"), Host: container.HostConfig{
		Resources: container.Resources{Memory: 64 << 20, NanoCPUs: 5e8, CPUShares: 512, PidsLimit: new(int64(20)), CpusetCpus: "0"},
	}})
	limits := map[string]string{"memory": "67108864", "swap": "67108864", "cpu": "50000 100000", "pids": "20", "cpuset": "0"}
	if got := limitsIn(d, id); !same(got, limits) {
		t.Errorf("limits = %v, want %v", got, limits)
	}

	t.Run("update-changes-a-running-container", func(t *testing.T) {
		_, err := d.ContainerUpdate(t.Context(), id, client.ContainerUpdateOptions{Resources: &container.Resources{
			Memory: 96 << 20, MemorySwap: 128 << 20, NanoCPUs: 2e8, PidsLimit: new(int64(30)),
		}})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"memory": "100663296", "swap": "33554432", "cpu": "20000 100000", "pids": "30", "cpuset": "0"}
		if got := limitsIn(d, id); !same(got, want) {
			t.Errorf("limits = %v, want %v", got, want)
		}
	})

	t.Run("stats-have-the-figures-that-docker-shows", func(t *testing.T) {
		r, err := d.ContainerStats(t.Context(), id, client.ContainerStatsOptions{IncludePreviousSample: true})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		var s container.StatsResponse
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			t.Fatal(err)
		}
		used := s.CPUStats.CPUUsage.TotalUsage - s.PreCPUStats.CPUUsage.TotalUsage
		if used == 0 || s.CPUStats.SystemUsage <= s.PreCPUStats.SystemUsage || s.CPUStats.OnlineCPUs == 0 {
			t.Errorf("processor: %+v, before %+v; want that it ran", s.CPUStats, s.PreCPUStats)
		}
		if m := s.MemoryStats; m.Usage == 0 || m.Limit != 96<<20 || len(m.Stats) == 0 {
			t.Errorf("memory: %d of %d, %d figures; want a limit of %d", m.Usage, m.Limit, len(m.Stats), 96<<20)
		}
		if p := s.PidsStats; p.Current == 0 || p.Limit != 30 {
			t.Errorf("processes: %+v, want some, and a limit of 30", p)
		}
		if s.CPUStats.ThrottlingData.Periods == 0 {
			t.Error("throttling: no periods, though the processor time is limited")
		}
	})

	t.Run("pause-stops-the-clock", func(t *testing.T) {
		if _, err := d.ContainerPause(t.Context(), id, client.ContainerPauseOptions{}); err != nil {
			t.Fatal(err)
		}
		if c := d.Inspect(id); !c.State.Paused {
			t.Errorf("state %+v, want paused", c.State)
		}
		if _, err := d.ContainerUnpause(t.Context(), id, client.ContainerUnpauseOptions{}); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("only-devices-that-were-given-can-be-opened", func(t *testing.T) {
		const script = "mknod /tmp/fuse c 10 229; mknod /tmp/z c 1 5; head -c 1 /tmp/z | wc -c; true < /tmp/fuse && echo open"
		for want, host := range map[string]container.HostConfig{
			"1\n":       {},
			"1\nopen\n": {Resources: container.Resources{DeviceCgroupRules: []string{"c 10:229 r"}}},
		} {
			if out, _, _ := d.Run(testdaemon.Spec{Config: sh(script), Host: host}); out != want {
				t.Errorf("with the rules %q: %q, want %q", host.DeviceCgroupRules, out, want)
			}
		}
	})

	t.Run("end-for-lack-of-memory-is-told", func(t *testing.T) {
		hungry := d.RunDetached(testdaemon.Spec{Config: sh("exec tail -c 100m /dev/zero"), Host: container.HostConfig{
			Resources: container.Resources{Memory: 16 << 20, MemorySwap: 16 << 20},
		}})
		d.WaitExit(hungry)
		if s := d.Inspect(hungry).State; s.ExitCode != 137 || !s.OOMKilled {
			t.Errorf("state %+v; want code 137 for lack of memory", s)
		}
	})
}

// limitsIn reads a container's limits from the host's files, in version 2's
// form.
func limitsIn(d *testdaemon.Daemon, id string) map[string]string {
	lines, _ := os.ReadFile("/proc/self/mountinfo") // where the hierarchies are
	v1 := strings.Contains(string(lines), " - cgroup ")
	read := func(controller, name string) string {
		at := "/sys/fs/cgroup"
		if v1 {
			at = filepath.Join(at, controller)
		}
		dirs, _ := filepath.Glob(at + "/*/" + id)
		if len(dirs) == 0 {
			return ""
		}
		data, _ := os.ReadFile(filepath.Join(dirs[0], name))
		return strings.TrimSpace(string(data))
	}
	if !v1 {
		return map[string]string{
			"memory": read("", "memory.max"), "swap": read("", "memory.swap.max"), "cpu": read("", "cpu.max"),
			"pids": read("", "pids.max"), "cpuset": read("", "cpuset.cpus"),
		}
	}
	out := map[string]string{
		"memory": read("memory", "memory.limit_in_bytes"), "pids": read("pids", "pids.max"), "cpuset": read("cpuset", "cpuset.cpus"),
		"cpu": read("cpu", "cpu.cfs_quota_us") + " " + read("cpu", "cpu.cfs_period_us"),
	}
	return out
}

// same compares what both have: version 1 has no figure for swap alone.
func same(got, want map[string]string) bool {
	for k, v := range got {
		if v != want[k] {
			return false
		}
	}
	return len(got) > 0
}
