package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/internal/network"
	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/runtime"
)

// ContainerStart runs a container that does not run. It is NotModified for one
// that does.
func (e *Engine) ContainerStart(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	switch r := c.snapshot(); {
	case r.Paused:
		return errdef.Conflict.Errorf("cannot start a paused container, try unpause instead")
	case r.Removing || r.Dead:
		return errdef.Conflict.Errorf("container is marked for removal and cannot be started")
	case r.runs():
		return errdef.NotModified.Errorf("container is already running")
	}
	e.giveUpRestart(c)
	if r := c.snapshot(); r.StoppedByUser || r.RestartCount > 0 {
		e.change(c, func(r *record) { r.StoppedByUser, r.RestartCount = false, 0 })
	}
	return e.start(ctx, c)
}

// start runs the container. Called with c.op held. On an error nothing of the
// start is left, and the record says why.
func (e *Engine) start(ctx context.Context, c *Container) error {
	r := c.snapshot()
	pid, err := e.startProcess(ctx, c, &r)
	if err != nil {
		e.startFailed(c, err)
		return startError(&r, err)
	}
	e.at("start-process")
	done := make(chan struct{})
	r = e.change(c, func(r *record) {
		r.Running, r.Restarting, r.Pid, r.StartedAt = true, false, pid, time.Now().UTC()
		r.ExitCode, r.Error, r.OOMKilled, r.Health = 0, "", false, ""
		c.logsDone = done
	})
	e.at("start-record")
	e.publishMounts(events.ActionMount, &r)
	e.publish(events.ActionStart, &r, nil)
	e.rewriteLinkers(&r)
	// What came or went while the container was made.
	e.settleVolumes(&r, "")
	e.settleDevices(c)
	e.watch(c, done)
	e.startHealth(c, &r, container.Starting)
	return nil
}

// startProcess is the way from a record to a running process.
func (e *Engine) startProcess(ctx context.Context, c *Container, r *record) (pid int, err error) {
	// 1. All that is known before there is a process.
	if err := e.findNetworks(r); err != nil {
		return 0, err
	}
	ids := e.mapping(r.Host)
	if err := checkMapped(r, ids); err != nil {
		return 0, err
	}
	mounts, err := e.startMounts(ctx, r)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			e.releaseVolumes(r)
		}
	}()
	rootfs, err := e.rootfs(r)
	if err != nil {
		return 0, err
	}
	who, err := e.lookUpUser(rootfs, r.Config.User, r.Host.GroupAdd)
	if err != nil {
		return 0, err
	}
	own, err := e.ownFiles(r)
	if err != nil {
		return 0, err
	}
	host, plugged, err := e.pluggedIn(r)
	if err != nil {
		return 0, err
	}
	if !slices.Equal(r.Plugged, plugged) {
		e.change(c, func(r *record) { r.Plugged = plugged })
	}
	more := c.extrasOf()
	in := spec.Input{
		ID: r.ID, Config: withEnv(e.withLinks(r), more.env), Host: host, Args: argv(r), Root: filepath.Join(e.containerDir(r.ID), "rootfs"),
		Hostname: e.hostname(r), User: who, Mounts: slices.Concat(mounts, more.mounts, own), CgroupV2: cgroupV2(), IDs: ids,
	}
	if err := e.joinNamespaces(&in); err != nil {
		return 0, err
	}
	if isForeign(r) { // it cannot bind what another container has mounted
		in.Shm = ""
	}
	if in.Seccomp, err = e.filters.Filter(r.Host); err != nil {
		return 0, err
	}
	config, err := spec.Generate(in)
	if err != nil {
		return 0, err
	}
	if err := e.giveDevices(config, r.Host.DeviceRequests); err != nil {
		return 0, err
	}
	log, err := e.logTarget(ctx, r)
	if err != nil {
		return 0, err
	}
	foreign, err := e.foreign(r)
	if err != nil {
		return 0, err
	}

	e.at("start-prepared")

	// 2. Namespaces and cgroup; the init builds the root while we go on.
	pid, warnings, err := e.rt.Create(ctx, runtime.Container{
		ID: r.ID, Bundle: e.containerDir(r.ID), Spec: config, Rootfs: &rootfs,
		Stdin: r.Config.OpenStdin, StdinOnce: r.Config.StdinOnce, Log: log, Foreign: foreign,
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.rt.Delete(context.WithoutCancel(ctx), r.ID))
		}
	}()
	for _, w := range warnings {
		e.log.Warn(w, "container", r.Name)
	}

	e.at("start-namespaces")

	// 3. The network, in the new namespace.
	if err := e.joinNetwork(ctx, c, r, pid); err != nil {
		return 0, e.initError(ctx, r.ID, pid, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.leaveNetwork(context.WithoutCancel(ctx), r))
		}
	}()

	e.at("start-network")

	// 4. Clients that attached before, so that they see the first byte.
	if err := e.connectPending(ctx, c); err != nil {
		return 0, err
	}
	return pid, e.rt.Start(ctx, r.ID)
}

// argv is the first process of a container: its program, or one that has it
// as a child.
func argv(r *record) []string {
	args := append([]string{r.Path}, r.Args...)
	if wantsInit(r) {
		return append([]string{initPath, "--"}, args...)
	}
	return args
}

func wantsInit(r *record) bool { return r.Host.Init != nil && *r.Host.Init }

// initPath is where the runtime's program, known by this name, is that first
// process; clients and images know the path from Docker.
const initPath = "/sbin/docker-init"

// initError prefers the reason of an init that gave up, as for a program that
// is not there, to what its end made fail elsewhere.
func (e *Engine) initError(ctx context.Context, id string, pid int, err error) error {
	if _, alive := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid)); alive == nil {
		return err
	}
	if why := e.rt.Start(ctx, id); why != nil {
		return why
	}
	return err
}

// startFailed records why a start failed.
func (e *Engine) startFailed(c *Container, err error) {
	code := 128
	if se, ok := errors.AsType[*runtime.StartError](err); ok {
		code = se.Code
	}
	r := e.change(c, func(r *record) {
		r.Running, r.Restarting, r.Pid, r.ExitCode, r.Error = false, false, 0, code, err.Error()
		r.FinishedAt = time.Now().UTC()
	})
	e.dropPending(c)
	if r.Host.AutoRemove {
		if err := e.remove(c, true); err != nil {
			e.log.Error("remove container after failed start", "container", r.ID, "err", err)
		}
	}
}

// startError words a failure as docker run expects it: it takes the exit code
// 127 or 126 from the text.
func startError(r *record, err error) error {
	if _, ok := errors.AsType[*runtime.StartError](err); ok {
		return errdef.Invalid.Errorf("failed to create task for container: OCI runtime create failed: unable to start container process: %w", err)
	}
	if errdef.Of(err) != errdef.Internal {
		return err
	}
	return fmt.Errorf("start container %s: %w", r.Name, err)
}

// joinNamespaces resolves namespaces shared with other containers.
func (e *Engine) joinNamespaces(in *spec.Input) error {
	path := func(name, ns string) (string, error) {
		c, other, err := e.findRunning(name)
		if err != nil {
			return "", fmt.Errorf("join the %s namespace of another container: %w", ns, err)
		}
		if c.ID == in.ID {
			return "", errdef.Invalid.Errorf("a container cannot join its own %s namespace", ns)
		}
		if err := joinUser(in, name, other.Pid); err != nil {
			return "", err
		}
		return fmt.Sprintf("/proc/%d/ns/%s", other.Pid, ns), nil
	}
	var err error
	if h := in.Host; h.NetworkMode.IsContainer() {
		if in.NetNS, err = path(h.NetworkMode.ConnectedContainer(), "net"); err != nil {
			return err
		}
	}
	if id := in.Host.IpcMode.Container(); id != "" {
		if in.IpcNS, err = path(id, "ipc"); err != nil {
			return err
		}
		if in.Shm, err = e.sharedMemory(id); err != nil {
			return err
		}
	}
	if id := in.Host.PidMode.Container(); id != "" {
		if in.PidNS, err = path(id, "pid"); err != nil {
			return err
		}
	}
	return nil
}

// sharedMemory is the /dev/shm of a running container that shares it.
func (e *Engine) sharedMemory(name string) (string, error) {
	_, r, err := e.findRunning(name)
	if err != nil {
		return "", err
	}
	if m := r.Host.IpcMode; m.IsPrivate() || m.IsNone() {
		return "", errdef.Invalid.Errorf("can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", r.ID)
	}
	return fmt.Sprintf("/proc/%d/root/dev/shm", r.Pid), nil
}

// lookUpUser reads passwd and group in the container's root. The view of it has
// the upper directory as one more lower one: unmounting a root that can be
// written to syncs the whole data partition, whoever wrote there.
func (e *Engine) lookUpUser(rootfs overlay.Mount, name string, groups []string) (spec.User, error) {
	rootfs.Lower = append([]string{rootfs.Upper}, rootfs.Lower...)
	rootfs.Upper, rootfs.Work = "", ""
	view, err := rootfs.Open()
	if err != nil {
		return spec.User{}, err
	}
	defer view.Close()
	passwd, group := openIn(view, "etc/passwd"), openIn(view, "etc/group")
	return spec.LookUp(name, groups, passwd, group)
}

// lookUpUserIn is lookUpUser for a container that runs.
func (e *Engine) lookUpUserIn(r *record, name string) (spec.User, error) {
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", r.Pid))
	if err != nil {
		return spec.User{}, err
	}
	defer root.Close()
	return spec.LookUp(name, r.Host.GroupAdd, openIn(root, "etc/passwd"), openIn(root, "etc/group"))
}

// openIn reads a small file below a mount; a missing one reads as empty.
func openIn(root *os.File, path string) *bytes.Reader {
	h, err := pathrs.OpenInRoot(overlay.Path(root), path)
	if err != nil {
		return bytes.NewReader(nil)
	}
	defer h.Close()
	data, err := os.ReadFile(overlay.Path(h))
	if err != nil {
		return bytes.NewReader(nil)
	}
	return bytes.NewReader(data)
}

// hostname is the container's, or the host's where they share it.
func (e *Engine) hostname(r *record) string {
	if r.Config.Hostname != "" {
		return r.Config.Hostname
	}
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// The files that the engine writes for a container, and their place in it.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
)

// ownFiles writes /etc/hostname, hosts and resolv.conf in a first form and
// returns their mounts. The network fills in addresses later, in place.
func (e *Engine) ownFiles(r *record) ([]specs.Mount, error) {
	if mode := r.Host.NetworkMode; mode.IsContainer() {
		other, err := e.find(mode.ConnectedContainer())
		if err != nil {
			return nil, err
		}
		return e.ownMounts(r, other.ID), nil
	}
	hosts, resolv := hostsContent(r, nil, e.cfg.Defaults.HostGateway), []byte(nil)
	if r.Host.NetworkMode.IsHost() {
		var err error
		if hosts, err = os.ReadFile("/etc/hosts"); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		gateways := e.cfg.Defaults.HostGateway
		if len(gateways) == 0 {
			gateways = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		hosts = append(hosts, extraHosts(r, gateways)...)
		if resolv, err = os.ReadFile("/etc/resolv.conf"); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	for name, data := range map[string][]byte{hostnameFile: []byte(e.hostname(r) + "\n"), hostsFile: hosts, resolvFile: resolv} {
		if err := e.writeOwn(r.ID, name, data); err != nil {
			return nil, err
		}
	}
	return e.ownMounts(r, r.ID), nil
}

// writeOwn changes a file in place: a container may have it mounted.
func (e *Engine) writeOwn(id, name string, data []byte) error {
	return os.WriteFile(filepath.Join(e.containerDir(id), name), data, 0o644)
}

func (e *Engine) ownMounts(r *record, owner string) (out []specs.Mount) {
	taken := map[string]bool{}
	for _, p := range r.Mounts {
		taken[p.Destination] = true
	}
	for _, name := range []string{hostnameFile, hostsFile, resolvFile} {
		target := "/etc/" + name
		if taken[target] {
			continue
		}
		m := specs.Mount{Destination: target, Type: "bind", Source: filepath.Join(e.containerDir(owner), name), Options: append([]string{"rbind", "rprivate"}, e.mapOption(r, e.containerDir(owner))...)}
		if r.Host.ReadonlyRootfs {
			m.Options = append(m.Options, "ro")
		}
		out = append(out, m)
	}
	if wantsInit(r) && !taken[initPath] {
		out = append(out, specs.Mount{Destination: initPath, Type: "bind", Source: e.cfg.Runtime, Options: []string{"bind", "rprivate", "ro"}})
	}
	return out
}

const hostsHead = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// hostsContent is /etc/hosts as Docker makes it.
func hostsContent(r *record, joined *network.Joined, hostGateway []netip.Addr) []byte {
	b := []byte(hostsHead)
	var gateway netip.Addr
	if joined != nil {
		for _, name := range sortedKeys(joined.Endpoints) {
			ep := joined.Endpoints[name]
			if ep.Gateway.IsValid() {
				gateway = ep.Gateway
			}
			for _, ip := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
				if !ip.IsValid() {
					continue
				}
				b = fmt.Appendf(b, "%s\t%s", ip, r.Config.Hostname)
				if r.Config.Domainname != "" {
					b = fmt.Appendf(b, ".%s %s", r.Config.Domainname, r.Config.Hostname)
				}
				b = append(b, '\n')
			}
		}
	}
	if len(hostGateway) == 0 && gateway.IsValid() {
		hostGateway = []netip.Addr{gateway}
	}
	return append(b, extraHosts(r, hostGateway)...)
}

func extraHosts(r *record, gateways []netip.Addr) (b []byte) {
	for _, h := range r.Host.ExtraHosts {
		name, addr, ok := strings.Cut(h, ":")
		if !ok {
			name, addr, _ = strings.Cut(h, "=")
		}
		if addr == "host-gateway" {
			for _, g := range gateways {
				b = fmt.Appendf(b, "%s\t%s\n", g, name)
			}
			continue
		}
		b = fmt.Appendf(b, "%s\t%s\n", addr, name)
	}
	return b
}

// cgroupV2 reports whether this host has one hierarchy for all controllers.
func cgroupV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}
