package cdi

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func (e *edits) apply(s *specs.Spec) error {
	if len(e.IntelRdt) > 0 && string(e.IntelRdt) != "null" {
		return fmt.Errorf("it wants Intel RDT, which this runtime does not do")
	}
	if len(e.NetDevices) > 0 {
		return fmt.Errorf("it wants to move network devices, which this runtime does not do")
	}
	for _, kv := range e.Env {
		name, _, _ := strings.Cut(kv, "=")
		s.Process.Env = slices.DeleteFunc(s.Process.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		s.Process.Env = append(s.Process.Env, kv)
	}
	for _, n := range e.DeviceNodes {
		if err := n.apply(s); err != nil {
			return err
		}
	}
	for _, m := range e.Mounts {
		m.apply(s)
	}
	for _, h := range e.Hooks {
		if err := h.apply(s); err != nil {
			return err
		}
	}
	for _, g := range e.AdditionalGIDs {
		if g != 0 && !slices.Contains(s.Process.User.AdditionalGids, g) {
			s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, g)
		}
	}
	return nil
}

// apply makes the node as the host has it, where the specification does not say
// otherwise.
func (n node) apply(s *specs.Spec) error {
	hostPath := n.HostPath
	if hostPath == "" {
		hostPath = n.Path
	}
	d := specs.LinuxDevice{Path: n.Path, Type: n.Type, Major: n.Major, Minor: n.Minor, FileMode: n.FileMode, UID: n.UID, GID: n.GID}
	if d.Type == "" || d.Major == 0 && d.Type != "p" {
		var st unix.Stat_t
		if err := unix.Stat(hostPath, &st); err != nil {
			return &os.PathError{Op: "find device", Path: hostPath, Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			d.Type = "c"
		case unix.S_IFBLK:
			d.Type = "b"
		case unix.S_IFIFO:
			d.Type = "p"
		default:
			return fmt.Errorf("%s is no device", hostPath)
		}
		if n.Type != "" && n.Type != d.Type && !(n.Type == "u" && d.Type == "c") {
			return fmt.Errorf("%s is a device of type %s, not %s", hostPath, d.Type, n.Type)
		}
		d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		if d.FileMode == nil {
			mode := os.FileMode(st.Mode & 0o777)
			d.FileMode = &mode
		}
	}
	// As the reference implementation: what the program is, may use it.
	if d.UID == nil && s.Process.User.UID > 0 {
		d.UID = &s.Process.User.UID
	}
	if d.GID == nil && s.Process.User.GID > 0 {
		d.GID = &s.Process.User.GID
	}
	s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(old specs.LinuxDevice) bool { return old.Path == d.Path })
	s.Linux.Devices = append(s.Linux.Devices, d)
	if d.Type == "p" {
		return nil
	}
	access := n.Permissions
	if access == "" {
		access = "rwm"
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access})
	return nil
}

// apply adds the mount before those below it.
func (m mount) apply(s *specs.Spec) {
	o := specs.Mount{Destination: m.ContainerPath, Source: m.HostPath, Type: m.Type, Options: slices.Clone(m.Options)}
	if o.Type == "" {
		o.Type = "bind"
	}
	s.Mounts = slices.DeleteFunc(s.Mounts, func(old specs.Mount) bool { return old.Destination == o.Destination })
	at := slices.IndexFunc(s.Mounts, func(old specs.Mount) bool { return strings.HasPrefix(old.Destination, o.Destination+"/") })
	if at < 0 {
		at = len(s.Mounts)
	}
	s.Mounts = slices.Insert(s.Mounts, at, o)
}

func (h hook) apply(s *specs.Spec) error {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	lists := map[string]*[]specs.Hook{
		"prestart": &s.Hooks.Prestart, "createRuntime": &s.Hooks.CreateRuntime, "createContainer": &s.Hooks.CreateContainer,
		"startContainer": &s.Hooks.StartContainer, "poststart": &s.Hooks.Poststart, "poststop": &s.Hooks.Poststop,
	}
	list := lists[h.Name]
	if list == nil {
		return fmt.Errorf("unknown hook %q", h.Name)
	}
	*list = append(*list, specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout})
	return nil
}
