package spec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// baseRules are the devices every container may use: everything may be made
// with mknod, these may be opened. From Docker's defaults.
var baseRules = []specs.LinuxDeviceCgroup{
	{Allow: false, Access: "rwm"},
	allow("c", -1, -1, "m"), allow("b", -1, -1, "m"),
	allow("c", 1, 3, "rwm"), // null
	allow("c", 1, 5, "rwm"), // zero
	allow("c", 1, 7, "rwm"), // full
	allow("c", 1, 8, "rwm"), // random
	allow("c", 1, 9, "rwm"), // urandom
	allow("c", 5, 0, "rwm"), // tty
	allow("c", 5, 1, "rwm"), // console
	allow("c", 5, 2, "rwm"), // ptmx
	allow("c", 136, -1, "rwm"),
}

func allow(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
	if major >= 0 {
		r.Major = &major
	}
	if minor >= 0 {
		r.Minor = &minor
	}
	return r
}

// DeviceRules are the rules of access that a container gets, all of them.
func DeviceRules(h *container.HostConfig) ([]specs.LinuxDeviceCgroup, error) {
	_, rules, err := devices(h)
	return rules, err
}

// devices are the nodes to make in the container and the rules of access.
func devices(h *container.HostConfig) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	if h.Privileged {
		nodes, err := hostDevices("/dev", "/dev")
		return nodes, []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, err
	}
	var nodes []specs.LinuxDevice
	rules := append([]specs.LinuxDeviceCgroup(nil), baseRules...)
	for _, m := range h.Devices {
		found, err := mapped(m)
		if err != nil {
			return nil, nil, err
		}
		access := m.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		for _, d := range found {
			rules = append(rules, allow(d.Type, d.Major, d.Minor, access))
		}
		nodes = append(nodes, found...)
	}
	for _, text := range h.DeviceCgroupRules {
		rule, err := parseRule(text)
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, rule)
	}
	return nodes, rules, nil
}

// mapped is the device or the directory of devices that a --device names.
func mapped(m container.DeviceMapping) ([]specs.LinuxDevice, error) {
	target := m.PathInContainer
	if target == "" {
		target = m.PathOnHost
	}
	source, err := filepath.EvalSymlinks(m.PathOnHost)
	if err != nil {
		return nil, errdef.Invalid.Errorf("error gathering device information while adding custom device %q: no such file or directory", m.PathOnHost)
	}
	if fi, err := os.Stat(source); err == nil && fi.IsDir() {
		return hostDevices(source, target)
	}
	d, err := device(source, target)
	if err != nil {
		return nil, errdef.Invalid.Errorf("error gathering device information while adding custom device %q: %w", m.PathOnHost, err)
	}
	return []specs.LinuxDevice{d}, nil
}

func hostDevices(source, target string) (out []specs.LinuxDevice, err error) {
	err = filepath.WalkDir(source, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // unplugged meanwhile
			return nil
		case err != nil:
			return err
		case e.IsDir():
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return filepath.SkipDir
			}
			return nil
		case e.Type()&fs.ModeDevice == 0 || e.Name() == "console":
			return nil
		}
		d, err := device(path, filepath.Join(target, strings.TrimPrefix(path, source)))
		if err == nil {
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

var errNotDevice = errors.New("not a device node")

func device(source, target string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	mode := os.FileMode(st.Mode & 0o7777)
	d := specs.LinuxDevice{
		Path: target, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, errNotDevice
	}
	return d, nil
}

var ruleForm = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

func parseRule(text string) (specs.LinuxDeviceCgroup, error) {
	m := ruleForm.FindStringSubmatch(text)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, errdef.Invalid.Errorf("invalid device cgroup rule format: %q; want for example \"c 189:* rmw\"", text)
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil { // "*"
			return -1
		}
		return n
	}
	return allow(m[1], number(m[2]), number(m[3]), m[4]), nil
}
