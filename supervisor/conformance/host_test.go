package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What of the host the API shows and changes, with logind and systemd on a bus.
var hostGroup = group{
	name:  "host",
	bus:   true,
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) { d.settled("a1") },
	checks: []check{
		{75, "the-host's-name-and-proxy", func(d *device) {
			const path = "/v1/device/host-config"
			d.is("PATCH", path, `{"network":{"hostname":"porch","proxy":{"type":"socks5","ip":"192.0.2.1","port":1080,"login":"me","password":"pw","dns":true,"noProxy":["192.0.2.0/24"]}}}`, 200, "OK")
			d.is("GET", path, "", 200, `{"network":{"hostname":"porch","proxy":{"type":"socks5","ip":"192.0.2.1","port":1080,"login":"me","password":"pw","dns":"8.8.8.8:53","noProxy":["192.0.2.0/24"]}}}`)
			if got := d.configJSON()["hostname"]; got != "porch" {
				d.t.Errorf("hostname in config.json = %v", got)
			}
			d.is("PATCH", path, `{"network":{"hostname":"","proxy":{}}}`, 200, "OK")
			d.is("GET", path, "", 200, `{"network":{"hostname":"0123456"}}`)
			d.has("PATCH", path, `{}`, 400)
			d.has("PATCH", path, `{"network":{"proxy":{"dns":"nonsense"}}}`, 400)
			d.sh("web", "touch /tmp/balena/updates.lock")
			d.has("PATCH", path, `{"network":{"hostname":"x"}}`, 423, "service: web")
			d.is("PATCH", path, `{"network":{"hostname":""},"force":true}`, 200, "OK")
		}},
		{76, "variables-become-lines-of-config.txt", func(d *device) {
			reboots := d.reboots()
			file := filepath.Join(d.boot, "config.txt")
			d.write(filepath.Join(d.boot, "device-type.json"), `{"slug":"raspberrypi4-64","arch":"aarch64"}`)
			d.write(file, "enable_uart=1\n")
			d.down()
			d.up()
			d.deploy(target(obj{"BALENA_HOST_CONFIG_dtoverlay": `"vc4-kms-v3d","i2c-rtc,ds1307"`, "BALENA_HOST_CONFIG_gpu_mem": "16"}, fleetApp("a1")))
			d.until("the file has them", func() bool {
				data, _ := os.ReadFile(file)
				text := string(data)
				return strings.Contains(text, "dtoverlay=vc4-kms-v3d\n") && strings.Contains(text, "dtoverlay=i2c-rtc\ndtparam=ds1307") && strings.Contains(text, "gpu_mem=16")
			})
			d.until("logind reboots", func() bool { return d.reboots() > reboots })
			d.deploy(target(obj{"BALENA_HOST_CONFIG_kernel": "mine.img"}, fleetApp("a1")))
			d.until("people learn of a forbidden one", func() bool { return d.fleet.Heard("Attempt to change blacklisted config value kernel") })
			if data, _ := os.ReadFile(file); strings.Contains(string(data), "mine.img") {
				d.t.Errorf("config.txt = %s", data)
			}
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
		}},
		{77, "the-firewall-follows-its-mode", func(d *device) {
			rules := func() string {
				var out []byte
				err := d.host.InNetNS(func() (err error) { out, err = exec.Command("nft", "list", "ruleset").Output(); return err })
				if err != nil {
					d.t.Skip("needs nft: ", err)
				}
				return string(out)
			}
			if off := rules(); !strings.Contains(off, "48484") {
				d.t.Errorf("switched off, other interfaces must not reach the API: %s", off)
			}
			d.deploy(target(obj{"BALENA_HOST_FIREWALL_MODE": "on"}, fleetApp("a1")))
			d.until("it is on", func() bool { return strings.Contains(rules(), "22222") })
			d.deploy(target(obj{"BALENA_HOST_FIREWALL_MODE": "auto"}, fleetApp("a1")))
			d.until("it is off, for nobody uses the host's network", func() bool { return !strings.Contains(rules(), "22222") })
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
		}},
		{79, "persistent-logging-reboots-after-the-update", func(d *device) {
			reboots := d.reboots()
			d.deploy(target(obj{"RESIN_SUPERVISOR_PERSISTENT_LOGGING": "1"}, fleetApp("a1")))
			d.until("config.json has it", func() bool { return d.configJSON()["persistentLogging"] == true })
			d.until("logind reboots", func() bool { return d.reboots() > reboots })
		}},
		{35, "an-update-of-the-host-holds-a-reboot", func(d *device) {
			breadcrumb := filepath.Join(d.mntState, "rollback-health-breadcrumb")
			d.write(breadcrumb, "")
			d.deploy(target(obj{"RESIN_SUPERVISOR_OVERRIDE_LOCK": "1"}, fleetApp("a1")))
			d.has("POST", "/v1/reboot", `{}`, 423, "Waiting for Host OS update to finish")
			d.has("POST", "/v1/shutdown", `{}`, 423, "Waiting for Host OS update to finish")
			d.is("POST", "/v1/shutdown", `{"force":true}`, 202, `{"Data":"OK","Error":null}`)
			d.until("logind powers off", func() bool { return d.logind.Called("power off false") })
			os.Remove(breadcrumb)
		}},
		{28, "a-reboot-is-asked-of-logind", func(d *device) {
			reboots := d.reboots()
			d.is("POST", "/v1/reboot", `{}`, 202, `{"Data":"OK","Error":null}`)
			d.until("logind reboots", func() bool { return d.reboots() > reboots })
		}},
	},
}

// reboots is how often logind was asked for one.
func (d *device) reboots() (n int) {
	for _, c := range d.logind.Calls() {
		if c == "reboot false" {
			n++
		}
	}
	return n
}
