package boot

import (
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestMountOptionsAreUnderstood(t *testing.T) {
	const ro, nosuid = unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOSUID
	tests := []struct {
		name string
		in   specs.Mount
		want mountPlan
	}{
		{"bind", specs.Mount{Options: []string{"bind", "ro"}}, mountPlan{kind: "bind", set: ro}},
		{"rbind-with-propagation", specs.Mount{Type: "none", Options: []string{"rbind", "rprivate"}},
			mountPlan{kind: "bind", recursive: true, propagation: []attr{{set: unix.MS_PRIVATE, recursive: true}}}},
		{"recursively-read-only", specs.Mount{Options: []string{"rbind", "rro"}}, mountPlan{kind: "bind", recursive: true, rset: ro}},
		{"the-last-word-counts", specs.Mount{Type: "tmpfs", Options: []string{"ro", "nosuid", "rw"}}, mountPlan{kind: "tmpfs", set: nosuid, clear: ro}},
		{"part-of-a-file-system", specs.Mount{Type: "overlay", Options: []string{"ro", "x-subpath=/a=b"}}, mountPlan{kind: "overlay", set: ro, subpath: "/a=b"}},
		{"data", specs.Mount{Type: "tmpfs", Options: []string{"size=64k", "noswap", "sync", "defaults"}},
			mountPlan{kind: "tmpfs", data: [][2]string{{"size", "64k"}, {"noswap", ""}}, flags: []string{"sync"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := planMount(tt.in); err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("planMount(%+v) = %+v, %v; want %+v", tt.in, got, err, tt.want)
			}
		})
	}
	for _, bad := range []specs.Mount{{Destination: "/x"}, {Type: "tmpfs", Options: []string{"remount"}}} {
		if p, err := planMount(bad); err == nil {
			t.Errorf("planMount(%+v) = %+v, want an error", bad, p)
		}
	}
}

func TestHomeIsAddedOnlyWhereMissing(t *testing.T) {
	env := []string{"A=b", "HOME=/x"}
	if got := withHome(env, 0); !reflect.DeepEqual(got, env) {
		t.Errorf("withHome(%q) = %q", env, got)
	}
	if got := withHome([]string{"A=b"}, 4000000000); got[1] != "HOME=/" {
		t.Errorf("withHome for an unknown user = %q, want HOME=/", got)
	}
}

func TestTheLastOfTwoVariablesCounts(t *testing.T) {
	if got := getenv([]string{"PATH=/a", "PATH=/b", "PATHS=/c"}, "PATH"); got != "/b" {
		t.Errorf("getenv = %q, want /b", got)
	}
}
