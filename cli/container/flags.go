package container

import (
	"bufio"
	"encoding/csv"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

// runOptions are the flags of run, in Docker's names.
type runOptions struct {
	image   string
	command []string

	detach, interactive, tty, remove, sigProxy         bool
	privileged, readOnly, init, publishAll, noHealth   bool
	name, user, workdir, hostname, network, restart    string
	pid, ipc, uts, cgroupParent, runtime, entrypoint   string
	memory, shm, cpuset, stopSignal, detachKeys        string
	pull, logDriver, healthCmd, cgroupns, userns, gpus string
	cpus                                               float64
	cpuShares, pids                                    int64
	stopTimeout, healthRetries, oomScore               int
	healthInterval, healthTimeout, healthStart         time.Duration
	env, envFiles, labels, volumes, mounts, publish    []string
	expose, tmpfs, devices, capAdd, capDrop, groups    []string
	hosts, dns, dnsSearch, dnsOptions, security        []string
	ulimits, sysctls, aliases, logOptions              []string
	entrypointSet                                      func() bool
}

func (o *runOptions) flags(f *pflag.FlagSet) {
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the container's ID")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	f.BoolVar(&o.remove, "rm", false, "remove the container when it exits")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "pass signals on")
	f.StringVar(&o.detachKeys, "detach-keys", "", "`keys` that leave the container running")
	f.StringVar(&o.name, "name", "", "`name` of the container")
	f.StringVar(&o.pull, "pull", "missing", "when to download the image: always, missing, never")
	f.StringVar(&o.entrypoint, "entrypoint", "", "`program` instead of the image's entrypoint")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment `variable`, KEY=value or KEY to pass on")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`file` of environment variables")
	f.StringVarP(&o.user, "user", "u", "", "`user[:group]` to run as")
	f.StringVarP(&o.workdir, "workdir", "w", "", "`directory` to run in")
	f.StringVarP(&o.hostname, "hostname", "h", "", "host `name`")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "`label`, key=value")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "mount `source:target[:ro]`")
	f.StringArrayVar(&o.mounts, "mount", nil, "mount `type=…,source=…,target=…`")
	f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "mount a tmpfs at `path[:options]`")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "publish a port, `[ip:]host:container[/udp]`")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "publish all exposed ports to free ones")
	f.StringArrayVar(&o.expose, "expose", nil, "expose a `port`")
	f.StringVar(&o.network, "network", "", "`network` to connect to")
	f.StringVar(&o.network, "net", "", "same as --network")
	f.Lookup("net").Hidden = true
	f.StringArrayVar(&o.aliases, "network-alias", nil, "additional `name` in the network")
	f.StringArrayVar(&o.hosts, "add-host", nil, "additional `name:address`")
	f.StringArrayVar(&o.dns, "dns", nil, "DNS `server`")
	f.StringArrayVar(&o.dnsSearch, "dns-search", nil, "DNS search `domain`")
	f.StringArrayVar(&o.dnsOptions, "dns-option", nil, "DNS `option`")
	f.StringVar(&o.restart, "restart", "no", "restart `policy`: no, always, unless-stopped, on-failure[:n]")
	f.BoolVar(&o.privileged, "privileged", false, "all capabilities and devices")
	f.BoolVar(&o.readOnly, "read-only", false, "no writing to the root file system")
	f.BoolVar(&o.init, "init", false, "run an init that reaps processes")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "add a `capability`")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "drop a `capability`")
	f.StringArrayVar(&o.security, "security-opt", nil, "security `option`")
	f.StringArrayVar(&o.groups, "group-add", nil, "additional `group`")
	f.StringArrayVar(&o.devices, "device", nil, "add a host `device[:path[:rwm]]`, or vendor.com/class=name by CDI")
	f.StringVar(&o.gpus, "gpus", "", "GPU `devices`: all, a number, or device=<id>,<id> in quotes")
	f.StringVar(&o.pid, "pid", "", "PID `namespace`: host or container:<name>")
	f.StringVar(&o.ipc, "ipc", "", "IPC `mode`")
	f.StringVar(&o.uts, "uts", "", "UTS `namespace`: host")
	f.StringVar(&o.userns, "userns", "", "user `namespace`")
	f.StringVar(&o.cgroupns, "cgroupns", "", "cgroup `namespace`: host or private")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "parent `cgroup`")
	f.StringVar(&o.runtime, "runtime", "", "OCI `runtime`")
	f.StringVarP(&o.memory, "memory", "m", "", "memory `limit`, such as 64m")
	f.StringVar(&o.shm, "shm-size", "", "`size` of /dev/shm")
	f.Float64Var(&o.cpus, "cpus", 0, "`number` of processors")
	f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "relative `weight`")
	f.StringVar(&o.cpuset, "cpuset-cpus", "", "`processors` to run on")
	f.Int64Var(&o.pids, "pids-limit", 0, "`limit` of processes")
	f.IntVar(&o.oomScore, "oom-score-adj", 0, "`preference` of the OOM killer")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "`limit`, name=soft[:hard]")
	f.StringArrayVar(&o.sysctls, "sysctl", nil, "kernel `parameter`, key=value")
	f.StringVar(&o.stopSignal, "stop-signal", "", "`signal` to stop with")
	f.IntVar(&o.stopTimeout, "stop-timeout", 0, "`seconds` to wait for that")
	f.StringVar(&o.healthCmd, "health-cmd", "", "`command` that checks health")
	f.DurationVar(&o.healthInterval, "health-interval", 0, "`time` between checks")
	f.DurationVar(&o.healthTimeout, "health-timeout", 0, "`time` one check may take")
	f.DurationVar(&o.healthStart, "health-start-period", 0, "`time` in which failures do not count")
	f.IntVar(&o.healthRetries, "health-retries", 0, "`failures` that make it unhealthy")
	f.BoolVar(&o.noHealth, "no-healthcheck", false, "no health check, whatever the image says")
	f.StringVar(&o.logDriver, "log-driver", "", "log `driver`")
	f.StringArrayVar(&o.logOptions, "log-opt", nil, "log driver `option`")
	o.entrypointSet = func() bool { return f.Changed("entrypoint") }
}

// create turns the flags into the engine's terms.
func (o *runOptions) create() (client.ContainerCreateOptions, error) {
	cfg := &container.Config{
		Image: o.image, Cmd: o.command, User: o.user, WorkingDir: o.workdir, Hostname: o.hostname,
		Tty: o.tty, OpenStdin: o.interactive, StdinOnce: o.interactive && !o.detach,
		AttachStdin: o.interactive && !o.detach, AttachStdout: !o.detach, AttachStderr: !o.detach,
		StopSignal: o.stopSignal, Labels: pairs(o.labels),
	}
	host := &container.HostConfig{
		AutoRemove: o.remove, Privileged: o.privileged, ReadonlyRootfs: o.readOnly, PublishAllPorts: o.publishAll,
		NetworkMode: container.NetworkMode(o.network), PidMode: container.PidMode(o.pid), IpcMode: container.IpcMode(o.ipc),
		UTSMode: container.UTSMode(o.uts), UsernsMode: container.UsernsMode(o.userns), CgroupnsMode: container.CgroupnsMode(o.cgroupns),
		CapAdd: o.capAdd, CapDrop: o.capDrop, SecurityOpt: o.security, GroupAdd: o.groups, ExtraHosts: o.hosts,
		DNSSearch: o.dnsSearch, DNSOptions: o.dnsOptions, Runtime: o.runtime, OomScoreAdj: o.oomScore, Sysctls: pairs(o.sysctls),
		LogConfig: container.LogConfig{Type: o.logDriver, Config: pairs(o.logOptions)},
		Resources: container.Resources{
			NanoCPUs: int64(o.cpus * 1e9), CPUShares: o.cpuShares, CpusetCpus: o.cpuset, CgroupParent: o.cgroupParent,
		},
	}
	if o.entrypointSet() {
		cfg.Entrypoint = []string{o.entrypoint} // an empty one resets the image's
	}
	if o.init {
		host.Init = &o.init
	}
	if o.pids != 0 {
		host.PidsLimit = &o.pids
	}
	if o.stopTimeout != 0 {
		cfg.StopTimeout = &o.stopTimeout
	}
	o.health(cfg)
	for _, step := range []func(*container.Config, *container.HostConfig) error{
		o.environment, o.storage, o.ports, o.limits, o.restartPolicy, o.resolver,
	} {
		if err := step(cfg, host); err != nil {
			return client.ContainerCreateOptions{}, err
		}
	}
	opts := client.ContainerCreateOptions{Name: o.name, Config: cfg, HostConfig: host}
	if len(o.aliases) > 0 && o.network != "" {
		opts.NetworkingConfig = &network.NetworkingConfig{
			EndpointsConfig: map[string]*network.EndpointSettings{o.network: {Aliases: o.aliases}},
		}
	}
	return opts, nil
}

func pairs(list []string) map[string]string {
	out := make(map[string]string, len(list))
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, "=")
		out[k] = v
	}
	return out
}

func (o *runOptions) health(cfg *container.Config) {
	if o.noHealth {
		cfg.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
		return
	}
	h := &container.HealthConfig{Interval: o.healthInterval, Timeout: o.healthTimeout, StartPeriod: o.healthStart, Retries: o.healthRetries}
	if o.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", o.healthCmd}
	}
	if h.Test != nil || h.Interval != 0 || h.Timeout != 0 || h.StartPeriod != 0 || h.Retries != 0 {
		cfg.Healthcheck = h
	}
}

func (o *runOptions) environment(cfg *container.Config, _ *container.HostConfig) error {
	for _, path := range o.envFiles {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if l := strings.TrimSpace(lines.Text()); l != "" && !strings.HasPrefix(l, "#") {
				cfg.Env = appendEnv(cfg.Env, l)
			}
		}
		f.Close()
		if err := lines.Err(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, e := range o.env {
		cfg.Env = appendEnv(cfg.Env, e)
	}
	return nil
}

// appendEnv takes the value of a bare name from our own environment; what is
// not set here stays unset there.
func appendEnv(env []string, e string) []string {
	if strings.Contains(e, "=") {
		return append(env, e)
	}
	if v, ok := os.LookupEnv(e); ok {
		return append(env, e+"="+v)
	}
	return env
}

func (o *runOptions) storage(cfg *container.Config, host *container.HostConfig) error {
	for _, v := range o.volumes {
		if strings.Contains(v, ":") {
			host.Binds = append(host.Binds, v)
			continue
		}
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		cfg.Volumes[v] = struct{}{}
	}
	for _, t := range o.tmpfs {
		if host.Tmpfs == nil {
			host.Tmpfs = map[string]string{}
		}
		path, options, _ := strings.Cut(t, ":")
		host.Tmpfs[path] = options
	}
	for _, text := range o.mounts {
		m, err := parseMount(text)
		if err != nil {
			return fmt.Errorf("--mount %q: %w", text, err)
		}
		host.Mounts = append(host.Mounts, m)
	}
	var named []string
	for _, d := range o.devices {
		if !strings.HasPrefix(d, "/") && strings.Contains(d, "=") {
			named = append(named, d)
			continue
		}
		parts := strings.SplitN(d+"::", ":", 4)
		m := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[1], CgroupPermissions: parts[2]}
		if m.PathInContainer == "" {
			m.PathInContainer = m.PathOnHost
		}
		if m.CgroupPermissions == "" {
			m.CgroupPermissions = "rwm"
		}
		host.Devices = append(host.Devices, m)
	}
	if named != nil {
		host.DeviceRequests = append(host.DeviceRequests, container.DeviceRequest{Driver: "cdi", DeviceIDs: named})
	}
	if o.gpus != "" {
		r, err := parseGPUs(o.gpus)
		if err != nil {
			return fmt.Errorf("--gpus %s: %w", o.gpus, err)
		}
		host.DeviceRequests = append(host.DeviceRequests, r)
	}
	return nil
}

// parseGPUs reads the value of --gpus: a count, or fields in the form of CSV.
func parseGPUs(text string) (container.DeviceRequest, error) {
	r := container.DeviceRequest{Capabilities: [][]string{{"gpu"}}}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return r, err
	}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			key, value = "count", field
		}
		switch key {
		case "driver":
			r.Driver = value
		case "device":
			r.DeviceIDs = strings.Split(value, ",")
		case "capabilities":
			r.Capabilities = [][]string{append(strings.Split(value, ","), "gpu")}
		case "count":
			if r.Count, err = strconv.Atoi(value); value == "all" {
				r.Count, err = -1, nil
			}
			if err != nil {
				return r, fmt.Errorf("want all or a number, not %q", value)
			}
		default:
			return r, fmt.Errorf("no option %q; there are driver, device, count and capabilities", key)
		}
	}
	if r.Count == 0 && r.DeviceIDs == nil {
		r.Count = -1
	}
	return r, nil
}

func parseMount(text string) (mount.Mount, error) {
	m := mount.Mount{Type: mount.TypeVolume}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return m, err
	}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		switch strings.ToLower(k) {
		case "type":
			m.Type = mount.Type(v)
		case "source", "src":
			m.Source = v
		case "target", "dst", "destination":
			m.Target = v
		case "readonly", "ro":
			m.ReadOnly = v == "" || v == "true" || v == "1"
		case "bind-propagation":
			m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(v)}
		case "tmpfs-size":
			n, err := units.RAMInBytes(v)
			if err != nil {
				return m, err
			}
			m.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: n}
		default:
			return m, fmt.Errorf("unknown option %q", k)
		}
	}
	return m, nil
}

func (o *runOptions) ports(cfg *container.Config, host *container.HostConfig) error {
	cfg.ExposedPorts, host.PortBindings = network.PortSet{}, network.PortMap{}
	for _, e := range o.expose {
		r, err := network.ParsePortRange(e)
		if err != nil {
			return fmt.Errorf("--expose: %w", err)
		}
		for p := range r.All() {
			cfg.ExposedPorts[p] = struct{}{}
		}
	}
	for _, p := range o.publish {
		if err := publish(cfg, host, p); err != nil {
			return fmt.Errorf("--publish %q: %w", p, err)
		}
	}
	return nil
}

// publish reads [ip:][host[-end]:]container[-end][/protocol].
func publish(cfg *container.Config, host *container.HostConfig, text string) error {
	spec, proto, _ := strings.Cut(text, "/")
	if proto == "" {
		proto = "tcp"
	}
	inside, rest := spec, ""
	if i := strings.LastIndex(spec, ":"); i >= 0 {
		rest, inside = spec[:i], spec[i+1:]
	}
	ipText, outside := "", rest
	if i := strings.LastIndex(rest, ":"); i >= 0 {
		ipText, outside = strings.Trim(rest[:i], "[]"), rest[i+1:]
	}
	var ip netip.Addr
	if ipText != "" {
		var err error
		if ip, err = netip.ParseAddr(ipText); err != nil {
			return err
		}
	}
	r, err := network.ParsePortRange(inside + "/" + proto)
	if err != nil {
		return err
	}
	next := func() string { return outside } // "" is a free port
	if outside != "" {
		h, err := network.ParsePortRange(outside)
		if err != nil {
			return err
		}
		if h.End()-h.Start() != r.End()-r.Start() {
			return fmt.Errorf("the two ranges differ in length")
		}
		n := int(h.Start()) - 1
		next = func() string { n++; return strconv.Itoa(n) }
	}
	for p := range r.All() {
		cfg.ExposedPorts[p] = struct{}{}
		host.PortBindings[p] = append(host.PortBindings[p], network.PortBinding{HostIP: ip, HostPort: next()})
	}
	return nil
}

func (o *runOptions) limits(_ *container.Config, host *container.HostConfig) error {
	for _, l := range []struct {
		flag, text string
		to         *int64
	}{{"memory", o.memory, &host.Memory}, {"shm-size", o.shm, &host.ShmSize}} {
		if l.text == "" {
			continue
		}
		n, err := units.RAMInBytes(l.text)
		if err != nil {
			return fmt.Errorf("--%s: %w", l.flag, err)
		}
		*l.to = n
	}
	for _, text := range o.ulimits {
		u, err := units.ParseUlimit(text)
		if err != nil {
			return fmt.Errorf("--ulimit: %w", err)
		}
		host.Ulimits = append(host.Ulimits, u)
	}
	return nil
}

func (o *runOptions) restartPolicy(_ *container.Config, host *container.HostConfig) error {
	name, count, counted := strings.Cut(o.restart, ":")
	host.RestartPolicy.Name = container.RestartPolicyMode(name)
	if !counted {
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return fmt.Errorf("--restart %q: want on-failure:<number>", o.restart)
	}
	host.RestartPolicy.MaximumRetryCount = n
	return nil
}

func (o *runOptions) resolver(_ *container.Config, host *container.HostConfig) error {
	for _, d := range o.dns {
		ip, err := netip.ParseAddr(d)
		if err != nil {
			return fmt.Errorf("--dns: %w", err)
		}
		host.DNS = append(host.DNS, ip)
	}
	return nil
}

func containsAny(s string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
