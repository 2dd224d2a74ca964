package spec

import (
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
)

// A SeccompCache keeps filters by the capabilities they depend on; making one
// from Docker's profile costs a millisecond. The zero value works.
type SeccompCache struct {
	mu   sync.Mutex
	made map[string]*specs.LinuxSeccomp
}

// Filter is the filter for a container, nil when it is to have none. The
// result is shared: do not change it.
func (c *SeccompCache) Filter(h *container.HostConfig) (*specs.LinuxSeccomp, error) {
	security, err := ParseSecurity(h)
	if err != nil || security.Seccomp == "unconfined" {
		return nil, err
	}
	caps, err := Capabilities(h)
	if err != nil {
		return nil, err
	}
	profile := security.Seccomp
	if profile == "builtin" {
		profile = ""
	}
	key := strings.Join(caps, ",") + profile
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.made[key]; ok {
		return f, nil
	}
	base := &specs.Spec{Process: &specs.Process{Capabilities: Set(caps)}, Linux: &specs.Linux{}}
	var f *specs.LinuxSeccomp
	if profile == "" {
		f, err = seccomp.GetDefaultProfile(base)
	} else {
		f, err = seccomp.LoadProfile(profile, base)
	}
	if err != nil {
		return nil, errdef.Invalid.Errorf("seccomp profile: %w", err)
	}
	if c.made == nil {
		c.made = map[string]*specs.LinuxSeccomp{}
	}
	c.made[key] = f
	return f, nil
}
