package conformance

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// kitchen has a service for each rule of composition.
func kitchen(commit string) app {
	return app{id: 3, uuid: "c00c", name: "kitchen", commit: commit,
		volumes:  obj{"data": obj{"labels": obj{"color": "red"}}},
		networks: obj{"lan": obj{}},
		services: obj{
			"plain": service(1, "volumes:1", obj{
				"labels":      obj{"io.balena.features.supervisor-api": "on", "mine": "1"},
				"environment": obj{"FOO": "service", "BALENA_APP_NAME": "mine", "BALENA_SUPERVISOR_API_KEY": "forged"},
				"networks":    []string{"lan"}, "restart": "sometimes", "volumes": []string{"data:/data", "/etc:/host-etc"},
				"ports": []string{"8080", "9000-9001:9100-9101/udp"}, "tty": nil,
			}),
			"old":  service(2, "garden:1", obj{"labels": obj{"io.resin.features.resin-api": "true"}}),
			"host": service(3, "garden:1", obj{"network_mode": "host", "labels": withAPI}),
			"near": service(4, "garden:1", obj{"network_mode": "service:plain"}),
			// Not all hosts have what it asks for: it is made, and does not run.
			"features": service(5, "garden:1", obj{"running": false, "labels": obj{
				"io.balena.features.dbus": "1", "io.balena.features.kernel-modules": "1", "io.balena.features.firmware": "1", "io.balena.features.balena-socket": "1",
				"io.balena.features.balena-api": "1", "io.balena.features.sysfs": "1", "io.balena.features.procfs": "1", "io.balena.features.journal-logs": "1",
				"io.balena.features.gpu": "1", "io.balena.features.host-os.board-rev": "1",
			}}),
		}}
}

// hostOnly has no service in a network of its own.
var hostOnly = app{id: 4, uuid: "40571", name: "host", commit: "h1", services: obj{
	"agent": service(6, "garden:1", obj{"network_mode": "host"}),
}}

func hasBind(c container.InspectResponse, inside string) bool {
	return slices.ContainsFunc(c.HostConfig.Binds, func(b string) bool { return strings.Contains(b+":", ":"+inside+":") })
}

// What a service becomes.
var compositionGroup = group{
	name:  "composition",
	setup: setup{managed: true, wants: target(nil, kitchen("k1"), hostOnly)},
	begin: func(d *device) { d.settled("k1", "h1") },
	checks: []check{
		{37, "containers-have-a-name-and-five-labels", func(d *device) {
			c := d.container("plain")
			if c.Name != "/plain_5001_778_k1" {
				d.t.Errorf("name = %s", c.Name)
			}
			for k, v := range map[string]string{"io.balena.supervised": "true", "io.balena.app-id": "3", "io.balena.app-uuid": "c00c", "io.balena.service-id": "1", "io.balena.service-name": "plain", "mine": "1"} {
				if c.Config.Labels[k] != v {
					d.t.Errorf("label %s = %q, want %q", k, c.Config.Labels[k], v)
				}
			}
		}},
		{38, "so-have-networks-and-volumes", func(d *device) {
			for _, name := range []string{"c00c_default", "c00c_lan"} {
				n, err := d.engine.NetworkInspect(d.t.Context(), name, client.NetworkInspectOptions{})
				if l := n.Network.Labels; err != nil || l["io.balena.supervised"] != "true" || l["io.balena.app-id"] != "3" {
					d.t.Errorf("network %s: %v, %v", name, l, err)
				}
			}
			v, err := d.engine.VolumeInspect(d.t.Context(), "3_data", client.VolumeInspectOptions{})
			if l := v.Volume.Labels; err != nil || l["io.balena.supervised"] != "true" || l["io.balena.app-uuid"] != "c00c" || l["color"] != "red" {
				d.t.Errorf("volume: %v, %v", l, err)
			}
		}},
		{39, "an-application-in-the-host's-network-claims-no-subnet", func(d *device) {
			n, err := d.engine.NetworkInspect(d.t.Context(), "40571_default", client.NetworkInspectOptions{})
			if err != nil || !n.Network.ConfigOnly {
				d.t.Errorf("config only = %v, %v", n.Network.ConfigOnly, err)
			}
		}},
		{40, "the-environment-is-image-then-ours-then-the-user's-then-secrets", func(d *device) {
			got := env(d.container("plain"))
			for k, v := range map[string]string{
				"FROM": "image", "FOO": "service", "BALENA_APP_NAME": "mine", "RESIN_APP_NAME": "kitchen", "BALENA": "1", "RESIN": "1", "USER": "root",
				"BALENA_APP_ID": "3", "RESIN_APP_ID": "3", "BALENA_APP_UUID": "c00c", "BALENA_SERVICE_NAME": "plain", "BALENA_DEVICE_TYPE": "generic-amd64",
				"BALENA_DEVICE_UUID": strings.Repeat("0123456789abcdef", 2), "BALENA_APP_LOCK_PATH": "/tmp/balena/updates.lock",
				"BALENA_SERVICE_HANDOVER_COMPLETE_PATH": "/tmp/balena/handover-complete", "RESIN_SERVICE_KILL_ME_PATH": "/tmp/balena/handover-complete",
				"BALENA_DEVICE_NAME_AT_INIT": "damp-haze",
			} {
				if got[k] != v {
					d.t.Errorf("%s = %q, want %q", k, got[k], v)
				}
			}
			for _, k := range []string{"BALENA_DEVICE_ARCH", "BALENA_HOST_OS_VERSION"} {
				if got[k] == "" {
					d.t.Errorf("no %s", k)
				}
			}
			if key := got["BALENA_SUPERVISOR_API_KEY"]; len(key) != 32 || key != got["RESIN_SUPERVISOR_API_KEY"] {
				d.t.Errorf("the API key is %q", key)
			}
		}},
		{41, "io.resin-labels-work", func(d *device) {
			c := d.container("old")
			if c.Config.Labels["io.balena.features.balena-api"] != "true" || len(env(c)["RESIN_API_KEY"]) != 32 || env(c)["BALENA_API_URL"] != d.fleet.URL {
				d.t.Errorf("labels %v, environment %v", c.Config.Labels, env(c))
			}
		}},
		{42, "each-feature-label-gives-its-mount-or-variable", func(d *device) {
			c := d.container("features")
			for _, inside := range []string{"/host/run/dbus", "/host/run/balena-engine.sock", "/var/run/balena.sock", "/sys", "/proc", "/var/log/journal", "/run/log/journal", "/etc/machine-id"} {
				if !hasBind(c, inside) {
					d.t.Errorf("no bind at %s in %q", inside, c.HostConfig.Binds)
				}
			}
			e := env(c)
			if e["DOCKER_HOST"] != "unix:///host/run/balena-engine.sock" || e["BALENA_API_KEY"] == "" {
				d.t.Errorf("environment %v", e)
			}
			if _, ok := e["BALENA_HOST_OS_BOARD_REV"]; !ok {
				d.t.Errorf("environment %v", e)
			}
			if r := c.HostConfig.DeviceRequests; len(r) != 1 || r[0].Count != 1 || r[0].Capabilities[0][0] != "gpu" {
				d.t.Errorf("device requests %+v", r)
			}
		}},
		{43, "the-supervisor-is-reached-from-containers", func(d *device) {
			c := d.container("plain")
			if e := env(c); e["BALENA_SUPERVISOR_HOST"] != "10.114.104.1" || e["BALENA_SUPERVISOR_ADDRESS"] != "http://10.114.104.1:48484" || c.NetworkSettings.Networks["supervisor0"] == nil {
				d.t.Errorf("environment %v, networks %v", e, c.NetworkSettings.Networks)
			}
			if got := d.sh("plain", `wget -q -O - "$BALENA_SUPERVISOR_ADDRESS/v2/version?apikey=$BALENA_SUPERVISOR_API_KEY"`); !strings.Contains(got, `"status":"success"`) {
				d.t.Errorf("from inside: %s", got)
			}
			if e := env(d.container("host")); e["BALENA_SUPERVISOR_ADDRESS"] != "http://127.0.0.1:48484" {
				d.t.Errorf("in the host's network: %v", e)
			}
			if got := d.sh("host", `wget -q -O - "$BALENA_SUPERVISOR_ADDRESS/ping"`); got != "OK" {
				d.t.Errorf("from the host's network: %s", got)
			}
		}},
		{44, "a-bind-mount-of-the-composition-is-dropped", func(d *device) {
			c := d.container("plain")
			if hasBind(c, "/host-etc") || !hasBind(c, "/data") {
				d.t.Errorf("binds %q", c.HostConfig.Binds)
			}
			d.until("people learn of it", func() bool { return d.fleet.Heard("/etc:/host-etc") || d.fleet.Heard("/host-etc") })
		}},
		{45, "ports-are-the-same-on-the-host-unless-told", func(d *device) {
			got := map[string]string{}
			for p, list := range d.container("plain").HostConfig.PortBindings {
				got[p.String()] = list[0].HostPort
			}
			for k, v := range map[string]string{"8080/tcp": "8080", "9100/udp": "9000", "9101/udp": "9001"} {
				if got[k] != v {
					d.t.Errorf("port %s is published at %q, want %s", k, got[k], v)
				}
			}
			id := d.id("plain")
			bad := kitchen("k2")
			bad.services["old"] = service(2, "garden:1", obj{"ports": []string{"80-82:80-81"}})
			d.deploy(target(nil, bad, hostOnly))
			d.until("people learn what is wrong", func() bool { return d.fleet.Heard("80-82:80-81") })
			if d.id("plain") != id || d.state("plain") != "running" {
				d.t.Error("the release before does not run on")
			}
			d.deploy(target(nil, kitchen("k1"), hostOnly))
			d.settled("k1")
		}},
		{46, "restart-is-always-unless-valid", func(d *device) {
			for _, service := range []string{"plain", "old"} {
				if got := d.container(service).HostConfig.RestartPolicy.Name; got != container.RestartPolicyAlways {
					d.t.Errorf("restart of %s = %s", service, got)
				}
			}
		}},
		{47, "a-terminal-is-the-default", func(d *device) {
			if !d.container("plain").Config.Tty || d.container("old").Config.Tty {
				d.t.Error("plain must have a terminal, old none")
			}
		}},
		{48, "a-service-shares-another's-network", func(d *device) {
			if got, want := string(d.container("near").HostConfig.NetworkMode), "container:"+d.id("plain"); got != want {
				d.t.Errorf("network mode = %s, want %s", got, want)
			}
			d.is("POST", "/v2/applications/3/restart-service", `{"serviceName":"plain"}`, 200, "OK")
			d.settled("k1")
			if got, want := string(d.container("near").HostConfig.NetworkMode), "container:"+d.id("plain"); got != want {
				d.t.Errorf("after a restart the network mode = %s, want %s", got, want)
			}
			if n, p := d.container("near"), d.container("plain"); n.State.StartedAt < p.State.StartedAt {
				d.t.Errorf("near started at %s, before plain at %s", n.State.StartedAt, p.State.StartedAt)
			}
		}},
		{49, "volumes-of-the-image-and-the-lock's-directory-are-there", func(d *device) {
			c := d.container("plain")
			if !slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool { return m.Destination == "/from-image" }) {
				d.t.Errorf("mounts %+v", c.Mounts)
			}
			if !hasBind(c, "/tmp/resin") || !hasBind(c, "/tmp/balena") {
				d.t.Errorf("binds %q", c.HostConfig.Binds)
			}
		}},
		{50, "the-same-target-again-changes-nothing", func(d *device) {
			d.settled("k1", "h1")
			since := now()
			polls := len(d.fleet.Polls())
			d.deploy(target(nil, kitchen("k1"), hostOnly))
			d.until("the target was fetched", func() bool { return len(d.fleet.Polls()) > polls })
			d.settled("k1", "h1")
			if list := d.eventsSince(since); len(list) > 0 {
				d.t.Errorf("events %q, want none", list)
			}
		}},
	},
}
