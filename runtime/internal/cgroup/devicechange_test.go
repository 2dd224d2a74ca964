package cgroup

import (
	"bytes"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/testenv"
)

var denyAll = specs.LinuxDeviceCgroup{Access: "rwm"}

func TestRulesOfARunningGroupChange(t *testing.T) {
	zero := func(access string) specs.LinuxDeviceCgroup { return rule("c", 1, 5, access) }
	random := rule("c", 1, 8, "r")
	g := unified(t)
	if err := devicesV2(g.Paths[Unified], []specs.LinuxDeviceCgroup{denyAll, zero("r")}); err != nil {
		t.Fatal(err)
	}
	may := func(command string) bool {
		cmd := g.command(t, testenv.Busybox(t), "sh", "-c", command)
		cmd.Stdin = bytes.NewReader(nil)
		return cmd.Run() == nil
	}
	if !may("head -c 1 /dev/zero") || may("head -c 1 /dev/random") {
		t.Fatal("the first rules do not hold")
	}
	if err := changeDevicesV2(g.Paths[Unified], []specs.LinuxDeviceCgroup{denyAll, random}); err != nil {
		t.Fatal(err)
	}
	if may("head -c 1 /dev/zero") || !may("head -c 1 /dev/random") {
		t.Error("the second rules do not hold")
	}
}

func TestChangesOfVersion1Rules(t *testing.T) {
	tests := []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		{"allow-list", []specs.LinuxDeviceCgroup{denyAll, rule("c", 1, 5, "rw")}, true},
		{"all", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, false},
		{"with-an-exception", []specs.LinuxDeviceCgroup{denyAll, rule("c", 1, -1, "rw"), {Type: "c", Access: "w"}}, false},
		{"nothing-denied-first", []specs.LinuxDeviceCgroup{rule("c", 1, 5, "rw")}, false},
	}
	for _, tt := range tests {
		if got := isAllowList(tt.rules); got != tt.want {
			t.Errorf("%s: isAllowList = %v", tt.name, got)
		}
	}
	for _, line := range []string{"c 1:5 rw", "b *:* m", "c 136:* rwm"} {
		d, err := parseRule(line)
		if err != nil || ruleLine(d) != line {
			t.Errorf("parseRule(%q) = %+v, %v", line, d, err)
		}
	}
}
