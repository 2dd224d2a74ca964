package spec

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/capability"

	"github.com/minke-os/minke/internal/errdef"
)

// defaultCaps are what Docker gives a container.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// kernelCaps are all that this kernel knows, whether we hold them or not: what
// the host's bounding set lacks, the runtime leaves out with a warning.
func kernelCaps() []string {
	known, err := capability.ListSupported()
	if err != nil {
		known = capability.ListKnown()
	}
	out := make([]string, len(known))
	for i, c := range known {
		out[i] = "CAP_" + strings.ToUpper(c.String())
	}
	return out
}

// Capabilities are those of a container's processes, sorted as the kernel
// numbers them.
func Capabilities(h *container.HostConfig) ([]string, error) {
	all := kernelCaps()
	if h.Privileged {
		return all, nil
	}
	add, err := normalize("CapAdd", h.CapAdd, all)
	if err != nil {
		return nil, err
	}
	drop, err := normalize("CapDrop", h.CapDrop, all)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range all {
		has := slices.Contains(defaultCaps, c) && !slices.Contains(drop, "ALL")
		if slices.Contains(add, "ALL") {
			has = true
		}
		if slices.Contains(add, c) || has && !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	return out, nil
}

func normalize(field string, caps, known []string) ([]string, error) {
	var out []string
	for _, c := range caps {
		c = strings.ToUpper(c)
		if c != "ALL" && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c != "ALL" && !slices.Contains(known, c) {
			return nil, errdef.Invalid.Errorf("invalid %s: unknown capability: %q", field, c)
		}
		out = append(out, c)
	}
	return out, nil
}
