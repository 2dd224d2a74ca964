// Package spec writes OCI runtime configurations (config.json) from what
// Docker clients ask for.
//
// Generate is a function of its input alone, but for device nodes that it
// looks up on the host. Format: OCI runtime specification 1.2, config.md and
// config-linux.md. Defaults (mounts, masks, capabilities, device rules) are
// those of Docker Engine, so that images find what they were built for.
package spec

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/userns"
)

// Input is everything about one start of one container.
type Input struct {
	ID       string
	Config   *container.Config
	Host     *container.HostConfig
	Args     []string
	Root     string // path of the root directory, as config.json names it
	Hostname string
	User     User
	Mounts   []specs.Mount // volumes, binds, tmpfs and the engine's own files

	// Paths of namespaces of other containers, "" for one of its own or, if
	// the HostConfig says so, the host's. With a path of a user namespace there
	// must be a mapping, that of the other container.
	NetNS, PidNS, IpcNS, UserNS string
	Shm                         string // directory to have as /dev/shm, of whose IPC namespace it joins

	IDs userns.Mapping // of a user namespace; the zero value is the host's

	CgroupV2 bool
	Seccomp  *specs.LinuxSeccomp // nil: unconfined
}

// User is the result of looking up Config.User in the image.
type User struct {
	UID, GID uint32
	Groups   []uint32
	Home     string
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Generate returns the configuration. Errors are of kind errdef.Invalid.
func Generate(in Input) (*specs.Spec, error) {
	caps, err := Capabilities(in.Host)
	if err != nil {
		return nil, err
	}
	devices, rules, err := devices(in.Host)
	if err != nil {
		return nil, err
	}
	security, err := ParseSecurity(in.Host)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:    specs.Version,
		Process:    process(in, caps, security.NoNewPrivileges),
		Root:       &specs.Root{Path: in.Root, Readonly: in.Host.ReadonlyRootfs},
		Hostname:   in.Hostname,
		Domainname: in.Config.Domainname,
		Mounts:     mounts(in),
		Linux: &specs.Linux{
			CgroupsPath:       CgroupPath(in.Host, in.ID),
			Namespaces:        namespaces(in),
			Devices:           devices,
			Resources:         Resources(in.Host.Resources),
			Sysctl:            sysctls(in),
			Seccomp:           in.Seccomp,
			RootfsPropagation: rootPropagation(in.Mounts),
			UIDMappings:       in.IDs.UIDs,
			GIDMappings:       in.IDs.GIDs,
		},
	}
	s.Process.ApparmorProfile = security.AppArmor
	if in.Host.UTSMode.IsHost() {
		s.Hostname, s.Domainname = "", ""
	}
	s.Linux.Resources.Devices = rules
	if len(in.Host.Annotations) > 0 {
		s.Annotations = maps.Clone(in.Host.Annotations)
	}
	if !in.Host.Privileged && !security.UnconfinedPaths {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
		if in.Host.MaskedPaths != nil {
			s.Linux.MaskedPaths = in.Host.MaskedPaths
		}
		if in.Host.ReadonlyPaths != nil {
			s.Linux.ReadonlyPaths = in.Host.ReadonlyPaths
		}
	}
	return s, nil
}

// CgroupParent is the control group of all containers that name no other.
const CgroupParent = "/minke"

// CgroupPath is the container's control group, below every controller's root.
func CgroupPath(h *container.HostConfig, id string) string {
	parent := h.CgroupParent
	if parent == "" {
		parent = CgroupParent
	}
	return strings.TrimSuffix(parent, "/") + "/" + id
}

func process(in Input, caps []string, noNewPrivs bool) *specs.Process {
	cwd := in.Config.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	p := &specs.Process{
		Terminal:        in.Config.Tty,
		User:            specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups, Umask: in.Host.Umask},
		Args:            in.Args,
		Env:             Env(in.Config, in.Hostname, in.User.Home),
		Cwd:             cwd,
		NoNewPrivileges: noNewPrivs,
		Capabilities:    Set(caps),
		OOMScoreAdj:     &in.Host.OomScoreAdj,
		Rlimits:         Rlimits(in.Host),
	}
	if in.Config.Tty && in.Host.ConsoleSize != [2]uint{} {
		p.ConsoleSize = &specs.Box{Height: in.Host.ConsoleSize[0], Width: in.Host.ConsoleSize[1]}
	}
	return p
}

// Rlimits are the limits of each of a container's processes.
func Rlimits(h *container.HostConfig) (out []specs.POSIXRlimit) {
	for _, u := range h.Ulimits {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out
}

// Set is the capability sets of a process: Docker leaves inheritable and
// ambient empty since CVE-2022-24769.
func Set(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// Env is the environment of a container's processes: defaults first, each
// overridden by the container's own.
func Env(c *container.Config, hostname, home string) []string {
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	if c.Tty {
		env = append(env, "TERM=xterm")
	}
	return MergeEnv(append(env, "HOME="+home), c.Env)
}

// MergeEnv is base with the variables of over, which win. A word without "="
// removes the variable.
func MergeEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, kv := range over {
		name, _, assigns := strings.Cut(kv, "=")
		i := slices.IndexFunc(out, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		switch {
		case i >= 0 && assigns:
			out[i] = kv
		case i >= 0:
			out = slices.Delete(out, i, i+1)
		case assigns:
			out = append(out, kv)
		}
	}
	return out
}

func namespaces(in Input) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, host bool, path string) {
		if !host {
			ns = append(ns, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	h := in.Host
	add(specs.NetworkNamespace, h.NetworkMode.IsHost(), in.NetNS)
	add(specs.PIDNamespace, h.PidMode.IsHost(), in.PidNS)
	add(specs.IPCNamespace, h.IpcMode.IsHost(), in.IpcNS)
	add(specs.UTSNamespace, h.UTSMode.IsHost(), "")
	add(specs.UserNamespace, len(in.IDs.UIDs) == 0, in.UserNS)
	// With cgroup v1 Docker shows containers the host's tree.
	private := h.CgroupnsMode.IsPrivate() || h.CgroupnsMode.IsEmpty() && in.CgroupV2 && !h.Privileged
	add(specs.CgroupNamespace, !private, "")
	return ns
}

func sysctls(in Input) map[string]string {
	out := map[string]string{}
	if !in.Host.NetworkMode.IsHost() && !in.Host.NetworkMode.IsContainer() {
		// Any user may listen on low ports and ping in a network of its own.
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		last := uint32(math.MaxInt32)
		for _, m := range in.IDs.GIDs { // there are no others
			last = m.ContainerID + m.Size - 1
		}
		out["net.ipv4.ping_group_range"] = fmt.Sprint("0 ", last)
	}
	maps.Copy(out, in.Host.Sysctls)
	return out
}

// Security is what SecurityOpt says.
type Security struct {
	NoNewPrivileges bool
	UnconfinedPaths bool
	Seccomp         string // "" default, "unconfined", or a profile in JSON
	AppArmor        string // profile; "": none, also where the kernel has no AppArmor
}

// ParseSecurity reads SecurityOpt in Docker's words. SELinux options, and those
// of AppArmor where the kernel has none, are accepted and mean nothing.
func ParseSecurity(h *container.HostConfig) (Security, error) {
	var s Security
	for _, opt := range h.SecurityOpt {
		key, value, ok := cutSecurity(opt)
		switch {
		case key == "no-new-privileges":
			s.NoNewPrivileges = !ok || value == "true"
		case opt == "systempaths=unconfined":
			s.UnconfinedPaths = true
		case key == "seccomp" && ok:
			s.Seccomp = value
		case key == "apparmor" && ok:
			if value != "unconfined" && hasAppArmor() {
				s.AppArmor = value
			}
		case key == "label" && ok:
		case opt == "label=disable" || opt == "disable":
		default:
			return s, errdef.Invalid.Errorf("invalid --security-opt: %q", opt)
		}
	}
	if h.Privileged && s.Seccomp == "" {
		s.Seccomp = "unconfined"
	}
	return s, nil
}

// SecurityKey is what an element of SecurityOpt is about, as "seccomp".
func SecurityKey(opt string) string {
	key, _, _ := cutSecurity(opt)
	return key
}

func cutSecurity(opt string) (key, value string, ok bool) {
	if key, value, ok = strings.Cut(opt, "="); !ok {
		key, value, ok = strings.Cut(opt, ":") // the old form
	}
	return key, value, ok
}

var hasAppArmor = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
})
