package conformance

import (
	"bufio"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/client"
)

// posted is a target as programs on the desk send it.
const posted = `{"local":{"name":"bench","config":{"SUPERVISOR_LOCAL_MODE":"1"},"apps":{"1":{"name":"localapp","commit":"localcommit","releaseId":"1",
	"services":{"1":{"serviceName":"desk","serviceId":1,"imageId":1,"image":"REGISTRY/desk:1","running":true,"environment":{},"labels":{},"tty":false}},
	"volumes":{"data":{}},"networks":{}}}}}`

// A device that becomes somebody's for a while.
var localGroup = group{
	name:  "local-mode",
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) { d.settled("a1") },
	checks: []check{
		{71, "a-target-is-posted-in-local-mode-only", func(d *device) {
			d.is("POST", "/v2/local/target-state", d.images.fill(posted), 400, `{"status":"failed","message":"Target state can only set when device is in local mode"}`)
		}},
		{72, "it-runs-and-the-server-does-not-hear-of-it", func(d *device) {
			d.deploy(target(obj{"RESIN_SUPERVISOR_LOCAL_MODE": "1"}, fleetApp("a1")))
			d.until("the API is open", func() bool { return d.ask("GET", "/v2/version", "").status == 200 })
			reports := len(d.fleet.Reports())
			if got := d.ask("POST", "/v2/local/target-state", d.images.fill(posted)); got != (answer{200, `{"status":"success","message":"OK"}`}) {
				d.t.Fatalf("posted: %v", got)
			}
			d.until("it runs", func() bool { return d.state("desk") == "running" })
			for _, r := range d.fleet.Reports()[reports:] {
				if apps, ok := r.State["apps"].(obj); ok && apps["1"] != nil {
					d.t.Errorf("report %v", r.State)
				}
			}
		}},
		{73, "the-local-log-begins-at-once", func(d *device) {
			c := http.Client{Transport: &http.Transport{DialContext: d.host.Dial, DisableKeepAlives: true}}
			resp, err := c.Get("http://127.0.0.1:48484/v2/local/logs")
			if err != nil {
				d.t.Fatal(err)
			}
			defer resp.Body.Close()
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			if line != `{"message":"Streaming logs","isSystem":true}`+"\n" {
				d.t.Errorf("first line %q, %v", line, err)
			}
		}},
		{74, "nothing-is-left-of-it-afterwards", func(d *device) {
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
			d.until("its container is gone", func() bool { return len(d.containers("desk")) == 0 })
			d.until("its volume is gone", func() bool {
				_, err := d.engine.VolumeInspect(d.t.Context(), "1_data", client.VolumeInspectOptions{})
				return err != nil
			})
			d.until("its image is gone", func() bool {
				_, err := d.engine.ImageInspect(d.t.Context(), d.images.fill("REGISTRY/desk:1"))
				return err != nil
			})
			if got := d.ask("GET", "/v2/version", ""); got.status != 401 {
				d.t.Errorf("without a key: %v", got)
			}
			if d.state("web") != "running" || d.state("db") != "running" {
				d.t.Error("the fleet's application does not run")
			}
		}},
	},
}

// A device that came with its applications and has no network.
var preloadGroup = group{
	name: "preload",
	setup: setup{config: obj{"apiEndpoint": "http://127.0.0.1:9", "apiKey": "x", "applicationId": 5},
		preload: `{"config":{"RESIN_SUPERVISOR_DELTA":"0"},"pinDevice":false,"apps":` + appsOf(target(nil, fleetApp("p1"))) + `}`},
	checks: []check{
		{78, "a-device-starts-with-what-came-with-it", func(d *device) {
			d.until("it runs", func() bool { return d.state("web") == "running" && d.state("db") == "running" })
			if got := d.container("web").Name; got != "/web_5091_778_p1" {
				d.t.Errorf("web is %s", got)
			}
			used, err := os.ReadFile(filepath.Join(d.boot, "apps.json.preloaded"))
			left, _ := os.ReadFile(filepath.Join(d.boot, "apps.json"))
			if err != nil || !strings.Contains(string(used), "p1") || strings.TrimSpace(string(left)) != "{}" {
				d.t.Errorf("apps.json is %q, .preloaded %q, %v", left, used, err)
			}
		}},
	},
}

// appsOf are the applications of a target, as apps.json has them.
func appsOf(target string) string {
	_, apps, _ := strings.Cut(target, `"apps":`)
	apps, _, _ = strings.Cut(apps, `,"config"`)
	return apps
}
