package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/internal/testdaemon"
)

func TestContainersGetWhatDockersFileSays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	err := os.WriteFile(file, []byte(`{
		"dns": ["192.0.2.53"], "dns-opts": ["timeout:1"], "dns-search": ["example.test"], "host-gateway-ips": ["192.0.2.1", "2001:db8::1"],
		"default-shm-size": "8M", "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 300, "Hard": 400}},
		"init": true, "no-new-privileges": true, "cgroup-parent": "/minke-of-file", "default-ipc-mode": "shareable",
		"max-concurrent-downloads": 1, "storage-driver": "overlay2", "iptables": true, "exec-opts": ["native.cgroupdriver=cgroupfs"], "userland-proxy": false
	}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/minke-of-file") // its owner's, not minked's to remove
		for _, g := range groups {
			if err := os.Remove(g); err != nil {
				t.Error(err)
			}
		}
	})
	d := testdaemon.Start(t, "--config-file", file)
	const look = "cat /etc/resolv.conf; grep host-gw /etc/hosts; df -k /dev/shm | tail -1; ulimit -Sn; ulimit -Hn; cat /proc/1/comm; grep NoNewPrivs /proc/self/status; grep -o minke-of-file /proc/self/cgroup | head -1"
	out := d.Sh(look, container.HostConfig{ExtraHosts: []string{"host-gw:host-gateway"}})
	for _, want := range []string{
		"nameserver 192.0.2.53\n", "options timeout:1\n", "search example.test\n", "192.0.2.1\thost-gw\n2001:db8::1\thost-gw\n",
		"8192", "\n300\n400\n", "docker-init\n", "NoNewPrivs:\t1\n", "minke-of-file\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("in a container that says nothing: no %q in\n%s", want, out)
		}
	}
	off := false
	out = d.Sh(look, container.HostConfig{
		DNS: []netip.Addr{netip.MustParseAddr("192.0.2.54")}, ShmSize: 4 << 20, Init: &off, SecurityOpt: []string{"no-new-privileges=false"},
		Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 200, Hard: 250}}},
	})
	for _, want := range []string{"nameserver 192.0.2.54\n", "4096", "\n200\n250\n", "sh\n", "NoNewPrivs:\t0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("in a container that says otherwise: no %q in\n%s", want, out)
		}
	}
}

func TestWhatIsNotSoIsRefused(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{`{"dns": ["router"]}`, `invalid dns "router"`},
		{`{"default-ulimits": {"nofile": {"Name": "nproc", "Soft": 1, "Hard": 1}}}`, "nofile"},
		{`{"default-ulimits": {"nosuch": {"Soft": 1, "Hard": 1}}}`, "nosuch"},
		{`{"default-shm-size": "much"}`, "much"},
		{`{"default-ipc-mode": "host"}`, "default-ipc-mode"},
		{`{"default-cgroupns-mode": "both"}`, "default-cgroupns-mode"},
		{`{"seccomp-profile": "/nosuch.json"}`, "/nosuch.json"},
		{`{"cgroup-parent": "/../up"}`, "cgroup parent"},
		{`{"max-concurrent-uploads": -1}`, "max-concurrent-uploads"},
		{`{"storage-driver": "btrfs"}`, "storage-driver btrfs"},
		{`{"exec-opts": ["native.cgroupdriver=systemd"]}`, "native.cgroupdriver=systemd"},
		{`{"iptables": false}`, "iptables cannot be switched off"},
		{`{"nosuch": 1}`, "nosuch"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "daemon.json")
			if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := parse([]string{"--config-file", file, "--validate"}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want it refused with %q", err, tt.want)
			}
		})
	}
}
