package engine

import (
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/engine/internal/network"
	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
)

// Defaults are what containers get that do not say themselves. The first group is
// looked at with each start, the second when a container is made, which keeps
// it.
type Defaults struct {
	DNS         []netip.Addr
	DNSSearch   []string
	DNSOptions  []string
	HostGateway []netip.Addr // what the name host-gateway stands for; none: the network's gateway

	ShmSize         int64 // bytes; 0 is 64 MiB
	Ulimits         []*container.Ulimit
	Init            bool
	NoNewPrivileges bool
	Seccomp         string // "", "unconfined", or a profile in JSON; not of privileged ones
	CgroupParent    string
	CgroupnsMode    container.CgroupnsMode
	IpcMode         container.IpcMode
}

// Check says what is wrong with the defaults.
func (d Defaults) Check() error {
	h := container.HostConfig{
		ShmSize: d.ShmSize, CgroupnsMode: d.CgroupnsMode, IpcMode: d.IpcMode,
		Resources: container.Resources{CgroupParent: d.CgroupParent, Ulimits: d.Ulimits},
	}
	d.settleSecurity(&h)
	if !h.CgroupnsMode.Valid() {
		return errdef.Invalid.Errorf("invalid default-cgroupns-mode %q: want host or private", d.CgroupnsMode)
	}
	switch {
	case d.IpcMode != "" && !d.IpcMode.IsPrivate() && !d.IpcMode.IsShareable():
		return errdef.Invalid.Errorf("invalid default-ipc-mode %q: want private or shareable", d.IpcMode)
	case d.ShmSize < 0:
		return errdef.Invalid.Errorf("invalid default-shm-size: it is less than 0")
	}
	if err := checkResources(h.Resources); err != nil {
		return err
	}
	if err := checkHost(&h); err != nil {
		return err
	}
	var filters spec.SeccompCache
	_, err := filters.Filter(&h)
	return err
}

// settle gives a new container what it does not say itself.
func (d Defaults) settle(h *container.HostConfig) {
	if h.ShmSize == 0 {
		h.ShmSize = d.ShmSize
	}
	if h.IpcMode.IsEmpty() {
		h.IpcMode = d.IpcMode
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = d.CgroupnsMode
	}
	if h.CgroupParent == "" {
		h.CgroupParent = d.CgroupParent
	}
	if h.Init == nil && d.Init {
		h.Init = &d.Init
	}
	for _, u := range d.Ulimits {
		if !slices.ContainsFunc(h.Ulimits, func(own *container.Ulimit) bool { return own.Name == u.Name }) {
			h.Ulimits = append(h.Ulimits, u)
		}
	}
	d.settleSecurity(h)
}

// settleSecurity only adds; what cannot be read is reported by who checks the
// container.
func (d Defaults) settleSecurity(h *container.HostConfig) {
	says := func(word string) bool {
		return slices.ContainsFunc(h.SecurityOpt, func(opt string) bool { return spec.SecurityKey(opt) == word })
	}
	if d.NoNewPrivileges && !says("no-new-privileges") {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	if d.Seccomp != "" && !h.Privileged && !says("seccomp") {
		h.SecurityOpt = append(h.SecurityOpt, "seccomp="+d.Seccomp)
	}
}

// dns is a container's own, what it does not say from the defaults.
func (d Defaults) dns(h *container.HostConfig) network.DNS {
	out := network.DNS{Servers: h.DNS, Search: h.DNSSearch, Options: h.DNSOptions}
	if len(out.Servers) == 0 {
		out.Servers = d.DNS
	}
	if len(out.Search) == 0 {
		out.Search = d.DNSSearch
	}
	if len(out.Options) == 0 {
		out.Options = d.DNSOptions
	}
	return out
}
