package runtime

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// plan divides the OCI configuration into what the monitor does and what
// happens in the container.
func (m *Monitor) plan(c Container) (*wire.Launch, *boot.Config, []string, error) {
	s := c.Spec
	if err := check(c); err != nil {
		return nil, nil, nil, err
	}
	launch := &wire.Launch{
		Terminal: s.Process.Terminal, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
		Inherit: len(c.Inherit) == 3, Bundle: c.Bundle,
		OOMScoreAdj: s.Process.OOMScoreAdj,
		Log:         wire.Log(c.Log),
		Namespaces:  s.Linux.Namespaces,
		CgroupsPath: s.Linux.CgroupsPath, Resources: s.Linux.Resources,
	}
	cfg := &boot.Config{
		Process: s.Process, Rootfs: c.Rootfs, Mounts: s.Mounts, Hostname: s.Hostname, Domainname: s.Domainname,
		Devices: s.Linux.Devices, Sysctl: s.Linux.Sysctl, MaskedPaths: s.Linux.MaskedPaths,
		ReadonlyPaths: s.Linux.ReadonlyPaths, RootfsPropagation: s.Linux.RootfsPropagation,
	}
	var err error
	if launch.Seccomp, err = m.filters.file(s.Linux.Seccomp); err != nil {
		return nil, nil, nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	if cfg.Root, err = m.root(c); err != nil {
		return nil, nil, nil, err
	}
	cfg.ReadOnly = s.Root != nil && s.Root.Readonly
	for _, ns := range s.Linux.Namespaces {
		switch {
		case ns.Path != "" && ns.Type != specs.PIDNamespace:
			cfg.Join = append(cfg.Join, ns)
		case ns.Path == "" && ns.Type == specs.MountNamespace:
			cfg.NewMount = true
		case ns.Path == "" && ns.Type == specs.CgroupNamespace:
			cfg.NewCgroup = true
		}
	}
	return launch, cfg, warningsOf(s.Process), nil
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
	return refuse(c.ID, s)
}

// refuse says what this runtime does not do, rather than leave it undone.
func refuse(id string, s *specs.Spec) error {
	what := ""
	switch {
	case s.Hooks != nil && hooks(s.Hooks) > 0:
		what = "hooks"
	case s.Process.ApparmorProfile != "" && s.Process.ApparmorProfile != "unconfined":
		what = "AppArmor profiles"
	case s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "":
		what = "SELinux labels"
	case s.Linux.IntelRdt != nil:
		what = "Intel RDT"
	case len(s.Linux.TimeOffsets) > 0 || len(s.Linux.NetDevices) > 0:
		what = "time offsets and moving network devices"
	}
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			what = "user namespaces"
		}
	}
	if what == "" {
		return nil
	}
	return errdef.Unsupported.Errorf("container %s: this runtime does not do %s; take it out of the configuration", id, what)
}

func hooks(h *specs.Hooks) int {
	return len(h.Prestart) + len(h.CreateRuntime) + len(h.CreateContainer) + len(h.StartContainer) + len(h.Poststart) + len(h.Poststop)
}

// root is the directory that is, or that will carry, the root file system. An
// overlay only needs some directory in its own mount namespace.
func (m *Monitor) root(c Container) (string, error) {
	if c.Rootfs != nil {
		dir := filepath.Join(m.opts.Dir, "root")
		return dir, os.MkdirAll(dir, 0o700)
	}
	if filepath.IsAbs(c.Spec.Root.Path) {
		return c.Spec.Root.Path, nil
	}
	return filepath.Join(c.Bundle, c.Spec.Root.Path), nil
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

// configFile is the configuration in a file without a name.
func configFile(cfg *boot.Config) (*os.File, error) {
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
