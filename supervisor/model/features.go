package model

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

const defaultHandOver = time.Minute

// labels merges composition, service and our own, the later winning. The old
// io.resin spelling is renamed, and an explicit io.balena label wins over it.
func (c *composer) labels() {
	labels := map[string]string{}
	for _, from := range []map[string]string{c.mapping("labels"), c.svc.Labels} {
		for k, v := range from {
			if strings.HasPrefix(k, "io.resin.") {
				renamed := strings.ReplaceAll(k, "resin", "balena")
				if _, explicit := from[renamed]; explicit {
					continue
				}
				k = renamed
			}
			labels[k] = v
		}
	}
	delete(labels, LabelPrint)
	labels[LabelSupervised] = "true"
	labels[LabelAppID] = c.app.ID.String()
	labels[LabelAppUUID] = c.app.UUID
	labels[LabelServiceID] = strconv.Itoa(c.svc.ID)
	labels[LabelServiceName] = c.svc.Name
	delete(labels, LabelGrace)
	if c.c["stop_grace_period"] != nil && *c.spec.Config.StopTimeout == DefaultGrace {
		labels[LabelGrace] = "given"
	}
	c.spec.Config.Labels = labels
}

// Feature reports whether a service's label io.balena.features.<name> is on,
// in either spelling.
func (s Service) Feature(name string) bool {
	v, ok := s.Labels["io.balena.features."+name]
	if !ok {
		v = s.Labels["io.resin.features."+strings.ReplaceAll(name, "balena", "resin")]
	}
	return Truthy(v)
}

// ControlLabel lets a service's API key act on the device as such.
const ControlLabel = "io.minke.features.device-control"

func (c *composer) feature(name string) bool {
	return Truthy(c.spec.Config.Labels["io.balena.features."+name])
}

func (c *composer) features() {
	host := c.spec.Host
	if c.feature("dbus") {
		c.bindMount("/run/dbus:/host/run/dbus")
	}
	if c.feature("kernel-modules") && c.dev.HasModules {
		c.bindMount("/lib/modules:/lib/modules")
	}
	if c.feature("firmware") && c.dev.HasFirmware {
		c.bindMount("/lib/firmware:/lib/firmware")
	}
	if c.feature("balena-socket") {
		for _, inside := range []string{"/host/run/balena-engine.sock", c.dev.EngineSocket, "/var/run/balena.sock"} {
			c.bindMount(c.dev.EngineSocket + ":" + inside)
		}
	}
	if c.feature("sysfs") {
		c.bindMount("/sys:/sys")
	}
	if c.feature("procfs") {
		c.bindMount("/proc:/proc")
	}
	if c.feature("journal-logs") {
		for _, p := range []string{"/var/log/journal", "/run/log/journal", "/etc/machine-id"} {
			c.bindMount(p + ":" + p + ":ro")
		}
	}
	if c.feature("gpu") {
		host.DeviceRequests = []container.DeviceRequest{{Count: 1, DeviceIDs: []string{}, Capabilities: [][]string{{"gpu"}}, Options: map[string]string{}}}
	}
	if c.feature("supervisor-api") && !host.NetworkMode.IsHost() && c.spec.NetworkOf == "" && !host.NetworkMode.IsNone() {
		c.spec.UsesAPI = true
		c.spec.Endpoints = append(c.spec.Endpoints, Endpoint{SupervisorNetwork, &network.EndpointSettings{}})
	}
	slices.Sort(host.Binds)
	c.updateStrategy()
}

func (c *composer) updateStrategy() {
	labels := c.spec.Config.Labels
	switch s := Strategy(labels["io.balena.update.strategy"]); s {
	case KillThenDownload, DeleteThenDownload, HandOver:
		c.spec.Strategy = s
	default:
		c.spec.Strategy = DownloadThenKill
	}
	c.spec.Reboots = Truthy(labels["io.balena.update.requires-reboot"])
	c.spec.HandOver = defaultHandOver
	if ms, ok := Int(labels["io.balena.update.handover-timeout"]); ok && ms > 0 {
		c.spec.HandOver = time.Duration(ms) * time.Millisecond
	}
}

// environment merges what we inject by default, composition, service, and
// what we force, the later winning.
func (c *composer) environment() {
	env := map[string]string{}
	both := func(name, value string) { env["BALENA_"+name], env["RESIN_"+name] = value, value }
	env["BALENA"], env["RESIN"], env["USER"] = "1", "1", "root"
	both("APP_ID", c.app.ID.String())
	both("APP_UUID", c.app.UUID)
	both("APP_NAME", c.app.Name)
	both("SERVICE_NAME", c.svc.Name)
	both("DEVICE_UUID", c.dev.UUID)
	both("DEVICE_TYPE", c.dev.Type)
	both("DEVICE_ARCH", c.dev.Arch)
	both("HOST_OS_VERSION", c.dev.OSVersion)
	both("APP_LOCK_PATH", "/tmp/balena/updates.lock")
	env["BALENA_SERVICE_HANDOVER_COMPLETE_PATH"] = "/tmp/balena/handover-complete"
	env["RESIN_SERVICE_KILL_ME_PATH"] = "/tmp/balena/handover-complete"
	if c.feature("balena-socket") {
		env["DOCKER_HOST"] = "unix:///host/run/balena-engine.sock"
	}
	for k, v := range c.mapping("environment") {
		env[k] = v
	}
	for k, v := range c.svc.Environment {
		env[k] = v
	}
	both("DEVICE_NAME_AT_INIT", c.dev.Name)
	if c.feature("supervisor-api") {
		c.apiEnvironment(both)
	}
	if c.feature("balena-api") {
		both("API_KEY", c.dev.CloudKey)
		both("API_URL", c.dev.CloudURL)
	}
	if c.feature("host-os.board-rev") {
		both("HOST_OS_BOARD_REV", c.dev.BoardRev)
		both("HOST_OS_BUILD", c.dev.BoardRev)
	}
	for k, v := range env {
		c.spec.Config.Env = append(c.spec.Config.Env, k+"="+v)
	}
	slices.Sort(c.spec.Config.Env)
}

func (c *composer) apiEnvironment(both func(name, value string)) {
	host := SupervisorGateway
	if !c.spec.UsesAPI {
		host = "127.0.0.1"
	}
	port := strconv.Itoa(cmp.Or(c.dev.APIPort, 48484))
	both("SUPERVISOR_API_KEY", c.dev.ServiceKey(c.app.ID, c.svc.Name))
	both("SUPERVISOR_PORT", port)
	both("SUPERVISOR_HOST", host)
	both("SUPERVISOR_ADDRESS", "http://"+host+":"+port)
}
