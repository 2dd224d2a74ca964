package runtime

import (
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/plan"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// plan divides the OCI configuration into what the monitor does and what
// happens in the container, which is in the first file. The others are as
// wire.Launch.User says.
func (m *Monitor) plan(c Container) (launch *wire.Launch, files []*os.File, warnings []string, err error) {
	var config any
	if c.Foreign != nil {
		launch, config, err = c.foreign()
	} else {
		var cfg *boot.Config
		if launch, cfg, warnings, err = m.divide(c); err == nil {
			files, err = plan.Files(c.Spec, cfg)
		}
		config = cfg
	}
	if err != nil {
		return nil, nil, nil, err
	}
	launch.Stdin, launch.StdinOnce = c.Stdin, c.StdinOnce
	launch.Log = wire.Log(c.Log)
	file, err := plan.ConfigFile(config)
	if err != nil {
		closeFiles(files)
		return nil, nil, nil, err
	}
	return launch, append([]*os.File{file}, files...), warnings, nil
}

// foreign is the plan where another runtime does everything.
func (c Container) foreign() (*wire.Launch, *wire.ForeignConfig, error) {
	s := c.Spec
	if s == nil || s.Process == nil || s.Linux == nil || s.Root == nil || c.Rootfs == nil {
		return nil, nil, errdef.Invalid.Errorf("container %s: the configuration has no process, root or linux section", c.ID)
	}
	return &wire.Launch{
		Terminal: s.Process.Terminal, Bundle: c.Bundle, Namespaces: s.Linux.Namespaces,
		CgroupsPath: s.Linux.CgroupsPath, Resources: s.Linux.Resources,
		Foreign: &wire.Foreign{Path: c.Foreign.Path, Args: c.Foreign.Args},
	}, &wire.ForeignConfig{Spec: s, Rootfs: c.Rootfs}, nil
}

func (m *Monitor) divide(c Container) (*wire.Launch, *boot.Config, []string, error) {
	p := plan.Container{ID: c.ID, Bundle: c.Bundle, Spec: c.Spec, Rootfs: c.Rootfs}
	if c.Rootfs != nil { // an overlay only needs some directory in its own mount namespace
		p.RootDir = filepath.Join(m.opts.Dir, "root")
		if err := os.MkdirAll(p.RootDir, 0o711); err != nil {
			return nil, nil, nil, err
		}
	}
	launch, cfg, warnings, err := plan.Divide(p, &m.filters)
	if err != nil {
		return nil, nil, nil, err
	}
	if c.Spec.Hooks != nil && hooks(c.Spec.Hooks) > 0 {
		return nil, nil, nil, errdef.Unsupported.Errorf("container %s: the monitor does not do hooks; take them out of the configuration", c.ID)
	}
	return launch, cfg, warnings, nil
}

func hooks(h *specs.Hooks) int {
	return len(h.Prestart) + len(h.CreateRuntime) + len(h.CreateContainer) + len(h.StartContainer) + len(h.Poststart) + len(h.Poststop)
}
