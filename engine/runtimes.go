package engine

import (
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

// runtimeName is what our own runtime is called.
const runtimeName = "minke-runtime"

// A Runtime is another OCI runtime that containers may ask for. Its JSON is
// that of dockerd's configuration file.
type Runtime struct {
	Path string   `json:"path"` // looked up in PATH if it is only a name
	Args []string `json:"runtimeArgs,omitempty"`
}

// wellKnown are offered where they are installed.
var wellKnown = []string{"runc", "crun"}

// settleRuntimes looks up the runtimes' programs and checks the default.
func (cfg *Config) settleRuntimes() error {
	found := map[string]Runtime{}
	for _, name := range wellKnown {
		if path, err := exec.LookPath(name); err == nil {
			found[name] = Runtime{Path: path}
		}
	}
	for name, r := range cfg.Runtimes {
		if name == runtimeName {
			return errdef.Invalid.Errorf("runtime name %q is reserved", name)
		}
		path, err := exec.LookPath(r.Path)
		if err != nil {
			return errdef.Invalid.Errorf("runtime %s: %w", name, err)
		}
		found[name] = Runtime{Path: path, Args: r.Args}
	}
	cfg.Runtimes = found
	if cfg.DefaultRuntime == "" {
		cfg.DefaultRuntime = runtimeName
	}
	if _, known := found[cfg.DefaultRuntime]; !known && cfg.DefaultRuntime != runtimeName {
		return errdef.Invalid.Errorf("default runtime %q is not known; add it by --add-runtime %s=PATH", cfg.DefaultRuntime, cfg.DefaultRuntime)
	}
	return nil
}

// settleRuntime fills in the default and refuses what is not there.
func (e *Engine) settleRuntime(h *container.HostConfig) error {
	if h.Runtime == "" {
		h.Runtime = e.cfg.DefaultRuntime
	}
	if _, known := e.cfg.Runtimes[h.Runtime]; !known && h.Runtime != runtimeName {
		names := append([]string{runtimeName}, slices.Sorted(maps.Keys(e.cfg.Runtimes))...)
		return errdef.Invalid.Errorf("unknown or invalid runtime name: %s; minke has %s", h.Runtime, strings.Join(names, ", "))
	}
	return nil
}

// foreign is the other runtime that the container asks for, or nil.
func (e *Engine) foreign(r *record) (*runtime.Foreign, error) {
	if !isForeign(r) {
		return nil, nil
	}
	other, known := e.cfg.Runtimes[r.Host.Runtime]
	if !known {
		return nil, errdef.Invalid.Errorf("container %s needs the runtime %s, which is not there any more; install it or name it by --add-runtime", r.Name, r.Host.Runtime)
	}
	return &runtime.Foreign{Path: other.Path, Args: other.Args}, nil
}

// isForeign tells a container of another runtime; records from before there
// was a choice name none.
func isForeign(r *record) bool { return r.Host.Runtime != "" && r.Host.Runtime != runtimeName }

func (e *Engine) runtimesInfo() map[string]system.RuntimeWithStatus {
	info := map[string]system.RuntimeWithStatus{runtimeName: {Runtime: system.Runtime{Path: e.cfg.Runtime}}}
	for name, r := range e.cfg.Runtimes {
		info[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: r.Path, Args: r.Args}}
	}
	return info
}
