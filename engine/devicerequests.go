package engine

import (
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/cdi"
	"github.com/minke-os/minke/internal/errdef"
)

// gpuKinds are the kinds of device that --gpus means, the first that is there.
var gpuKinds = []string{"nvidia.com/gpu", "amd.com/gpu"}

func (e *Engine) cdiDirs() []string {
	if e.cfg.CDIDirs == nil {
		return cdi.Dirs
	}
	return e.cfg.CDIDirs
}

// giveDevices gives a container that starts what its requests name: by CDI
// (docker run --device vendor.com/class=name), or a number of GPUs (--gpus),
// which are found by CDI, too.
func (e *Engine) giveDevices(s *specs.Spec, requests []container.DeviceRequest) error {
	if len(requests) == 0 {
		return nil
	}
	all := cdi.Read(e.cdiDirs())
	var names []string
	for _, r := range requests {
		more, err := requested(all, r)
		if err != nil {
			return err
		}
		for _, n := range more {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return all.Apply(s, names)
}

// requestedRules are the rules of access that come with requests.
func (e *Engine) requestedRules(requests []container.DeviceRequest) ([]specs.LinuxDeviceCgroup, error) {
	s := specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	err := e.giveDevices(&s, requests)
	return s.Linux.Resources.Devices, err
}

// requested are the names of the devices that a request asks for.
func requested(all *cdi.Registry, r container.DeviceRequest) (names []string, err error) {
	if r.Driver == "cdi" {
		if r.Count != 0 || len(r.Options) > 0 {
			return nil, errdef.Invalid.Errorf("CDI device injection failed: a request by CDI has neither a count nor options")
		}
		return r.DeviceIDs, nil
	}
	kind := gpuKind(all, r)
	if kind == "" {
		return nil, errdef.Invalid.Errorf("could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
	}
	if r.Count != 0 && len(r.DeviceIDs) > 0 {
		return nil, errdef.Invalid.Errorf("cannot set both Count and DeviceIDs on device request")
	}
	ids := r.DeviceIDs
	switch {
	case r.Count < 0 || r.Count == 0 && len(ids) == 0:
		ids = []string{"all"}
	case r.Count > 0:
		for i := range min(r.Count, maxGPUs) {
			ids = append(ids, strconv.Itoa(i))
		}
	}
	for _, id := range ids {
		names = append(names, kind+"="+id)
	}
	return names, nil
}

const maxGPUs = 1024 // of any machine

// gpuKind is the kind of GPU that can answer the request, "" for none.
func gpuKind(all *cdi.Registry, r container.DeviceRequest) string {
	wantsGPU := slices.ContainsFunc(r.Capabilities, func(alternative []string) bool { return slices.Contains(alternative, "gpu") })
	if !wantsGPU && r.Driver != "nvidia" {
		return ""
	}
	for _, kind := range gpuKinds {
		vendor, _, _ := strings.Cut(kind, ".com/")
		if (r.Driver == "" || r.Driver == vendor) && all.Has(kind) {
			return kind
		}
	}
	return ""
}
