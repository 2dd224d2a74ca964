package supervisor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testbus"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor"
)

func TestTheDeviceIsRebootedAndNamed(t *testing.T) {
	testenv.NeedRoot(t) // update locks
	t.Parallel()
	bus, systemd := testbus.Start(t)
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{SystemBus: bus})
	key := "?apikey=" + m.global

	lock := filepath.Join(m.tmp, "services", "1", "web", "updates.lock")
	if err := os.MkdirAll(filepath.Dir(lock), 0o755); err != nil {
		t.Fatal(err)
	}
	m.until("the first release has settled, and locks are given back", func() bool {
		_, text := m.call("GET", "/v2/state/status"+key, "")
		_, err := os.Stat(lock)
		return err != nil && strings.Contains(text, `"appState":"applied"`)
	})
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m.is("POST", "/v1/reboot"+key, `{}`, 423, `{"Data":"","Error":"Lockfile exists for { appId: 1, service: web }"}`)
	m.is("PATCH", "/v1/device/host-config"+key, `{"network":{"hostname":"porch"}}`, 423, `Lockfile exists for { appId: 1, service: web }`)
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}

	m.is("GET", "/v2/device/vpn"+key, "", 200, `{"status":"success","vpn":{"enabled":true,"connected":false}}`)
	m.is("PATCH", "/v1/device/host-config"+key, `{"network":{"hostname":"porch","proxy":{"type":"socks5","ip":"192.0.2.1","port":1080,"login":"me","password":"a b#c","noProxy":["192.0.2.0/24"],"dns":true}}}`, 200, "OK")
	const proxied = `{"network":{"hostname":"porch","proxy":{"type":"socks5","ip":"192.0.2.1","port":1080,"login":"me","password":"a b#c","dns":"8.8.8.8:53","noProxy":["192.0.2.0/24"]}}}`
	m.is("GET", "/v1/device/host-config"+key, "", 200, proxied)
	if got := m.config()["hostname"]; got != "porch" {
		t.Errorf("hostname in config.json = %v, want porch", got)
	}
	if !systemd.Called("restart redsocks.service fail") {
		t.Error("systemd was not asked to restart redsocks")
	}
	for body, want := range map[string]string{
		`{}`:                                         "Could not parse host config input to a valid format: network is missing",
		`{"network":{"hostname":"no good"}}`:         "network.hostname: want letters, digits and hyphens, not no good",
		`{"network":{"proxy":"none"}}`:               "network.proxy: want an object; {} removes the proxy",
		`{"network":{"proxy":{"dns":7}}}`:            "network.proxy: dns: want true, false or an address such as 8.8.8.8:53",
		`{"network":{"proxy":{"type":"telepathy"}}}`: "",
		`{"network":{"proxy":{"password":"a\nb"}}}`:  "",
	} {
		code, got := m.call("PATCH", "/v1/device/host-config"+key, body)
		if code != 400 || want != "" && got != want {
			t.Errorf("host-config %s = %d %s, want 400 %s", body, code, got, want)
		}
	}
	m.is("GET", "/v1/device/host-config"+key, "", 200, proxied)
	conf := filepath.Join(m.boot, "system-proxy", "redsocks.conf")
	byHand := "# by hand\nredsocks { \n type = socks5;\n ip = 192.0.2.1;\n port = 1080;\n splice = on;\n}\n"
	if err := os.WriteFile(conf, []byte(byHand), 0o644); err != nil {
		t.Fatal(err)
	}
	systemd.PartOf("redsocks-conf.target")
	m.is("PATCH", "/v1/device/host-config"+key, `{"network":{"proxy":{"noProxy":["example.com"]}}}`, 200, "OK")
	if got, err := os.ReadFile(conf); err != nil || string(got) != byHand {
		t.Errorf("redsocks.conf after a change of exceptions is %q, %v; want what was there", got, err)
	}
	if systemd.Called("restart redsocks.service fail") {
		t.Error("a unit is restarted that the host restarts itself")
	}
	m.is("GET", "/v1/device/host-config"+key, "", 200, `{"network":{"hostname":"porch","proxy":{"type":"socks5","ip":"192.0.2.1","port":1080,"noProxy":["example.com"]}}}`)
	m.is("PATCH", "/v1/device/host-config"+key, `{"network":{"proxy":{}}}`, 200, "OK")
	m.is("GET", "/v1/device/host-config"+key, "", 200, `{"network":{"hostname":"porch"}}`)
	m.is("PATCH", "/v1/device/host-config"+key, `{"network":{"hostname":""}}`, 200, "OK")
	m.is("GET", "/v1/device/host-config"+key, "", 200, `{"network":{"hostname":"`+m.config()["uuid"].(string)[:7]+`"}}`)

	m.is("POST", "/v1/reboot"+key, `{}`, 202, `{"Data":"OK","Error":null}`)
	m.until("logind reboots", func() bool { return systemd.Called("reboot false") })
	m.is("POST", "/v1/shutdown"+key, `{"force":true}`, 202, `{"Data":"OK","Error":null}`)
	m.until("logind powers off", func() bool { return systemd.Called("power off false") })
}

func TestAServiceWithTheLabelReboots(t *testing.T) {
	testenv.NeedRoot(t)
	t.Parallel()
	bus, systemd := testbus.Start(t)
	m := manage(t, release("c1", "garden:1", `"io.balena.features.supervisor-api":"1","io.minke.features.device-control":"1"`, ""), supervisor.Config{SystemBus: bus})
	m.is("POST", "/v1/reboot?apikey="+m.stored().Keys["1/web"], `{}`, 202, `{"Data":"OK","Error":null}`)
	m.until("logind reboots", func() bool { return systemd.Called("reboot false") })
}
