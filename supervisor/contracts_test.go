package supervisor_test

import (
	"strings"
	"testing"

	"github.com/minke-os/minke/supervisor"
)

// asking is release with a contract for web, and one for db.
func asking(commit, image, web, db, dbLabels string) string {
	t := release(commit, image, "", "")
	t = strings.Replace(t, `"web":{`, `"web":{"contract":`+web+`,`, 1)
	return strings.Replace(t, `"db":{"id":2,"image_id":12,"image":"`+image+`","environment":{},"labels":{}`,
		`"db":{"contract":`+db+`,"id":2,"image_id":12,"image":"`+image+`","environment":{},"labels":{`+dbLabels+`}`, 1)
}

func TestAReleaseThatThisDeviceCannotRunIsRefusedAndTheOneBeforeGoesOn(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	const (
		here  = `{"requires":[{"type":"hw.device-type","slug":"generic-amd64"},{"type":"sw.kernel","version":">=3"},{"type":"sw.supervisor","version":">=12"}]}`
		wings = `{"requires":[{"type":"hw.device-type","slug":"jetson-nano"}]}`
		why   = "Some releases were rejected due to having unmet requirements: release c2 of garden: web needs hw.device-type jetson-nano (this device has generic-amd64)"
	)
	m := manage(t, asking("c1", "garden:1", here, `{}`, ""), supervisor.Config{})
	m.until("the first release has settled", func() bool { return m.f.Reported("apps", "aaaa", "release_uuid") == "c1" })
	containers := m.ids()

	m.f.Wants(asking("c2", "garden:2", wings, `{}`, ""))
	m.update()
	m.until("people learn why", func() bool { return m.f.Heard(why) })
	m.until("the server learns it", func() bool {
		return m.f.Reported("apps", "aaaa", "releases", "c2", "update_status") == "rejected"
	})
	if got := m.f.Reported("apps", "aaaa", "releases", "c1", "services", "web", "status"); got != "Running" {
		t.Errorf("web of the release before is reported as %v, want Running", got)
	}
	if got := m.f.Reported("apps", "aaaa", "release_uuid"); got != "c1" {
		t.Errorf("the release is reported as %v, want c1", got)
	}
	if got := m.ids(); got != containers {
		t.Errorf("containers became %s, want none touched: %s", got, containers)
	}
	_, status := m.call("GET", "/v2/state/status?apikey="+m.global, "")
	if !strings.Contains(status, why) || !strings.Contains(status, `"release":"c1"`) {
		t.Errorf("status %s, want c1 and the reason", status)
	}
	// The other application moves on, and the release before is whole: after a
	// restart of the supervisor it can be made anew.
	m.stop()
	m.f.Wants("not JSON")
	m.restart()
	m.is("POST", "/v1/restart?apikey="+m.global, `{"appId":1}`, 200, "OK")
	if got := m.running(); got["web"] != "garden:1" || got["db"] != "garden:1" {
		t.Errorf("running = %v after a restart, want the release before", got)
	}

	m.f.Wants(asking("c3", "garden:3", here, wings, `"io.balena.features.optional":"1"`))
	m.update()
	m.until("a release runs without its optional service", func() bool {
		got := m.running()
		return got["web"] == "garden:3" && got["db"] == ""
	})
	m.until("people learn what is left out", func() bool {
		return m.f.Heard("Not running containers because of contract violations: db needs hw.device-type jetson-nano")
	})
	m.until("the server knows the release", func() bool { return m.f.Reported("apps", "aaaa", "release_uuid") == "c3" })
}

func TestContainersOfANewDevicesOnlyReleaseAreLeftAloneWhenItIsRefused(t *testing.T) {
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	containers := m.ids()
	m.stop()
	m.f.Wants(asking("c2", "garden:2", `{"requires":[{"type":"sw.l4t"}]}`, `{}`, ""))
	// As after another supervisor: what runs is all that is known.
	m.dir = t.TempDir()
	m.device = startWith(t, supervisor.Config{Engine: m.engine, Dir: m.dir, HostTmp: m.tmp, BootDir: m.boot})
	m.global = m.stored().GlobalKey
	m.until("people learn why", func() bool { return m.f.Heard("web needs sw.l4t (this device has none)") })
	m.until("it has settled", func() bool {
		_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
		return strings.Contains(body, `"appState":"applied"`)
	})
	if got := m.ids(); got != containers {
		t.Errorf("containers became %s, want %s", got, containers)
	}
	for _, request := range []string{"/v1/restart", "/v1/purge"} {
		code, text := m.call("POST", request+"?apikey="+m.global, `{"appId":1}`)
		if code < 400 || !strings.Contains(text, "stays as it is") || m.ids() != containers {
			t.Errorf("%s = %d %s, want a refusal that touches nothing", request, code, text)
		}
	}
}

func TestAPostedReleaseThatThisDeviceCannotRunIsRefusedAtOnce(t *testing.T) {
	d := start(t, newFake("web:1"), t.TempDir(), t.TempDir())
	code, text := d.call("POST", "/v2/local/target-state", `{"local":{"apps":{"1":{"name":"app","commit":"c1","services":{
		"1":{"serviceName":"web","image":"web:1","contract":{"requires":[{"type":"sw.supervisor","version":"<2"}]}}}}}}}`)
	if code != 400 || !strings.Contains(text, "web needs sw.supervisor <2 (this device has 19.0.5)") {
		t.Errorf("a posted target = %d %s, want 400 with the reason", code, text)
	}
}
