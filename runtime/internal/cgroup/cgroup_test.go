package cgroup

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/testenv"
)

// The bare version 2 tree of a mixed host serves as a version 2 host for what
// needs no controller.
func unified(t *testing.T) *Group {
	testenv.NeedRoot(t)
	mounts, err := hierarchies()
	if err != nil || mounts[Unified] == "" {
		t.Skipf("needs a version 2 hierarchy: %v", err)
	}
	dir := filepath.Join(mounts[Unified], "minke-cgroup-test")
	if err := makeUnified(mounts[Unified], dir); err != nil {
		t.Fatal(err)
	}
	g := &Group{Paths: map[string]string{Unified: dir}}
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *Group) command(t *testing.T, args ...string) *exec.Cmd {
	dir, err := os.Open(g.Paths[Unified])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd
}

func TestDeviceProgramDecidesAsTheRulesDo(t *testing.T) {
	zero, full := func(allow bool, access string) specs.LinuxDeviceCgroup {
		r := rule("c", 1, 5, access)
		r.Allow = allow
		return r
	}, rule("c", 1, 7, "rw")
	denyAll := specs.LinuxDeviceCgroup{Access: "rwm"}
	tests := []struct {
		name    string
		rules   []specs.LinuxDeviceCgroup
		command string
		allowed bool
	}{
		{"nothing-without-rules", nil, "head -c 1 /dev/zero", false},
		{"allowed-one", []specs.LinuxDeviceCgroup{denyAll, zero(true, "r")}, "head -c 1 /dev/zero", true},
		{"not-for-writing", []specs.LinuxDeviceCgroup{denyAll, zero(true, "r")}, "true > /dev/zero", false},
		{"not-another-one", []specs.LinuxDeviceCgroup{denyAll, full}, "head -c 1 /dev/zero", false},
		{"the-later-rule-wins", []specs.LinuxDeviceCgroup{zero(true, "rwm"), denyAll}, "head -c 1 /dev/zero", false},
		{"denied-in-part", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, zero(false, "w")}, "head -c 1 /dev/zero", true},
		{"denied-in-part-for-both", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, zero(false, "w")}, "true <> /dev/zero", false},
		{"wildcard", []specs.LinuxDeviceCgroup{denyAll, rule("c", 1, -1, "rwm")}, "head -c 1 /dev/zero", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := unified(t)
			if err := devicesV2(g.Paths[Unified], tt.rules); err != nil {
				t.Fatal(err)
			}
			cmd := g.command(t, testenv.Busybox(t), "sh", "-c", tt.command)
			cmd.Stdin = bytes.NewReader(nil) // no use of /dev/null
			out, err := cmd.CombinedOutput()
			if (err == nil) != tt.allowed {
				t.Errorf("%s: %v, %q; want allowed = %v", tt.command, err, out, tt.allowed)
			}
		})
	}
}

func TestKillEndsAllAndFreezeStops(t *testing.T) {
	g := unified(t)
	cmd := g.command(t, testenv.Busybox(t), "sh", "-c", "sleep 100 & sleep 100 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	events, _ := os.ReadFile(filepath.Join(g.Paths[Unified], "cgroup.events"))
	if !strings.Contains(string(events), "frozen 1") {
		t.Errorf("cgroup.events = %q, want frozen 1", events)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	// The children's end is for somebody else to collect.
	pids, err := g.Pids()
	for deadline := time.Now().Add(5 * time.Second); len(pids) > 0 && time.Now().Before(deadline); pids, err = g.Pids() {
		time.Sleep(time.Millisecond)
	}
	if err != nil || len(pids) > 0 {
		t.Errorf("Pids after Kill = %v, %v", pids, err)
	}
}

func TestMissingControllersGiveWarnings(t *testing.T) {
	g := unified(t)
	w, err := g.Set(&specs.LinuxResources{
		Unified:        map[string]string{"memory.fancy": "1"},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB"}},
		Network:        &specs.LinuxNetwork{ClassID: new(uint32)},
	})
	if err != nil || len(w) != 3 {
		t.Errorf("Set = %q, %v; want three warnings and no error", w, err)
	}
}

func TestSharesBecomeWeights(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := weightOf(shares); got != want {
			t.Errorf("weightOf(%d) = %d, want %d", shares, got, want)
		}
	}
}
