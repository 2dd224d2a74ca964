package supervisor_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testbus"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/internal/testfleet"
	"github.com/minke-os/minke/supervisor"
)

func TestVariablesSetTheHostAndItReboots(t *testing.T) {
	testenv.NeedRoot(t) // update locks
	t.Parallel()
	bus, systemd := testbus.Start(t)
	boot := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(boot, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("device-type.json", `{"slug":"raspberrypi4-64","arch":"aarch64"}`)
	put("config.txt", "# ours\nenable_uart=1\n")
	configTxt := func() string {
		data, err := os.ReadFile(filepath.Join(boot, "config.txt"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{SystemBus: bus, BootDir: boot})
	m.until("the first release has settled", func() bool { return m.f.Reported("apps", "aaaa", "release_uuid") == "c1" })
	if got := m.config()["persistentLogging"]; got != true || configTxt() != "# ours\nenable_uart=1\n" || systemd.Called("reboot false") {
		t.Fatalf("without variables persistentLogging is %v, config.txt %q; want the host as it was, and no reboot", got, configTxt())
	}

	m.until("the server knows how the device came", func() bool {
		return slices.Equal(m.f.Variables(), []string{"RESIN_HOST_CONFIG_enable_uart=1", "RESIN_SUPERVISOR_PERSISTENT_LOGGING=true"})
	})

	lock := filepath.Join(m.tmp, "services", "1", "web", "updates.lock")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const first = `"RESIN_SUPERVISOR_PERSISTENT_LOGGING":"0","RESIN_HOST_CONFIG_gpu_mem":"16","RESIN_SUPERVISOR_VPN_CONTROL":"0","RESIN_HOST_DISCOVERABILITY":"1","RESIN_SUPERVISOR_POLL_INTERVAL":"600000"`
	m.f.Wants(release("c1", "garden:1", "", first))
	m.update()
	m.until("a held lock delays the reboot", func() bool { return m.f.Heard("Waiting to reboot: Lockfile exists for { appId: 1, service: web }") })
	if got := m.config(); got["persistentLogging"] != false || got["appUpdatePollInterval"] != 600000.0 || configTxt() != "gpu_mem=16\n# ours\nenable_uart=1\n" {
		t.Errorf("config.json is %v, config.txt %q; want what the variables say", got, configTxt())
	}
	if !systemd.Called("stop openvpn.service fail") || systemd.Called("start avahi-daemon.service fail") {
		t.Errorf("systemd was asked for %q, want a stop of openvpn alone", systemd.Calls())
	}
	if systemd.Called("reboot false") {
		t.Error("the host reboots although a service holds its lock")
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	m.update()
	m.until("it reboots", func() bool { return systemd.Called("reboot false") })

	systemd.PartOf("") // forgets the calls; openvpn is active again, by itself
	m.f.Wants(release("c1", "garden:1", "", first+`,"RESIN_SUPERVISOR_LOG_CONTROL":"1"`))
	m.update()
	m.until("people learn that the VPN is left alone for an hour", func() bool { return m.f.Heard("The VPN is switched once an hour at most; it will be in 1h0m0s") })
	if systemd.Called("stop openvpn.service fail") {
		t.Error("openvpn is stopped twice within an hour")
	}
	lines := len(m.f.Lines())
	m.restart()
	m.until("a restart has not forgotten that", func() bool {
		return slices.ContainsFunc(m.f.Lines()[lines:], func(l testfleet.Line) bool {
			return strings.Contains(l.Message, "The VPN is switched once an hour at most")
		})
	})
	if systemd.Called("stop openvpn.service fail") {
		t.Error("openvpn is stopped twice within an hour, after a restart")
	}
	m.f.Wants(release("c1", "garden:1", "", `"RESIN_HOST_CONFIG_kernel":"mine","RESIN_SUPERVISOR_POLL_INTERVAL":"600000"`))
	m.update()
	m.until("people learn of a forbidden key", func() bool { return m.f.Heard("Attempt to change blacklisted config value kernel") })
	if _, text := m.call("GET", "/v2/state/status?apikey="+m.global, ""); !strings.Contains(text, "blacklisted config value kernel") {
		t.Errorf("/v2/state/status = %s, want the reason", text)
	}
	m.f.Wants(release("c2", "garden:2", "", `"RESIN_SUPERVISOR_POLL_INTERVAL":"600000"`))
	m.update()
	m.until("the next release runs", func() bool { return m.running()["web"] == "garden:2" })
	m.until("what no variable sets any more goes", func() bool { return configTxt() == "# ours\nenable_uart=1\n" })
	m.f.Wants(release("c2", "garden:2", "", ""))
	m.update()
	m.until("so does the interval of polls", func() bool { return m.config()["appUpdatePollInterval"] == nil })
}

func TestPowerAndFanOfAnOrin(t *testing.T) {
	testenv.NeedRoot(t) // update locks
	t.Parallel()
	bus, systemd := testbus.Start(t)
	boot := t.TempDir()
	if err := os.WriteFile(filepath.Join(boot, "device-type.json"), []byte(`{"slug":"jetson-agx-orin-devkit"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{SystemBus: bus, BootDir: boot})
	system := func() string {
		text, err := json.Marshal(m.config()["os"])
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, tt := range []struct{ config, want string }{
		{`"RESIN_HOST_CONFIG_fan_profile":"cool"`, `{"fan":{"profile":"cool"}}`},
		{`"RESIN_HOST_CONFIG_fan_profile":"quiet","RESIN_HOST_CONFIG_power_mode":"low"`, `{"fan":{"profile":"quiet"},"power":{"mode":"low"}}`},
		{"", `{"fan":{},"power":{}}`},
	} {
		m.f.Wants(release("c1", "garden:1", "", tt.config))
		m.update()
		m.until("config.json has "+tt.want, func() bool { return system() == tt.want })
		if tt.config == `"RESIN_HOST_CONFIG_fan_profile":"cool"` && systemd.Called("reboot false") {
			t.Error("the host reboots for its fan")
		}
	}
	m.until("it reboots for its power mode", func() bool { return systemd.Called("reboot false") })
}

// What a Jetson TX2 and an UP board take beside files, on a host of files.
func TestPartitionsAndTablesOfTheHostAreSet(t *testing.T) {
	testenv.NeedRoot(t) // update locks
	t.Parallel()
	for _, tt := range []struct {
		device, variable, value, wrong, problem string
		made                                    string // when it is set
		reported                                string // how the device came
	}{
		{"jetson-tx2", "HOST_ODMDATA_configuration", "3", "9", "want a number from 1 to 6", "dev/mmcblk0boot0", "RESIN_HOST_ODMDATA_configuration=1"},
		{"up-board", "HOST_CONFIGFS_ssdt", "i2c1", "i2c9", `has no table "i2c9"`, "sys/kernel/config/acpi/table/i2c1/aml", ""},
	} {
		t.Run(tt.device, func(t *testing.T) {
			t.Parallel()
			bus, systemd := testbus.Start(t)
			root, boot := t.TempDir(), t.TempDir()
			for path, text := range map[string]string{
				filepath.Join(boot, "device-type.json"):                       `{"slug":"` + tt.device + `"}`,
				filepath.Join(root, "dev/mmcblk0boot0"):                       strings.Repeat("\x00", 20000),
				filepath.Join(root, "sys/block/mmcblk0boot0/force_ro"):        "1",
				filepath.Join(root, "boot/acpi-tables/i2c1.aml"):              "SSDT",
				filepath.Join(root, "sys/kernel/config/acpi/table/other/aml"): "SSDT",
			} {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{SystemBus: bus, BootDir: boot, HostRoot: root})
			if tt.reported != "" {
				m.until("the server knows how the device came", func() bool { return slices.Contains(m.f.Variables(), tt.reported) })
			}
			m.f.Wants(release("c1", "garden:1", "", `"RESIN_`+tt.variable+`":"`+tt.wrong+`"`))
			m.update()
			m.until("people learn that it is wrong", func() bool { return m.f.Heard(tt.problem) })
			if systemd.Called("reboot false") {
				t.Error("the host reboots for a wrong value")
			}
			m.f.Wants(release("c1", "garden:1", "", `"RESIN_`+tt.variable+`":"`+tt.value+`"`))
			m.update()
			m.until("it reboots", func() bool { return systemd.Called("reboot false") })
			m.restart()
			if data, err := os.ReadFile(filepath.Join(root, tt.made)); err != nil || string(data) == strings.Repeat("\x00", 20000) {
				t.Errorf("after the next start %s is as it was, %v", tt.made, err)
			}
		})
	}
}
