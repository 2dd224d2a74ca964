package host

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// write makes files under a root.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetersOfAPi(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"proc/stat":                            "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1\n",
		"proc/meminfo":                         "MemTotal: 1048576 kB\nMemFree: 524288 kB\nBuffers: 1024 kB\nCached: 102400 kB\nSReclaimable: 1024 kB\n",
		"proc/device-tree/serial-number":       "10000000ABCD\x00",
		"sys/class/thermal/thermal_zone0/temp": "48700\n",
		"sys/devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon0/in0_lcrit_alarm": "1\n",
	})
	h := New(Options{Root: root})
	want := map[string]any{
		"cpu_usage": 20, "cpu_temp": 49, "cpu_id": "10000000abcd", "memory_usage": 410, "memory_total": 1024, "is_undervolted": true,
	}
	if got := h.Metrics(); !maps.Equal(got, want) {
		t.Errorf("Metrics = %v, want %v", got, want)
	}
	write(t, root, map[string]string{"proc/stat": "cpu  175 0 100 825 0 0 0 0 0 0\n"})
	if got := h.Metrics()["cpu_usage"]; got != 75 {
		t.Errorf("cpu_usage since the last reading = %v, want 75", got)
	}
}

func TestAHostWithoutMetersHasNone(t *testing.T) {
	if got := New(Options{Root: t.TempDir()}).Metrics(); len(got) != 1 || got["is_undervolted"] != false {
		t.Errorf("Metrics = %v, want only that it is not undervolted", got)
	}
}

func TestAProxyWrittenByHandIsRead(t *testing.T) {
	boot := t.TempDir()
	write(t, boot, map[string]string{
		"system-proxy/redsocks.conf": "base {\nlog = stderr;\n}\nredsocks {\n  type = http-connect;\nip=192.0.2.7;\n  port = 3128;\n\tlogin = \"a;b\";\n}\ndnsu2t {\nremote_ip = 9.9.9.9;\nremote_port = 53;\n}\n",
		"system-proxy/no_proxy":      "example.com\n192.0.2.0/24\n",
	})
	p, ok, err := New(Options{BootDir: boot}).Proxy()
	if !ok || err != nil || p.Type != "http-connect" || p.IP != "192.0.2.7" || p.Port != 3128 || p.Login != "a;b" || p.DNS != "9.9.9.9:53" || len(p.NoProxy) != 2 {
		t.Errorf("Proxy = %+v, %v, %v", p, ok, err)
	}
}

func TestAnUpdateOfTheHostThatWaitsIsSeen(t *testing.T) {
	state := t.TempDir()
	h := New(Options{State: state})
	if h.Updating() {
		t.Error("an untouched host waits for an update")
	}
	write(t, state, map[string]string{"rollback-health-breadcrumb": ""})
	if !h.Updating() {
		t.Error("a host with a breadcrumb does not wait")
	}
}

func TestTheKernelIsRead(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"proc/sys/kernel/ostype": "Linux\n", "proc/sys/kernel/osrelease": "4.9.140-l4t-r32.2\n"})
	if name, release := New(Options{Root: root}).Kernel(); name != "Linux" || release != "4.9.140-l4t-r32.2" {
		t.Errorf("Kernel = %q, %q", name, release)
	}
}
