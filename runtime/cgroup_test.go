package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func TestLimitsAreSetAndUpdated(t *testing.T) {
	b := newBox(t)
	c := b.container("sleep", "1000")
	c.Spec.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20), Reservation: ptr[int64](32 << 20)},
		CPU:    &specs.LinuxCPU{Shares: ptr[uint64](512), Quota: ptr[int64](50000), Period: ptr[uint64](100000), Cpus: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr[int64](20)},
	}
	b.start(c)
	if err := b.Update(b.ctx, c.ID, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](33)}, Memory: &specs.LinuxMemory{Limit: ptr[int64](128 << 20)}}); err != nil {
		t.Fatalf("Update: %v", err)
	}
	tests := []struct{ controller, v1, v2, want1, want2 string }{
		{"memory", "memory.limit_in_bytes", "memory.max", "134217728", "134217728"},
		{"memory", "memory.soft_limit_in_bytes", "memory.low", "33554432", "33554432"},
		{"cpu", "cpu.shares", "cpu.weight", "512", "20"},
		{"cpu", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"cpuset", "cpuset.cpus", "cpuset.cpus", "0", "0"},
		{"pids", "pids.max", "pids.max", "33", "33"},
	}
	paths := b.state(c.ID).Cgroups
	for _, tt := range tests {
		dir, file, want := paths[tt.controller], tt.v1, tt.want1
		if dir == "" {
			dir, file, want = paths[""], tt.v2, tt.want2
		}
		got, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s = %q, %v; want %s", file, got, err, want)
		}
	}
	b.Kill(b.ctx, c.ID, 9, false)
	b.Wait(b.ctx, c.ID)
	if err := b.Delete(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	for _, dir := range paths {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("cgroup %s is left after Delete", dir)
		}
	}
}

func TestLowLimitOfProcessesCountsOnlyTheContainersOwn(t *testing.T) {
	b := newBox(t)
	if !hasV1("pids") {
		t.Skip("this host has the pids controller in cgroup version 2")
	}
	for _, limit := range []int64{1, 2, 3} {
		c := b.container("echo", "ok")
		c.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
		if code, out := b.run(c); code != 0 || out != "ok\n" {
			t.Errorf("with a limit of %d: exit code %d, output %q", limit, code, out)
		}
	}
	c := b.container("sleep", "1000")
	c.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](1)}}
	b.start(c)
	if out := b.exec(c, "echo", "ok"); out != "ok\n" {
		t.Errorf("exec beside the one process that is allowed: %q", out)
	}
}

// The limit is in what the container sees of its cgroup, and nothing of others.
func TestLimitOfProcessesShowsInTheContainer(t *testing.T) {
	b := newBox(t)
	if !hasV1("pids") {
		t.Skip("this host has the pids controller in cgroup version 2")
	}
	c := b.container("cat", "/sys/fs/cgroup/pids/pids.max")
	c.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](7)}}
	if code, out := b.run(c); code != 0 || out != "7\n" {
		t.Errorf("exit code %d, pids.max %q; want 7", code, out)
	}
}

func hasV1(controller string) bool {
	_, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller, "tasks"))
	return err == nil
}

func (b *box) state(id string) State {
	b.t.Helper()
	states, err := b.List(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range states {
		if s.ID == id {
			return s
		}
	}
	b.t.Fatalf("List has no %s", id)
	return State{}
}

func TestOutOfMemoryIsReported(t *testing.T) {
	b := newBox(t)
	oom := make(chan string, 10)
	other := b.options()
	other.OnOOM = func(id string) { oom <- id }
	m, err := Open(b.ctx, other)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c := b.container("sh", "-c", "tail -c 100m /dev/zero | wc -c; exec tail -c 100m /dev/zero")
	c.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](16 << 20), Swap: ptr[int64](16 << 20)}}
	b.start(c)
	e, err := b.Wait(b.ctx, c.ID)
	if err != nil || e.Code != 137 || !e.OOM {
		t.Errorf("Wait = %+v, %v; want code 137 for lack of memory", e, err)
	}
	select {
	case id := <-oom:
		if id != c.ID {
			t.Errorf("OnOOM(%s), want %s", id, c.ID)
		}
	case <-time.After(5 * time.Second):
		t.Error("OnOOM was not called")
	}
}

func TestPausedContainersStandStill(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "while :; do :; done")
	b.start(c)
	if err := b.Pause(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if s := b.state(c.ID).Status; s != Paused {
		t.Errorf("status = %s, want paused", s)
	}
	if _, _, err := b.Exec(b.ctx, c.ID, Exec{ID: "e", Process: c.Spec.Process}); err == nil {
		t.Error("Exec in a paused container: want an error")
	}
	if err := b.Resume(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.Pause(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(b.ctx, c.ID, 9, false); err != nil {
		t.Fatal(err)
	}
	if e, err := b.Wait(b.ctx, c.ID); err != nil || e.Code != 137 {
		t.Errorf("Wait after a kill while paused = %+v, %v; want 137", e, err)
	}
}

func TestKillAllReachesTheWholeCgroup(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "sleep 1000 & echo up; wait")
	for i, ns := range c.Spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces[:i:i], c.Spec.Linux.Namespaces[i+1:]...)
		}
	}
	b.start(c)
	dir := b.state(c.ID).Cgroups["pids"]
	if dir == "" {
		dir = b.state(c.ID).Cgroups[""]
	}
	var pids []string
	for len(pids) < 2 { // until the shell has started its child
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		pids = strings.Fields(string(data))
	}
	if err := b.Kill(b.ctx, c.ID, 9, true); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Wait(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); alive(pids); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("some of the processes %s go on", pids)
		}
	}
}

// alive reports whether a process of pids is more than a zombie.
func alive(pids []string) bool {
	for _, pid := range pids {
		if stat, _ := os.ReadFile("/proc/" + pid + "/stat"); len(stat) > 0 && !strings.Contains(string(stat), ") Z ") {
			return true
		}
	}
	return false
}

func TestDeviceRules(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "mknod /mem c 1 1; mknod /z c 1 5; head -c 1 /z | wc -c; head -c 1 /mem")
	c.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	code, out := b.run(c)
	if code == 0 || !strings.Contains(out, "1\n") || !strings.Contains(out, "not permitted") {
		t.Errorf("= %d, %q; want /dev/zero to work and /dev/mem to be refused", code, out)
	}
}

func TestContainerSeesItsOwnCgroups(t *testing.T) {
	b := newBox(t)
	code, out := b.sh("cat /proc/self/cgroup; ls /sys/fs/cgroup")
	if code != 0 || strings.Contains(out, "minke-test") {
		t.Errorf("= %d, %q; want paths relative to the container's own cgroup", code, out)
	}
}
