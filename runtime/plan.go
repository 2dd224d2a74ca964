package runtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/durable"
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
	if c.Spec.Hooks == nil {
		return launch, cfg, warnings, nil
	}
	return launch, cfg, warnings, c.planHooks(launch, cfg)
}

// planHooks divides the hooks. They find the configuration in the bundle, as
// the specification has it, with the root where the init has it mounted.
func (c Container) planHooks(launch *wire.Launch, cfg *boot.Config) error {
	h := c.Spec.Hooks
	if len(h.Poststart)+len(h.Poststop) > 0 {
		return errdef.Unsupported.Errorf("container %s: the monitor does not do poststart and poststop hooks; take them out of the configuration", c.ID)
	}
	launch.Hooks = &wire.Hooks{
		List:  append(slices.Clone(h.Prestart), h.CreateRuntime...),
		State: specs.State{Version: specs.Version, ID: c.ID, Bundle: c.Bundle, Annotations: c.Spec.Annotations},
	}
	cfg.Hooks = boot.Hooks{CreateContainer: h.CreateContainer, StartContainer: h.StartContainer}
	cfg.BeforePivot = len(launch.Hooks.List) > 0
	spec := *c.Spec
	spec.Root = &specs.Root{Path: cfg.Root, Readonly: cfg.ReadOnly}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return durable.ReplaceFile(filepath.Join(c.Bundle, "config.json"), data, 0o600)
}
