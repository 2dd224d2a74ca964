package spec

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
)

func generate(t *testing.T, in Input) *specs.Spec {
	t.Helper()
	if in.Config == nil {
		in.Config = &container.Config{}
	}
	if in.Host == nil {
		in.Host = &container.HostConfig{}
	}
	if in.Args == nil {
		in.Args = []string{"sh"}
	}
	s, err := Generate(in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mountAt(s *specs.Spec, target string) (specs.Mount, int) {
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == target })
	if i < 0 {
		return specs.Mount{}, i
	}
	return s.Mounts[i], i
}

func TestCapabilities(t *testing.T) {
	tests := []struct {
		name      string
		host      container.HostConfig
		has, lack []string
	}{
		{"default", container.HostConfig{}, []string{"CAP_CHOWN"}, []string{"CAP_SYS_ADMIN"}},
		{"added", container.HostConfig{CapAdd: []string{"sys_admin"}}, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, nil},
		{"dropped", container.HostConfig{CapDrop: []string{"CAP_CHOWN"}}, []string{"CAP_KILL"}, []string{"CAP_CHOWN"}},
		{"all-dropped-one-added", container.HostConfig{CapDrop: []string{"ALL"}, CapAdd: []string{"CHOWN"}}, []string{"CAP_CHOWN"}, []string{"CAP_KILL"}},
		{"all-added-one-dropped", container.HostConfig{CapAdd: []string{"all"}, CapDrop: []string{"CHOWN"}}, []string{"CAP_SYS_ADMIN"}, []string{"CAP_CHOWN"}},
		{"privileged", container.HostConfig{Privileged: true, CapDrop: []string{"CHOWN"}}, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Capabilities(&tt.host)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range tt.has {
				if !slices.Contains(got, c) {
					t.Errorf("%s is missing", c)
				}
			}
			for _, c := range tt.lack {
				if slices.Contains(got, c) {
					t.Errorf("%s is there", c)
				}
			}
		})
	}
	if _, err := Capabilities(&container.HostConfig{CapAdd: []string{"NOSUCH"}}); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("an unknown capability: %v, want kind %v", err, errdef.Invalid)
	}
}

func TestContainersMountsReplaceTheSystemsAndFollowWhatContainsThem(t *testing.T) {
	s := generate(t, Input{Mounts: []specs.Mount{
		{Destination: "/a/b/c", Source: "3"}, {Destination: "/a", Source: "1"}, {Destination: "/dev/shm", Source: "own"},
	}})
	if m, _ := mountAt(s, "/dev/shm"); m.Source != "own" {
		t.Errorf("/dev/shm is %+v, want the container's own", m)
	}
	_, outer := mountAt(s, "/a")
	_, inner := mountAt(s, "/a/b/c")
	if outer > inner {
		t.Errorf("/a is mounted at step %d, over /a/b/c of step %d", outer, inner)
	}
	_, i := mountAt(generate(t, Input{Mounts: []specs.Mount{{Destination: "/dev", Source: "/dev"}}}), "/dev/pts")
	if i >= 0 {
		t.Error("the system mounts /dev/pts below a /dev that is the container's")
	}
}

func TestPrivilegeShowsWhatIsHiddenOtherwise(t *testing.T) {
	plain, privileged := generate(t, Input{}), generate(t, Input{Host: &container.HostConfig{Privileged: true}})
	if len(plain.Linux.MaskedPaths) == 0 || len(plain.Linux.ReadonlyPaths) == 0 {
		t.Error("nothing is hidden from a container without privilege")
	}
	if len(privileged.Linux.MaskedPaths)+len(privileged.Linux.ReadonlyPaths) > 0 {
		t.Errorf("hidden from a privileged container: %v %v", privileged.Linux.MaskedPaths, privileged.Linux.ReadonlyPaths)
	}
	if m, _ := mountAt(privileged, "/sys"); !slices.Contains(m.Options, "rw") {
		t.Errorf("/sys of a privileged container is mounted %v", m.Options)
	}
}

func TestResources(t *testing.T) {
	out := Resources(container.Resources{Memory: 64 << 20, NanoCPUs: 1_500_000_000})
	if *out.Memory.Limit != 64<<20 || *out.Memory.Swap != 128<<20 {
		t.Errorf("memory %d, with swap %d; want as much swap again", *out.Memory.Limit, *out.Memory.Swap)
	}
	if *out.CPU.Quota != 150_000 || *out.CPU.Period != 100_000 {
		t.Errorf("quota %d of %d, want one and a half processors", *out.CPU.Quota, *out.CPU.Period)
	}
	if out.Pids != nil {
		t.Errorf("a limit of processes nobody asked for: %+v", out.Pids)
	}
}

func TestCheckResources(t *testing.T) {
	tests := []struct {
		name string
		r    container.Resources
		ok   bool
	}{
		{"nothing", container.Resources{}, true},
		{"least-memory", container.Resources{Memory: MinMemory}, true},
		{"too-little-memory", container.Resources{Memory: MinMemory - 1}, false},
		{"swap-without-memory", container.Resources{MemorySwap: 1 << 30}, false},
		{"less-swap-than-memory", container.Resources{Memory: 64 << 20, MemorySwap: 32 << 20}, false},
		{"any-swap", container.Resources{Memory: 64 << 20, MemorySwap: -1}, true},
		{"more-reserved-than-allowed", container.Resources{Memory: 64 << 20, MemoryReservation: 65 << 20}, false},
		{"two-ways-to-limit-time", container.Resources{NanoCPUs: 1, CPUQuota: 1000}, false},
		{"period-too-short", container.Resources{CPUPeriod: 999}, false},
		{"weight-out-of-range", container.Resources{BlkioWeight: 5}, false},
	}
	for _, tt := range tests {
		if err := CheckResources(tt.r); (err == nil) != tt.ok || err != nil && !errdef.Is(err, errdef.Invalid) {
			t.Errorf("%s: %v, ok %v wanted", tt.name, err, tt.ok)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := MergeEnv([]string{"PATH=/bin", "A=1", "B=2"}, []string{"A=3", "C=4", "B"})
	if want := []string{"PATH=/bin", "A=3", "C=4"}; !reflect.DeepEqual(got, want) {
		t.Errorf("MergeEnv = %v, want %v: the later wins, a name without value removes", got, want)
	}
}

func TestLookUp(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	const group = "root:x:0:\nusers:x:100:user\nuser:x:1000:\ndialout:x:20:\n"
	tests := []struct {
		name string
		add  []string
		want User
		ok   bool
	}{
		{"", nil, User{0, 0, []uint32{0}, "/root"}, true},
		{"user", nil, User{1000, 1000, []uint32{1000, 100}, "/home/user"}, true},
		{"1000:20", nil, User{1000, 20, []uint32{20}, "/home/user"}, true},
		{"user:dialout", nil, User{1000, 20, []uint32{20}, "/home/user"}, true},
		{"4711", []string{"dialout", "77"}, User{4711, 0, []uint32{0, 20, 77}, "/"}, true},
		{"nobody", nil, User{}, false},
		{"user", []string{"nogroup"}, User{}, false},
	}
	for _, tt := range tests {
		got, err := LookUp(tt.name, tt.add, strings.NewReader(passwd), strings.NewReader(group))
		slices.Sort(got.Groups)
		slices.Sort(tt.want.Groups)
		if (err == nil) != tt.ok || tt.ok && !reflect.DeepEqual(got, tt.want) {
			t.Errorf("LookUp(%q, %v) = %+v, %v; want %+v, ok %v", tt.name, tt.add, got, err, tt.want, tt.ok)
		}
	}
}

func FuzzLookUp(f *testing.F) {
	f.Add("user", "user:x:1000:1000::/:/bin/sh\n", "users:x:100:user\n")
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		LookUp(name, []string{name}, strings.NewReader(passwd), strings.NewReader(group))
	})
}

func FuzzParseRule(f *testing.F) {
	f.Add("c 189:* rmw")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRule(text)
		if err == nil && (!r.Allow || r.Access == "") {
			t.Errorf("parseRule(%q) = %+v", text, r)
		}
	})
}
