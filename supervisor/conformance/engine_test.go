package conformance

import (
	"slices"
	"strings"

	"github.com/moby/moby/client"
)

// started reports whether a service's container was started, by the events.
func started(list []string, service string) bool { return slices.Contains(list, "start "+service) }

// What an update touches, and in which order.
var engineGroup = group{
	name:  "engine",
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) { d.settled("a1") },
	checks: []check{
		{51, "the-same-configuration-in-a-new-release-renames", func(d *device) {
			since, web := now(), d.id("web")
			d.deploy(target(nil, fleetApp("a2")))
			d.settled("a2")
			if c := d.container("web"); c.ID != web || c.Name != "/web_5091_778_a2" {
				d.t.Errorf("web is %s in %s, was in %s", c.Name, c.ID, web)
			}
			for _, e := range d.eventsSince(since) {
				if !strings.HasPrefix(e, "rename ") {
					d.t.Errorf("event %q, want renames only", e)
				}
			}
		}},
		{52, "a-change-replaces-its-service-only", func(d *device) {
			web, db := d.id("web"), d.id("db")
			d.deploy(target(nil, fleetApp("a3", func(a *app) {
				a.services["db"] = service(92, "garden:1", obj{"volumes": []string{"data:/data"}, "environment": obj{"NEW": "1"}})
			})))
			d.settled("a3")
			if d.id("web") != web || d.id("db") == db {
				d.t.Errorf("web and db are in %s and %s, were in %s and %s", d.id("web"), d.id("db"), web, db)
			}
		}},
		{53, "nothing-starts-before-all-images-are-there", func(d *device) {
			since, release := now(), d.images.hold("slow")
			defer release()
			web, db := d.id("web"), d.id("db")
			d.deploy(target(nil, fleetApp("a4", func(a *app) {
				a.services["db"] = service(92, "slow:1", obj{"volumes": []string{"data:/data"}})
				a.services["web"] = service(91, "garden:4", obj{"depends_on": []string{"db"}})
			})))
			d.until("one is on its way", func() bool { return d.images.waiting("slow") == 1 })
			if list := d.eventsSince(since); started(list, "web") || started(list, "db") || d.id("web") != web || d.id("db") != db {
				d.t.Errorf("events %q before all images are there", list)
			}
			release()
			d.settled("a4")
		}},
		{54, "what-is-depended-on-starts-first", func(d *device) {
			since := now()
			d.is("POST", "/v1/restart", `{"appId":1234}`, 200, "OK")
			if list := d.eventsSince(since); !before(list, "start db", "start web") {
				d.t.Errorf("events %q, want db to start before web", list)
			}
		}},
		{55, "a-changed-network-is-made-anew-after-its-users-are-gone", func(d *device) {
			lan := func(label string) string {
				return target(nil, fleetApp("a5"+label, func(a *app) { a.networks = obj{"default": obj{"labels": obj{"v": label}}} }))
			}
			d.deploy(lan("1"))
			d.settled("a51")
			since, web := now(), d.id("web")
			d.deploy(lan("2"))
			d.settled("a52")
			n, err := d.engine.NetworkInspect(d.t.Context(), "deadbeef01_default", client.NetworkInspectOptions{})
			if err != nil || n.Network.Labels["v"] != "2" || d.id("web") == web {
				d.t.Errorf("network %v, %v; web is in %s, was in %s", n.Network.Labels, err, d.id("web"), web)
			}
			const network = "deadbeef01_default"
			if list := d.eventsSince(since); !before(list, "destroy web", "destroy "+network) || !before(list, "destroy "+network, "create "+network) || !before(list, "create "+network, "start web") {
				d.t.Errorf("events %q, want containers to go, then the network, which is then made again", list)
			}
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
		}},
		{56, "a-volume-that-is-wanted-no-more-stays-until-a-clean-up", func(d *device) {
			exists := func() bool {
				_, err := d.engine.VolumeInspect(d.t.Context(), "1234_data", client.VolumeInspectOptions{})
				return err == nil
			}
			d.deploy(target(nil, fleetApp("a6", func(a *app) { a.services["db"], a.volumes = service(92, "garden:1", nil), nil })))
			d.settled("a6")
			if !exists() {
				d.t.Error("the volume is gone")
			}
			d.is("GET", "/v2/cleanup-volumes", "", 200, `{"status":"success"}`)
			if exists() {
				d.t.Error("after the clean-up the volume is still there")
			}
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
		}},
		{58, "what-should-not-run-is-made-or-stopped", func(d *device) {
			off := func(commit string) string {
				return target(nil, fleetApp(commit, func(a *app) {
					a.services["web"] = service(91, "garden:1", obj{"labels": withAPI, "depends_on": []string{"db"}, "running": false})
					a.services["spare"] = service(94, "garden:1", obj{"running": false})
				}))
			}
			web := d.id("web")
			d.deploy(off("a7"))
			d.settled("a7")
			if c := d.container("web"); c.ID != web || c.State.Status != "exited" || d.state("spare") != "created" {
				d.t.Errorf("web is %s in %s, was in %s; spare is %s", c.State.Status, c.ID, web, d.state("spare"))
			}
		}},
		{59, "one-that-was-made-is-started-one-that-ended-left-alone", func(d *device) {
			spare, web := d.id("spare"), d.id("web")
			d.deploy(target(nil, fleetApp("a8", func(a *app) { a.services["spare"] = service(94, "garden:1", obj{"restart": "always"}) })))
			d.until("spare runs", func() bool { return d.state("spare") == "running" })
			if d.id("spare") != spare {
				d.t.Errorf("spare is in %s, was in %s", d.id("spare"), spare)
			}
			d.until("the release is there", func() bool { return d.status().Release == "a8" })
			if d.id("web") != web || d.state("web") != "running" {
				d.t.Errorf("web, which the release before stopped, is %s in %s, was in %s", d.state("web"), d.id("web"), web)
			}
			since := now()
			if _, err := d.engine.ContainerStop(d.t.Context(), spare, client.ContainerStopOptions{}); err != nil {
				d.t.Fatal(err)
			}
			polls := len(d.fleet.Polls())
			d.is("POST", "/v1/update", `{}`, 204, "")
			d.until("the target was fetched", func() bool { return len(d.fleet.Polls()) > polls })
			d.until("all is settled", func() bool { return d.status().AppState == "applied" })
			if list := d.eventsSince(since); started(list, "spare") || d.state("spare") != "exited" {
				d.t.Errorf("spare is %s, events %q", d.state("spare"), list)
			}
			d.is("POST", "/v2/applications/1234/start-service", `{"serviceName":"web"}`, 200, "OK") // it has ended, too
		}},
		{60, "an-application-that-goes-leaves-nothing", func(d *device) {
			d.deploy(target(nil, fleetApp("a1"), app{id: 9, uuid: "909", name: "guest", commit: "g1", volumes: obj{"v": obj{}},
				services: obj{"guest": service(95, "guest:1", obj{"volumes": []string{"v:/v"}})}}))
			d.settled("g1")
			d.deploy(target(nil, fleetApp("a1")))
			d.until("the container is gone", func() bool { return len(d.containers("guest")) == 0 })
			d.until("its network is gone", func() bool {
				_, err := d.engine.NetworkInspect(d.t.Context(), "909_default", client.NetworkInspectOptions{})
				return err != nil
			})
			d.until("its volume is gone", func() bool {
				_, err := d.engine.VolumeInspect(d.t.Context(), "9_v", client.VolumeInspectOptions{})
				return err != nil
			})
			d.until("its image is gone", func() bool {
				_, err := d.engine.ImageInspect(d.t.Context(), d.images.fill("REGISTRY/guest:1"))
				return err != nil
			})
			d.settled("a1")
		}},
		{61, "a-release-whose-contract-is-not-met-is-rejected", func(d *device) {
			needs := obj{"type": "sw.container", "requires": []obj{{"type": "sw.supervisor", "version": ">999.0.0"}}}
			db := d.id("db")
			d.deploy(target(nil, fleetApp("a9", func(a *app) {
				a.services["web"] = service(91, "garden:1", obj{"contract": needs})
				a.services["db"] = service(92, "garden:2", nil)
			})))
			d.until("people learn of it", func() bool { return d.fleet.Heard("Some releases were rejected due to having unmet requirements") })
			d.until("the server learns of it", func() bool {
				return d.fleet.Reported("apps", "deadbeef01", "releases", "a9", "update_status") == "rejected"
			})
			if d.id("db") != db || d.state("web") != "running" {
				d.t.Errorf("the release before does not run on: db is in %s, was in %s; web is %q", d.id("db"), db, d.state("web"))
			}
			d.deploy(target(nil, fleetApp("a10", func(a *app) {
				a.services["web"] = service(91, "garden:1", obj{"contract": needs, "labels": obj{"io.balena.features.optional": "1"}})
			})))
			d.until("only that service is missing", func() bool { return len(d.containers("web")) == 0 && d.state("db") == "running" })
			d.until("people learn of that", func() bool { return d.fleet.Heard("Not running containers because of contract violations") })
			d.deploy(target(nil, fleetApp("a1")))
			d.settled("a1")
		}},
		{62, "the-supervisor's-network-is-made-again", func(d *device) {
			d.deploy(target(nil, shedWithoutAPI))
			d.settled("5ed")
			if _, err := d.engine.NetworkRemove(d.t.Context(), "supervisor0", client.NetworkRemoveOptions{}); err != nil {
				d.t.Fatal(err)
			}
			d.until("it is there", func() bool {
				n, err := d.engine.NetworkInspect(d.t.Context(), "supervisor0", client.NetworkInspectOptions{})
				return err == nil && n.Network.IPAM.Config[0].Subnet.String() == "10.114.104.0/25" && n.Network.Options["com.docker.network.bridge.name"] == "supervisor0"
			})
		}},
	},
}

var shedWithoutAPI = app{id: 5678, uuid: "shed02", name: "shed", commit: "5ed", services: obj{"tool": service(93, "garden:1", nil)}}

// with gives web another image and this strategy.
func with(strategy, commit string, more obj) string {
	labels := obj{"io.balena.update.strategy": strategy}
	for k, v := range more {
		labels[k] = v
	}
	return target(nil, fleetApp(commit, func(a *app) { a.services["web"] = service(91, "garden:"+commit, obj{"labels": labels}) }))
}

// How the old container makes way for the new one.
var strategyGroup = group{
	name:  "strategies",
	setup: setup{managed: true, wants: target(nil, fleetApp("a1"))},
	begin: func(d *device) { d.settled("a1") },
	checks: []check{
		{57, "the-four-strategies", func(d *device) {
			follow := func(strategy, commit string, more obj) []string {
				since := now()
				d.deploy(with(strategy, commit, more))
				d.settled(commit)
				d.container("web") // one
				return d.eventsSince(since)
			}
			if list := follow("download-then-kill", "s1", nil); !before(list, "pull garden:s1", "die web") || !before(list, "die web", "start web") {
				d.t.Errorf("download-then-kill: %q", list)
			}
			for _, strategy := range []string{"kill-then-download", "delete-then-download"} {
				if list := follow(strategy, strategy, nil); !before(list, "destroy web", "pull garden:"+strategy) || !before(list, "pull garden:"+strategy, "start web") {
					d.t.Errorf("%s: %q", strategy, list)
				}
			}
			if list := follow("hand-over", "timed", obj{"io.balena.update.handover-timeout": "1500"}); !before(list, "start web", "die web") {
				d.t.Errorf("hand-over by time: %q", list)
			}
			if old := d.containers("web"); len(old) != 1 || old[0].Name != "/web_5091_778_timed" {
				d.t.Errorf("after the hand-over: %v", old)
			}

			d.deploy(with("hand-over", "asked", nil))
			d.until("both run", func() bool {
				all := d.containers("web")
				return len(all) == 2 && all[0].State.Running && all[1].State.Running && strings.HasPrefix(all[0].Name, "/old_")
			})
			if got := d.sh("db", "true; echo up"); got != "up" {
				d.t.Error("db does not run")
			}
			if len(d.containers("web")) != 2 {
				d.t.Error("the old one did not wait")
			}
			d.exec(d.containers("web")[1].ID, "touch $BALENA_SERVICE_HANDOVER_COMPLETE_PATH")
			d.settled("asked")
			if got := d.sh("web", "ls /tmp/balena"); d.container("web").Name != "/web_5091_778_asked" || strings.Contains(got, "handover") {
				d.t.Errorf("after the hand-over %s sees %s", d.container("web").Name, got)
			}
		}},
	},
}
