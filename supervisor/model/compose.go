package model

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/google/shlex"
	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/internal/errdef"
)

const defaultShm = 64 << 20

// DefaultGrace is how many seconds the stop of a service may take whose
// composition does not say.
const DefaultGrace = 10

// Compose turns an application into what the engine is asked for. An error
// names the service and field that cannot be done; fields that are merely
// ignored are in the specs' warnings.
func Compose(app App, dev Device) (AppSpec, error) {
	out := AppSpec{ID: app.ID, UUID: app.UUID, Name: app.Name, Commit: app.Commit, Frozen: app.Frozen}
	if app.Frozen {
		return out, nil
	}
	for _, s := range app.Services {
		spec, err := compose(app, s, dev)
		if err != nil {
			return AppSpec{}, errdef.Invalid.Errorf("service %s: %w", s.Name, err)
		}
		out.Services = append(out.Services, spec)
	}
	if err := checkReferences(out.Services); err != nil {
		return AppSpec{}, errdef.Invalid.Wrap(err)
	}
	var err error
	if out.Networks, err = networks(app, out.Services); err != nil {
		return AppSpec{}, errdef.Invalid.Wrap(err)
	}
	out.Volumes = volumes(app, out.Services)
	return out, nil
}

// checkReferences refuses dependencies on services that are not there, and
// circles, in which nothing could ever start.
func checkReferences(services []Spec) error {
	byName := map[string]Spec{}
	for _, s := range services {
		byName[s.Service] = s
	}
	state := map[string]int{} // 1 being visited, 2 done
	var visit func(name string) error
	visit = func(name string) error {
		if state[name] == 1 {
			return fmt.Errorf("service %s depends on itself through depends_on", name)
		}
		if state[name] == 2 {
			return nil
		}
		state[name] = 1
		for _, d := range byName[name].DependsOn {
			if _, ok := byName[d.Service]; !ok {
				return fmt.Errorf("service %s depends on %q, which is not a service of this application", name, d.Service)
			}
			if err := visit(d.Service); err != nil {
				return err
			}
		}
		state[name] = 2
		return nil
	}
	for _, s := range services {
		if err := visit(s.Service); err != nil {
			return err
		}
	}
	return nil
}

// A composer collects the first error while one service is read field by
// field, so that the list of fields below stays a list.
type composer struct {
	app  App
	svc  Service
	dev  Device
	c    map[string]any
	spec *Spec
	err  error
}

func compose(app App, svc Service, dev Device) (Spec, error) {
	grace := DefaultGrace
	spec := Spec{
		App: app.ID, Service: svc.Name, Image: svc.Image, Running: svc.Running,
		Name:   ContainerName(svc.Name, svc.ImageID, app.ReleaseID, app.Commit),
		Config: &container.Config{Image: svc.Image, StopTimeout: &grace, Tty: true},
		Host:   &container.HostConfig{IpcMode: "shareable", ShmSize: defaultShm},
	}
	c := &composer{app: app, svc: svc, dev: dev, c: svc.Composition, spec: &spec}
	c.process()
	c.limits()
	c.names()
	c.health()
	c.ports()
	c.mounts()
	c.network()
	c.dependencies()
	c.labels()
	c.features()
	c.environment()
	c.unknown()
	if c.err != nil {
		return Spec{}, c.err
	}
	spec.Print = c.fingerprint()
	spec.Config.Labels[LabelPrint] = string(spec.Print)
	return spec, nil
}

func (c *composer) fail(field, format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%s: "+format, append([]any{field}, args...)...)
	}
}

func (c *composer) warn(format string, args ...any) {
	c.spec.Warnings = append(c.spec.Warnings, fmt.Sprintf(format, args...))
}

// fingerprint leaves out what may differ without a reason to recreate: the
// device's name at the time of creation, and the image, which is compared by
// its ID.
func (c *composer) fingerprint() Fingerprint {
	cfg := *c.spec.Config
	cfg.Image = ""
	cfg.Env = slices.DeleteFunc(slices.Clone(cfg.Env), func(s string) bool {
		return strings.Contains(s, "_DEVICE_NAME_AT_INIT=")
	})
	return fingerprint(cfg, c.spec.Host, map[string]any{"Networks": c.spec.Endpoints})
}

func (c *composer) process() {
	cfg, host := c.spec.Config, c.spec.Host
	cfg.Cmd = c.command("command")
	cfg.Entrypoint = c.command("entrypoint")
	cfg.User = c.text("user")
	cfg.WorkingDir = c.text("working_dir")
	if len(cfg.WorkingDir) > 1 {
		cfg.WorkingDir = strings.TrimSuffix(cfg.WorkingDir, "/")
	}
	cfg.StopSignal = c.text("stop_signal")
	if v := c.c["stop_grace_period"]; v != nil {
		d, err := duration(v)
		if err != nil {
			c.fail("stop_grace_period", "%w", err)
		}
		secs := int(d.Round(time.Second).Seconds())
		cfg.StopTimeout = &secs
	}
	if v, ok := c.c["tty"]; ok && v != nil {
		cfg.Tty = Truthy(v)
	}
	host.RestartPolicy.Name = restartPolicy(c.c["restart"])
	if v, ok := c.c["init"]; ok && v != nil {
		init := Truthy(v)
		host.Init = &init
	}
	host.Privileged = Truthy(c.c["privileged"])
	host.ReadonlyRootfs = Truthy(c.c["read_only"])
	if Truthy(c.c["oom_kill_disable"]) {
		yes := true
		host.OomKillDisable = &yes
	}
	host.CapAdd = c.set("cap_add")
	host.CapDrop = c.set("cap_drop")
	host.GroupAdd = c.set("group_add")
	host.SecurityOpt = slices.DeleteFunc(c.set("security_opt"), func(s string) bool { return strings.HasPrefix(s, "label=") })
	for _, d := range c.set("devices") {
		host.Devices = append(host.Devices, device(d))
	}
	host.IpcMode = container.IpcMode(cmp.Or(c.text("ipc"), string(host.IpcMode)))
	host.PidMode = container.PidMode(c.text("pid"))
	host.UsernsMode = container.UsernsMode(c.text("userns_mode"))
	host.Sysctls = c.mapping("sysctls")
}

// restartPolicy falls back to always: an unattended device wants its
// services back.
func restartPolicy(v any) container.RestartPolicyMode {
	s, _ := v.(string)
	switch p := container.RestartPolicyMode(s); p {
	case container.RestartPolicyDisabled, container.RestartPolicyOnFailure, container.RestartPolicyUnlessStopped:
		return p
	}
	return container.RestartPolicyAlways
}

func device(s string) container.DeviceMapping {
	host, rest, _ := strings.Cut(s, ":")
	inside, perm, _ := strings.Cut(rest, ":")
	return container.DeviceMapping{
		PathOnHost:        host,
		PathInContainer:   cmp.Or(inside, host),
		CgroupPermissions: cmp.Or(perm, "rwm"),
	}
}

func (c *composer) limits() {
	host := c.spec.Host
	host.Memory = bytesOf(c.c["mem_limit"], 0)
	host.MemoryReservation = bytesOf(c.c["mem_reservation"], 0)
	host.ShmSize = bytesOf(c.c["shm_size"], defaultShm)
	host.CPUShares = int64(c.int("cpu_shares"))
	host.CPUQuota = int64(c.int("cpu_quota"))
	host.OomScoreAdj = c.int("oom_score_adj")
	host.CpusetCpus = c.text("cpuset")
	host.CgroupParent = c.text("cgroup_parent")
	if s := c.text("cpus"); s != "" {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || f < 0 {
			c.fail("cpus", "want a number of processors such as 0.5, not %q", s)
		}
		host.NanoCPUs = int64(f * 1e9)
	}
	if n := int64(c.int("pids_limit")); n != 0 {
		host.PidsLimit = &n
	}
	c.ulimits()
}

func (c *composer) ulimits() {
	m, ok := c.c["ulimits"].(map[string]any)
	if !ok && c.c["ulimits"] != nil {
		c.fail("ulimits", "want an object of names and numbers")
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		soft, hard := m[name], m[name]
		if pair, ok := m[name].(map[string]any); ok {
			soft, hard = pair["soft"], pair["hard"]
		}
		s, ok1 := Int(soft)
		h, ok2 := Int(hard)
		if !ok1 || !ok2 {
			c.fail("ulimits."+name, "want a number or soft and hard")
		}
		c.spec.Host.Ulimits = append(c.spec.Host.Ulimits, &units.Ulimit{Name: name, Soft: int64(s), Hard: int64(h)})
	}
}

func (c *composer) names() {
	cfg, host := c.spec.Config, c.spec.Host
	cfg.Hostname = c.text("hostname")
	cfg.Domainname = c.text("domainname")
	for _, s := range c.list("dns") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			c.fail("dns", "%w", err)
		}
		host.DNS = append(host.DNS, addr)
	}
	host.DNSSearch = c.list("dns_search")
	host.DNSOptions = c.set("dns_opt")
	for _, s := range c.hosts() {
		host.ExtraHosts = append(host.ExtraHosts, strings.Replace(s, "=", ":", 1))
	}
}

// hosts reads extra_hosts as a list or a mapping.
func (c *composer) hosts() []string {
	m, ok := c.c["extra_hosts"].(map[string]any)
	if !ok {
		return c.set("extra_hosts")
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		addr, _ := text(m[name])
		out = append(out, name+"="+addr)
	}
	return out
}

func (c *composer) health() {
	if c.c["healthcheck"] == nil {
		return
	}
	raw, ok := c.c["healthcheck"].(map[string]any)
	if !ok {
		c.fail("healthcheck", "want an object")
		return
	}
	m := snakeKeys(raw)
	h := &container.HealthConfig{}
	switch test := m["test"].(type) {
	case string:
		h.Test = []string{"CMD-SHELL", test}
	case []any:
		h.Test = texts(test)
	}
	if Truthy(m["disable"]) {
		h.Test = []string{"NONE"}
	}
	for field, to := range map[string]*time.Duration{
		"interval": &h.Interval, "timeout": &h.Timeout,
		"start_period": &h.StartPeriod, "start_interval": &h.StartInterval,
	} {
		if m[field] == nil {
			continue
		}
		d, err := duration(m[field])
		if err != nil {
			c.fail("healthcheck."+field, "%w", err)
		}
		*to = d
	}
	h.Retries, _ = Int(m["retries"])
	c.spec.Config.Healthcheck = h
}

func (c *composer) dependencies() {
	switch v := c.c["depends_on"].(type) {
	case nil:
	case []any:
		for _, name := range texts(v) {
			c.depend(name, Started)
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			body, _ := v[name].(map[string]any)
			cond, _ := body["condition"].(string)
			c.depend(name, Condition(cmp.Or(cond, string(Started))))
		}
	default:
		c.fail("depends_on", "want a list of services or an object")
	}
}

func (c *composer) depend(service string, cond Condition) {
	if cond != Started && cond != Healthy && cond != Completed {
		c.fail("depends_on."+service, "unknown condition %q", cond)
	}
	same := func(d Dependency) bool { return d.Service == service }
	if slices.Contains(c.app.Absent, service) {
		return // what cannot run here is nothing to wait for
	}
	if !slices.ContainsFunc(c.spec.DependsOn, same) {
		c.spec.DependsOn = append(c.spec.DependsOn, Dependency{service, cond})
	}
}

// known are the compose keys that are read somewhere in this package.
var known = func() map[string]bool {
	out := map[string]bool{}
	for k := range strings.FieldsSeq(`command entrypoint user working_dir stop_signal stop_grace_period tty init
		privileged read_only oom_kill_disable cap_add cap_drop group_add security_opt devices ipc pid userns_mode
		sysctls restart mem_limit mem_reservation shm_size cpu_shares cpu_quota oom_score_adj cpuset cgroup_parent
		cpus pids_limit ulimits hostname domainname dns dns_search dns_opt extra_hosts healthcheck ports volumes
		tmpfs networks network_mode mac_address depends_on labels environment build image`) {
		out[k] = true
	}
	return out
}()

func (c *composer) unknown() {
	for _, k := range slices.Sorted(maps.Keys(c.c)) {
		if !known[k] && c.c[k] != nil {
			c.warn("ignoring %s of service %s: the supervisor does not support it", k, c.svc.Name)
		}
	}
}

// Readers of single fields. A field that is absent or null is the zero value.

func (c *composer) text(field string) string {
	s, ok := text(c.c[field])
	if !ok {
		c.fail(field, "want a string, not %v", c.c[field])
	}
	return s
}

func (c *composer) int(field string) int {
	if c.c[field] == nil {
		return 0
	}
	n, ok := Int(c.c[field])
	if !ok {
		c.fail(field, "want a number, not %v", c.c[field])
	}
	return n
}

func (c *composer) list(field string) []string {
	switch v := c.c[field].(type) {
	case nil:
		return nil
	case string:
		return []string{v}
	case []any:
		return texts(v)
	}
	c.fail(field, "want a list of strings, not %v", c.c[field])
	return nil
}

// set is a list whose order means nothing.
func (c *composer) set(field string) []string {
	out := c.list(field)
	slices.Sort(out)
	return slices.Compact(out)
}

// mapping reads an object, or a list of k=v.
func (c *composer) mapping(field string) map[string]string {
	m, ok := c.c[field].(map[string]any)
	if !ok {
		list := c.list(field)
		m = make(map[string]any, len(list))
		for _, s := range list {
			k, v, _ := strings.Cut(s, "=")
			m[k] = v
		}
	}
	if len(m) == 0 {
		return nil
	}
	return stringMap(m)
}

func (c *composer) command(field string) []string {
	s, ok := c.c[field].(string)
	if !ok {
		return c.list(field)
	}
	words, err := shlex.Split(s)
	if err != nil {
		c.fail(field, "%w", err)
	}
	return words
}

func texts(list []any) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		s, _ := text(v)
		out = append(out, s)
	}
	return out
}

func stringMap(m map[string]any) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k], _ = text(v)
	}
	return out
}
