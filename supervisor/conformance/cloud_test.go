package conformance

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/testfleet"
)

// configJSON is what the device's config.json has now.
func (d *device) configJSON() (c obj) {
	d.t.Helper()
	data, err := os.ReadFile(filepath.Join(d.boot, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// trouble is a fault of polls only.
func trouble(r *http.Request) testfleet.Fault {
	if strings.HasSuffix(r.URL.Path, "/state") && r.Method == http.MethodGet {
		return testfleet.Fault{Status: http.StatusInternalServerError}
	}
	return testfleet.Fault{}
}

// Polls, and the log stream. What takes longer than tests may, intervals above
// all, is in supervisor/cloud, on a clock that is made up.
var pollGroup = group{
	name:  "cloud",
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) { d.settled("a1") },
	checks: []check{
		{63, "polls-are-conditional", func(d *device) {
			since, polls := now(), len(d.fleet.Polls())
			d.is("POST", "/v1/update", `{}`, 204, "")
			d.until("it has polled", func() bool { return len(d.fleet.Polls()) > polls })
			if p := d.fleet.Polls()[polls]; p.Match != `"1"` || p.Answer != 304 {
				d.t.Errorf("poll %+v, want the ETag and no change", p)
			}
			d.settled("a1")
			if list := d.eventsSince(since); len(list) > 0 {
				d.t.Errorf("events %q, want none", list)
			}
		}},
		{64, "after-trouble-it-polls-in-15-seconds", func(d *device) {
			d.fleet.Faults(trouble)
			polls := len(d.fleet.Polls())
			d.is("POST", "/v1/update", `{}`, 204, "")
			want := []time.Duration{15 * time.Second}
			if os.Getenv("MINKE_TEST_DOCKER") != "" { // who has minutes
				want = append(want, 30*time.Second, 60*time.Second)
			}
			for deadline := time.Now().Add(3 * time.Minute); len(d.fleet.Polls()) < polls+len(want)+1 && time.Now().Before(deadline); {
				time.Sleep(100 * time.Millisecond) // it is time that is looked at
			}
			d.fleet.Faults(nil)
			list := d.fleet.Polls()[polls:]
			for i, w := range want {
				if len(list) < i+2 {
					d.t.Fatalf("%d polls", len(list))
				}
				if gap := list[i+1].At.Sub(list[i].At); gap < w-time.Second || gap > w+10*time.Second {
					d.t.Errorf("after %d failures the next poll comes in %v, want %v", i+1, gap, w)
				}
			}
			d.is("POST", "/v1/update", `{}`, 204, "")
			d.until("all is well", func() bool { p := d.fleet.Polls(); return p[len(p)-1].Answer == 304 })
		}},
		{65, "a-new-target-ends-a-download", func(d *device) {
			release := d.images.hold("slow")
			defer release()
			d.deploy(target(nil, fleetApp("a2", func(a *app) { a.services["db"] = service(92, "slow:1", nil) })))
			d.until("it downloads", func() bool { return d.images.waiting("slow") == 1 })
			d.deploy(target(nil, fleetApp("a3")))
			d.settled("a3")
			if d.docker { // dockerd gives the pull up, and keeps its connection
				return
			}
			d.until("the download has ended", func() bool { return d.images.waiting("slow") == 0 })
		}},
		{68, "a-wrong-target-is-refused", func(d *device) {
			web := d.id("web")
			d.deploy(target(nil, fleetApp("a4", func(a *app) { a.services["we b"] = service(91, "garden:9", nil) })))
			d.until("people learn why", func() bool { return d.fleet.Heard("Could not move to new release: ") && d.fleet.Heard("we b") })
			if d.id("web") != web || d.state("web") != "running" {
				d.t.Error("the release before does not run on")
			}
			d.deploy(target(nil, fleetApp("a3")))
			d.settled("a3")
		}},
		{70, "logs-are-a-stream-of-lines-of-JSON", func(d *device) {
			d.exec(d.id("db"), `( head -c 12000 /dev/zero | tr '\0' x; echo; echo to-err >&2 ) >/proc/1/fd/1 2>/proc/1/fd/2`)
			d.until("the lines are there", func() bool { return d.fleet.Heard("to-err") })
			h := d.fleet.LogHeaders()
			if h.Get("Content-Encoding") != "gzip" || h.Get("Content-Type") != "application/x-ndjson" {
				d.t.Errorf("headers %v", h)
			}
			for _, l := range d.fleet.Lines() {
				switch {
				case strings.HasPrefix(l.Message, "xxx") && (len(l.Message) != 10_000 || !strings.HasSuffix(l.Message, "[...]")):
					d.t.Errorf("a line of 12,000 letters came as %d that end with %q", len(l.Message), l.Message[max(0, len(l.Message)-9):])
				case l.Message == "to-err" && (!l.IsStdErr || l.ServiceID != 92 || l.Timestamp < 1e12 || l.IsSystem):
					d.t.Errorf("line %+v", l)
				case l.Message == "Supervisor starting" && (!l.IsSystem || l.ServiceID != 0):
					d.t.Errorf("line %+v", l)
				}
			}
			if !d.fleet.Heard("Started service 'web ") || !d.fleet.Heard("xxx") {
				d.t.Error("lines are missing")
			}
		}},
	},
}

// services are what is reported of a release.
func (d *device) services(commit string) obj {
	list, _ := d.fleet.Reported("apps", "deadbeef01", "releases", commit, "services").(obj)
	return list
}

// Reports of the current state.
var reportGroup = group{
	name:  "reports",
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) {
		d.settled("a1")
		d.until("the release is reported", func() bool { return d.fleet.Reported("apps", "deadbeef01", "release_uuid") == "a1" })
	},
	checks: []check{
		{67, "an-update-is-reported-step-by-step", func(d *device) {
			release := d.images.hold("slow")
			defer release()
			d.sh("web", "touch /tmp/balena/updates.lock")
			d.deploy(target(nil, fleetApp("a2", func(a *app) {
				a.services["db"] = service(92, "slow:1", obj{"labels": obj{"io.balena.update.strategy": "hand-over"}})
			})))
			reported := func(what string) {
				d.t.Helper()
				d.until(what+" is reported", func() bool {
					return d.fleet.Reported("apps", "deadbeef01", "releases", "a2", "update_status") == what
				})
			}
			reported("downloading")
			if got, want := d.services("a1"), (obj{
				"web": obj{"image": d.images.fill("REGISTRY/garden:1"), "status": "Running"}, "db": obj{"image": d.images.fill("REGISTRY/garden:1"), "status": "Running"},
			}); !reflect.DeepEqual(got, want) {
				d.t.Errorf("of the release that runs meanwhile %v is reported, want %v", got, want)
			}
			release()
			reported("downloaded")
			if got := d.fleet.Reported("apps", "deadbeef01", "release_uuid"); got != "a1" {
				d.t.Errorf("before the update has ended release_uuid is %v", got)
			}
			d.sh("web", "rm /tmp/balena/updates.lock")
			reported("applying changes")
			if old, next := d.services("a1"), d.services("a2"); len(old) != 1 || old["db"].(obj)["status"] != "Handing over" || next["db"].(obj)["status"] != "Awaiting handover" || next["web"].(obj)["status"] != "Running" {
				d.t.Errorf("during a hand-over %v of the old release and %v of the new one are reported", old, next)
			}
			d.exec(d.containers("db")[1].ID, "touch /tmp/balena/handover-complete")
			reported("done")
			if got := d.fleet.Reported("apps", "deadbeef01", "release_uuid"); got != "a2" {
				d.t.Errorf("release_uuid is %v", got)
			}
			if got := d.services("a1"); got != nil {
				d.t.Errorf("of the old release %v is reported", got)
			}
		}},
		{66, "reports-are-10-seconds-apart-and-say-what-changed", func(d *device) {
			list := d.fleet.Reports()
			if len(list) < 4 {
				d.t.Fatalf("%d reports", len(list))
			}
			for i := 1; i < len(list); i++ {
				if gap := list[i].At.Sub(list[i-1].At); gap < 9500*time.Millisecond {
					d.t.Errorf("report %d comes %v after the one before", i, gap)
				}
				for _, fixed := range []string{"os_version", "supervisor_version", "api_port", "mac_address"} {
					if _, again := list[i].State[fixed]; again {
						d.t.Errorf("report %d has %s again", i, fixed)
					}
				}
				if apps, ok := list[i].State["apps"].(obj); ok && len(apps) != 1 {
					d.t.Errorf("report %d has the applications %v", i, apps)
				}
			}
		}},
		{80, "tags-are-kept-until-they-are-delivered", func(d *device) {
			d.fleet.Faults(testfleet.Away)
			d.is("PATCH", "/v2/device/tags", `{"place":"porch"}`, 202, `{"status":"success"}`)
			d.has("GET", "/v2/device/tags", "", 500, `"status":"failed"`)
			d.down()
			d.up()
			d.fleet.Faults(nil)
			d.until("the server has the tag", func() bool { return d.fleet.Tags()["place"] == "porch" })
			d.is("GET", "/v2/device/tags", "", 200, `{"status":"success","tags":[{"id":1,"name":"place","value":"porch"}]}`)
			d.has("PATCH", "/v2/device/tags", `{"a b":"c"}`, 400, `"status":"failed"`)
		}},
	},
}

// A device that the server knows, by another key.
var knownGroup = group{
	name:  "registration",
	setup: setup{managed: true, knows: true, wants: target(nil, fleetApp("a1"))},
	checks: []check{
		{69, "a-device-registers-or-exchanges-its-key", func(d *device) {
			d.settled("a1")
			c := d.configJSON()
			if c["apiKey"] != nil || c["deviceId"] != float64(testfleet.DeviceID) || c["registered_at"] == nil || len(c["deviceApiKey"].(string)) != 32 {
				d.t.Errorf("config.json = %v", c)
			}
			if d.fleet.Registered() != nil {
				d.t.Error("it has registered")
			}
			d.t.Run("a-new-one", func(t *testing.T) { newDeviceRegisters(t, d) })
		}},
	},
}

// newDeviceRegisters makes the same device a new one, of another server.
func newDeviceRegisters(t *testing.T, d *device) {
	old := d.fleet
	d.down()
	d.fleet = testfleet.Start(t, d.listen())
	defer func() { d.fleet = old }()
	d.wants(target(nil, fleetApp("a1")))
	uuid := strings.Repeat("fedcba9876543210", 2)
	d.write(filepath.Join(d.boot, "config.json"), jsonOf(obj{"uuid": uuid, "apiEndpoint": d.fleet.URL, "apiKey": testfleet.Provisioning, "applicationId": 5, "deviceType": "generic-amd64", "mine": 1}))
	d.up()
	d.until("it has registered", func() bool { return d.fleet.Registered() != nil })
	d.until("the target runs", func() bool { return d.fleet.Reported("apps", "deadbeef01", "release_uuid") == "a1" })
	c, r := d.configJSON(), d.fleet.Registered()
	if r["application"] != 5.0 || r["uuid"] != uuid || r["device_type"] != "generic-amd64" || r["api_key"] != c["deviceApiKey"] || r["supervisor_version"] == nil {
		t.Errorf("registered %v", r)
	}
	if c["apiKey"] != nil || c["deviceId"] != float64(testfleet.DeviceID) || c["registered_at"] == nil || c["mine"] != 1.0 {
		t.Errorf("config.json = %v", c)
	}
}
