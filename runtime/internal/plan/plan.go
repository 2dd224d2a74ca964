// Package plan divides an OCI configuration into what the parent of a
// container does and what happens in the container, and refuses what the
// runtime does not do. It changes nothing but the directory of Filters.
package plan

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/userns"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// A Container is what there is to divide.
type Container struct {
	ID     string
	Bundle string
	Spec   *specs.Spec
	Rootfs *overlay.Mount // if set, mounted at RootDir
	// RootDir is any directory; without Rootfs the specification names one.
	RootDir string
}

// Divide returns both parts and what a person should be warned of.
func Divide(c Container, f *Filters) (*wire.Launch, *boot.Config, []string, error) {
	s := c.Spec
	if err := check(c); err != nil {
		return nil, nil, nil, err
	}
	launch := &wire.Launch{
		Terminal: s.Process.Terminal, Bundle: c.Bundle, OOMScoreAdj: s.Process.OOMScoreAdj,
		Namespaces: s.Linux.Namespaces, CgroupsPath: s.Linux.CgroupsPath, Resources: s.Linux.Resources,
		TimeOffsets: s.Linux.TimeOffsets,
	}
	cfg := &boot.Config{
		Process: s.Process, Rootfs: c.Rootfs, Mounts: s.Mounts, Hostname: s.Hostname, Domainname: s.Domainname,
		Devices: s.Linux.Devices, Sysctl: s.Linux.Sysctl, MaskedPaths: s.Linux.MaskedPaths,
		ReadonlyPaths: s.Linux.ReadonlyPaths, RootfsPropagation: s.Linux.RootfsPropagation,
		Personality: s.Linux.Personality,
	}
	var err error
	if launch.Seccomp, err = f.file(s.Linux.Seccomp); err != nil {
		return nil, nil, nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	if r := s.Linux.Resources; r != nil && r.Pids != nil && r.Pids.Limit != nil {
		cfg.LimitsPIDs = *r.Pids.Limit >= 0
	}
	cfg.Root = c.root()
	cfg.ReadOnly = s.Root != nil && s.Root.Readonly
	if launch.User = userOf(s); launch.User != nil {
		launch.User.Dir = cfg.Root
		process := *s.Process
		cfg.Process, launch.Limits, process.Rlimits = &process, s.Process.Rlimits, nil
	}
	for _, ns := range s.Linux.Namespaces {
		switch {
		case ns.Type == specs.UserNamespace: // whoever clones the process enters it
		case ns.Path != "" && ns.Type != specs.PIDNamespace && ns.Type != specs.TimeNamespace:
			cfg.Join = append(cfg.Join, ns)
		case ns.Path == "" && ns.Type == specs.MountNamespace:
			cfg.NewMount = true
		case ns.Path == "" && ns.Type == specs.CgroupNamespace:
			cfg.NewCgroup = true
		}
	}
	return launch, cfg, warningsOf(s.Process), nil
}

// userOf is user 0 of the container's user namespace on the host, nil without
// one.
func userOf(s *specs.Spec) *wire.User {
	if _, ok := userNamespace(s); !ok {
		return nil
	}
	uid, gid, _ := mapping(s).Host(0, 0) // check has looked
	return &wire.User{UID: int(uid), GID: int(gid)}
}

func mapping(s *specs.Spec) userns.Mapping {
	return userns.Mapping{UIDs: s.Linux.UIDMappings, GIDs: s.Linux.GIDMappings}
}

func userNamespace(s *specs.Spec) (specs.LinuxNamespace, bool) {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			return ns, true
		}
	}
	return specs.LinuxNamespace{}, false
}

// Files are the descriptors that the container's process needs besides its
// configuration, which they become part of: its user namespace, if it has one,
// then those of boot.Prepare.
func Files(s *specs.Spec, cfg *boot.Config) (files []*os.File, err error) {
	var user *boot.User
	if ns, ok := userNamespace(s); ok {
		user = &boot.User{Mapping: mapping(s)}
		if ns.Path != "" {
			user.NS, err = os.Open(ns.Path)
		} else {
			user.NS, err = userns.New(user.Mapping)
		}
		if err != nil {
			return nil, err
		}
		files = append(files, user.NS)
	}
	more, err := boot.Prepare(cfg, user)
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	return append(files, more...), nil
}

func (c Container) root() string {
	switch {
	case c.Rootfs != nil:
		return c.RootDir
	case filepath.IsAbs(c.Spec.Root.Path):
		return c.Spec.Root.Path
	}
	return filepath.Join(c.Bundle, c.Spec.Root.Path)
}

func check(c Container) error {
	s := c.Spec
	switch {
	case c.ID == "" || strings.ContainsAny(c.ID, "/\x00") || c.ID[0] == '.':
		return errdef.Invalid.Errorf("container ID %q is not a file name", c.ID)
	case s == nil || s.Process == nil || s.Linux == nil:
		return errdef.Invalid.Errorf("container %s: the configuration has no process or no linux section", c.ID)
	case c.Rootfs == nil && (s.Root == nil || s.Root.Path == ""):
		return errdef.Invalid.Errorf("container %s: the configuration has no root", c.ID)
	case !filepath.IsAbs(s.Process.Cwd):
		return errdef.Invalid.Errorf("container %s: the working directory %q is not absolute", c.ID, s.Process.Cwd)
	}
	if what := Refused(s.Process); what != "" {
		return errdef.Unsupported.Errorf("container %s: this runtime does not do %s; take it out of the configuration", c.ID, what)
	}
	return refuse(c.ID, s)
}

// Refused names what of a process this runtime, or this kernel, does not do.
func Refused(p *specs.Process) string {
	switch {
	case p.ApparmorProfile != "" && p.ApparmorProfile != "unconfined" && !boot.HasAppArmor():
		return "AppArmor profiles on a kernel without AppArmor"
	case p.SelinuxLabel != "":
		return "SELinux labels"
	case p.ExecCPUAffinity != nil:
		return "a processor affinity for exec alone"
	}
	return ""
}

// refuse says what this runtime does not do, rather than leave it undone.
func refuse(id string, s *specs.Spec) error {
	what := ""
	switch {
	case s.Linux.MountLabel != "":
		what = "SELinux labels"
	case s.Linux.IntelRdt != nil:
		what = "Intel RDT"
	case len(s.Linux.NetDevices) > 0:
		what = "moving network devices"
	}
	if _, ok := userNamespace(s); ok {
		if _, _, mapped := mapping(s).Host(0, 0); !mapped || len(s.Linux.UIDMappings) == 0 {
			return errdef.Invalid.Errorf("container %s: its user namespace has no user 0 or no group 0; say in uidMappings and gidMappings who they are, also for a namespace that is joined", id)
		}
	}
	if what == "" {
		return nil
	}
	return errdef.Unsupported.Errorf("container %s: this runtime does not do %s; take it out of the configuration", id, what)
}

// warningsOf says what this host cannot give the process.
func warningsOf(p *specs.Process) []string {
	var w []string
	if missing := boot.MissingCaps(p.Capabilities); len(missing) > 0 {
		w = append(w, "this host cannot give the container "+strings.Join(missing, ", "))
	}
	if boot.HasCap("CAP_SYS_RESOURCE") {
		return w
	}
	for _, l := range p.Rlimits {
		if most, ok := boot.HardLimit(l.Type); ok && l.Hard > most {
			w = append(w, fmt.Sprintf("this host allows %s of at most %d, not %d", l.Type, most, l.Hard))
		}
	}
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < 0 {
		w = append(w, fmt.Sprintf("this host may not allow an OOM score of %d", *p.OOMScoreAdj))
	}
	return w
}

// ConfigFile is a configuration in a file without a name.
func ConfigFile(cfg any) (*os.File, error) {
	data, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "config")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
