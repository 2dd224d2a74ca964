package conformance

import (
	"regexp"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/testfleet"
)

// What the API answers, and what its actions do.
var httpGroup = group{
	name:  "http",
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"), shed)},
	begin: func(d *device) { d.settled("a1", "5ed") },
	checks: []check{
		{1, "ping-needs-no-key", func(d *device) {
			if got := d.ask("GET", "/ping", ""); got != (answer{200, "OK"}) {
				d.t.Errorf("ping = %v", got)
			}
		}},
		{2, "health-needs-no-key", func(d *device) {
			if got := d.ask("GET", "/v1/healthy", ""); got.status != 200 && got.status != 500 {
				d.t.Errorf("healthy = %v", got)
			}
		}},
		{3, "the-rest-needs-one-in-any-of-three-places", func(d *device) {
			if got := d.ask("GET", "/v2/version", ""); got != (answer{401, "Unauthorized"}) {
				d.t.Errorf("without a key: %v", got)
			}
			for place, got := range map[string]answer{
				"query":  d.ask("GET", "/v2/version?apikey="+d.key, ""),
				"Bearer": d.ask("GET", "/v2/version", "", "Authorization", "Bearer "+d.key),
				"apikey": d.ask("GET", "/v2/version", "", "Authorization", "apikey "+d.key),
			} {
				if got.status != 200 || !strings.Contains(got.body, `"status":"success","version":`) {
					d.t.Errorf("key in %s: %v", place, got)
				}
			}
		}},
		{4, "the-key-in-the-query-wins", func(d *device) {
			if got := d.ask("GET", "/v2/version?apikey=wrong", "", "Authorization", "Bearer "+d.key); got.status != 401 {
				d.t.Errorf("a wrong key in the query and the right one in the header: %v", got)
			}
			if got := d.ask("GET", "/v2/version?apikey="+d.key, "", "Authorization", "Bearer wrong"); got.status != 200 {
				d.t.Errorf("the right key in the query and a wrong one in the header: %v", got)
			}
		}},
		{5, "an-unknown-path-is-401-without-a-key-else-404", func(d *device) {
			if got := d.ask("GET", "/v3/nothing", ""); got.status != 401 {
				d.t.Errorf("without a key: %v", got)
			}
			if code, got := d.call("GET", "/v3/nothing", ""); code != 404 {
				d.t.Errorf("with a key: %d %s", code, got)
			}
		}},
		{6, "malformed-JSON-is-503", func(d *device) {
			d.has("POST", "/v1/restart", `{"appId":`, 503, `"status":"failed"`, `"message":"`)
		}},
		{7, "an-application's-key-purges-its-own-only", func(d *device) {
			key := "?apikey=" + d.keyOf("web")
			if got := d.ask("POST", "/v1/purge"+key, `{"appId":5678}`); got != (answer{401, `{"status":"failed","message":"Unauthorized"}`}) {
				d.t.Errorf("another's: %v", got)
			}
			if got := d.ask("POST", "/v1/purge"+key, `{"appId":1234}`); got != (answer{200, `{"Data":"OK","Error":""}`}) {
				d.t.Errorf("its own: %v", got)
			}
		}},
		{8, "it-sees-the-device-and-asks-for-updates", func(d *device) {
			key := "?apikey=" + d.keyOf("web")
			if got := d.ask("GET", "/v1/device"+key, ""); got.status != 200 {
				d.t.Errorf("device: %v", got)
			}
			if got := d.ask("POST", "/v1/update"+key, `{}`); got.status != 204 {
				d.t.Errorf("update: %v", got)
			}
		}},
		{9, "update-is-204-or-202-if-it-does-nothing", func(d *device) {
			d.is("POST", "/v1/update", `{}`, 204, "")
			d.wants(target(obj{"RESIN_SUPERVISOR_INSTANT_UPDATE_TRIGGER": "0"}, fleetApp("a1"), shed))
			d.until("the variable counts", func() bool { code, _ := d.call("POST", "/v1/update", `{}`); return code == 202 })
			d.is("POST", "/v1/update", `{}`, 202, "Accepted")
			d.wants(target(nil, fleetApp("a1"), shed))
			d.is("POST", "/v1/update", `{"force":true}`, 204, "")
			d.until("it counts no more", func() bool { code, _ := d.call("POST", "/v1/update", `{}`); return code == 204 })
			d.settled("a1")
		}},
		{10, "a-service's-key-is-made-anew", func(d *device) {
			old := d.keyOf("web")
			got := d.ask("POST", "/v1/regenerate-api-key?apikey="+old, "")
			if got.status != 200 || !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(got.body) || got.body == old {
				d.t.Fatalf("a new key = %v", got)
			}
			if again := d.ask("GET", "/v2/version?apikey="+old, ""); again.status != 401 {
				d.t.Errorf("the old key: %v", again)
			}
			d.until("the container has the new key", func() bool {
				all := d.containers("web")
				return len(all) == 1 && env(all[0])["RESIN_SUPERVISOR_API_KEY"] == got.body
			})
			d.settled("a1")
		}},
		{11, "the-global-key-made-anew-is-reported", func(d *device) {
			code, fresh := d.call("POST", "/v1/regenerate-api-key", "")
			if code != 200 || fresh == d.key {
				d.t.Fatalf("a new key = %d %s", code, fresh)
			}
			d.key = fresh
			d.until("the fleet server has it", func() bool { return d.fleet.Reported("api_secret") == fresh })
		}},

		{13, "the-device-is-Idle", func(d *device) {
			var got obj
			d.get("/v1/device", &got)
			for _, k := range []string{"api_port", "os_version", "supervisor_version", "update_pending", "update_failed", "update_downloaded", "download_progress"} {
				if _, ok := got[k]; !ok {
					d.t.Errorf("device has no %s: %v", k, got)
				}
			}
			if got["status"] != "Idle" || got["commit"] != "a1" || got["api_port"] != 48484.0 || got["update_pending"] != false {
				d.t.Errorf("device = %v", got)
			}
		}},
		{14, "v1-applications-are-those-of-one-service", func(d *device) {
			d.is("GET", "/v1/apps/1234", "", 400, "Some v1 endpoints are only allowed on single-container apps")
		}},
		{15, "secrets-are-not-shown", func(d *device) {
			var got struct {
				ContainerID string
				Env         map[string]string
			}
			d.get("/v1/apps/5678", &got)
			c := d.container("tool")
			if got.ContainerID != c.ID || got.Env["FROM"] != "image" || env(c)["BALENA_API_KEY"] == "" {
				d.t.Errorf("application = %+v, its container %s has %v", got, c.ID, env(c))
			}
			for _, k := range []string{"RESIN_API_KEY", "BALENA_API_KEY", "RESIN_SUPERVISOR_API_KEY", "BALENA_SUPERVISOR_API_KEY"} {
				if _, shown := got.Env[k]; shown {
					d.t.Errorf("%s is shown", k)
				}
			}
		}},
		{16, "the-state-of-applications-is-by-name-and-as-the-key-may-see", func(d *device) {
			all, own := obj{}, d.ask("GET", "/v2/applications/state?apikey="+d.keyOf("web"), "")
			d.get("/v2/applications/state", &all)
			if _, fleet := all["my-fleet"]; !fleet || all["shed"] == nil || len(all) != 2 {
				d.t.Errorf("all = %v, want my-fleet and shed", all)
			}
			if !strings.HasPrefix(own.body, `{"my-fleet":{"appId":1234,"appUuid":"deadbeef01","commit":"a1","updateStatus":"done"`) || strings.Contains(own.body, "shed") {
				d.t.Errorf("to a service's key: %v", own)
			}
		}},
		{17, "an-unknown-application-is-409-a-bad-number-400", func(d *device) {
			d.has("GET", "/v2/applications/9/state", "", 409, "Application ID does not exist: 9")
			d.has("GET", "/v2/applications/abc/state", "", 400, "Invalid application ID: abc")
		}},
		{18, "progress-is-a-number-while-images-come", func(d *device) {
			release := d.images.hold("slow")
			defer release()
			d.deploy(target(nil, fleetApp("a2", func(a *app) { a.services["db"] = service(92, "slow:1", nil) }), shed))
			d.until("there is progress", func() bool { _, number := d.status().Progress.(float64); return number })
			if s := d.status(); s.AppState != "applying" {
				d.t.Errorf("during the download the state is %s", s.AppState)
			}
			release()
			d.settled("a2")
			if s := d.status(); s.Progress != nil || s.Release != "a2" {
				d.t.Errorf("afterwards: %+v", s)
			}
			d.deploy(target(nil, fleetApp("a1"), shed))
			d.settled("a1")
		}},
		{19, "a-container-is-found-by-its-service", func(d *device) {
			d.is("GET", "/v2/containerId?service=web", "", 200, `{"status":"success","containerId":"`+d.id("web")+`"}`)
			d.is("GET", "/v2/containerId?service=none", "", 503, `{"status":"failed","message":"Could not find service with that name"}`)
		}},

		{20, "a-stopped-service-keeps-its-container", func(d *device) {
			id := d.id("web")
			d.is("POST", "/v2/applications/1234/stop-service", `{"serviceName":"web"}`, 200, "OK")
			if c := d.container("web"); c.ID != id || c.State.Status != "exited" {
				d.t.Errorf("web is %s in %s, was in %s", c.State.Status, c.ID, id)
			}
		}},
		{21, "a-started-service-runs-in-the-same", func(d *device) {
			id := d.id("web")
			d.is("POST", "/v2/applications/1234/start-service", `{"imageId":5091}`, 200, "OK")
			if c := d.container("web"); c.ID != id || !c.State.Running {
				d.t.Errorf("web is %s in %s, was in %s", c.State.Status, c.ID, id)
			}
		}},
		{22, "a-restarted-service-has-a-new-one", func(d *device) {
			web, db := d.id("web"), d.id("db")
			d.is("POST", "/v2/applications/1234/restart-service", `{"serviceName":"web"}`, 200, "OK")
			if d.id("web") == web || d.id("db") != db || d.state("web") != "running" {
				d.t.Errorf("web and db are in %s and %s, were in %s and %s", d.id("web"), d.id("db"), web, db)
			}
		}},
		{23, "one-of-two-services-must-be-named", func(d *device) {
			for _, action := range []string{"restart", "stop", "start"} {
				d.has("POST", "/v2/applications/1234/"+action+"-service", `{}`, 400, "serviceName or imageId")
			}
		}},
		{24, "an-unknown-service-is-404", func(d *device) {
			d.has("POST", "/v2/applications/1234/stop-service", `{"serviceName":"none"}`, 404, "Service not found")
			d.has("POST", "/v2/applications/77/stop-service", `{"serviceName":"web"}`, 404, "not found")
		}},
		{25, "a-restart-makes-all-containers-anew-and-keeps-volumes", func(d *device) {
			d.sh("db", "echo kept >/data/x")
			web, db := d.id("web"), d.id("db")
			d.is("POST", "/v2/applications/1234/restart", `{}`, 200, "OK")
			if d.id("web") == web || d.id("db") == db {
				d.t.Errorf("containers are the same")
			}
			if got := d.sh("db", "cat /data/x"); got != "kept" {
				d.t.Errorf("the volume has %q", got)
			}
		}},
		{26, "a-purge-empties-volumes-and-keeps-images", func(d *device) {
			since := now()
			d.sh("db", "echo gone >/data/x")
			d.is("POST", "/v2/applications/1234/purge", `{}`, 200, "OK")
			if got := d.sh("db", "ls /data"); got != "" {
				d.t.Errorf("the volume has %q", got)
			}
			if list := d.eventsSince(since); slices.ContainsFunc(list, func(e string) bool { return strings.HasPrefix(e, "pull") || strings.HasPrefix(e, "delete ") }) {
				d.t.Errorf("images were touched: %q", list)
			}
		}},
		{27, "an-application-must-be-named", func(d *device) {
			d.is("POST", "/v1/restart", `{}`, 400, "Missing app id")
			d.is("POST", "/v1/purge", `{}`, 400, "Invalid or missing appId")
			d.has("POST", "/v2/applications/abc/restart", `{}`, 400, `"status":"failed"`)
			d.has("POST", "/v2/applications/0/restart-service", `{"serviceName":"web"}`, 400, `"status":"failed"`)
		}},
	},
}

// Update locks.
var lockGroup = group{
	name:  "locks",
	bus:   true,
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) { d.settled("a1") },
	checks: []check{
		{29, "a-lock-in-a-container-holds-a-restart", func(d *device) {
			d.sh("web", "touch /tmp/balena/updates.lock")
			d.is("POST", "/v1/restart", `{"appId":1234}`, 423, `{"status":"failed","message":"Lockfile exists for { appId: 1234, service: web }"}`)
			d.has("POST", "/v2/applications/1234/restart-service", `{"serviceName":"db"}`, 423, "service: web")
			d.sh("web", "rm /tmp/balena/updates.lock")
		}},
		{30, "so-does-a-directory", func(d *device) {
			d.sh("web", "mkdir /tmp/resin/resin-updates.lock")
			d.has("POST", "/v1/restart", `{"appId":1234}`, 423, "Lockfile exists")
			d.sh("web", "rmdir /tmp/resin/resin-updates.lock; ln -s /nowhere /tmp/balena/updates.lock")
			d.has("POST", "/v1/restart", `{"appId":1234}`, 423, "Lockfile exists")
		}},
		{31, "force-removes-it", func(d *device) {
			id := d.id("web")
			d.is("POST", "/v1/restart", `{"appId":1234,"force":true}`, 200, "OK")
			if got := d.sh("web", "ls -a /tmp/balena"); d.id("web") == id || strings.Contains(got, "lock") {
				d.t.Errorf("after a forced restart %s has %s, was %s", d.id("web"), got, id)
			}
		}},
		{32, "a-lock-override-is-force", func(d *device) {
			d.deploy(target(obj{"RESIN_SUPERVISOR_OVERRIDE_LOCK": "1"}, fleetApp("a1")))
			d.sh("web", "touch /tmp/balena/updates.lock")
			d.until("the variable counts", func() bool { code, _ := d.call("POST", "/v1/restart", `{"appId":1234}`); return code == 200 })
			d.deploy(target(nil, fleetApp("a1")))
			d.until("it counts no more", func() bool {
				d.sh("web", "touch /tmp/balena/updates.lock")
				code, _ := d.call("POST", "/v1/restart", `{"appId":1234}`)
				return code == 423
			})
			d.sh("web", "rm /tmp/balena/updates.lock")
			d.settled("a1")
		}},
		{33, "a-locked-update-downloads-and-waits", func(d *device) {
			d.sh("web", "touch /tmp/balena/updates.lock")
			web, db, lines := d.id("web"), d.id("db"), len(d.fleet.Lines())
			d.deploy(target(nil, fleetApp("a2", func(a *app) { a.services["db"] = service(92, "garden:2", nil) })))
			d.until("the image is there", func() bool {
				_, err := d.engine.ImageInspect(d.t.Context(), d.images.fill("REGISTRY/garden:2"))
				return err == nil
			})
			d.until("people learn of the lock", func() bool {
				return slices.ContainsFunc(d.fleet.Lines()[lines:], func(l testfleet.Line) bool { return strings.Contains(l.Message, "Updates are locked") })
			})
			if d.id("web") != web || d.id("db") != db || d.state("db") != "running" {
				d.t.Error("containers were touched")
			}
			d.sh("web", "rm /tmp/balena/updates.lock")
			d.settled("a2")
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
		}},
		{34, "it-holds-a-reboot", func(d *device) {
			d.sh("web", "touch /tmp/balena/updates.lock")
			d.has("POST", "/v1/reboot", `{}`, 423, `{"Data":"","Error":"`, "service: web")
			d.has("POST", "/v1/shutdown", `{}`, 423, `{"Data":"","Error":"`)
			d.sh("web", "rm /tmp/balena/updates.lock")
		}},
		{36, "our-own-locks-are-gone-when-all-is-settled", func(d *device) {
			d.until("no lock is left", func() bool { return d.sh("web", "ls -A /tmp/balena")+d.sh("db", "ls -A /tmp/balena") == "" })
		}},
	},
}

// A device that nobody manages.
var openGroup = group{
	name: "unmanaged",
	checks: []check{
		{12, "all-endpoints-are-open", func(d *device) {
			for _, path := range []string{"/v2/version", "/v1/device", "/v2/state/status", "/v2/applications/state", "/v2/local/target-state", "/v2/device/vpn", "/v1/device/host-config"} {
				if got := d.ask("GET", path, ""); got.status != 200 {
					d.t.Errorf("%s = %v", path, got)
				}
			}
			if got := d.ask("POST", "/v1/restart", `{}`); got.status != 400 {
				d.t.Errorf("restart of nothing = %v", got)
			}
		}},
	},
}
