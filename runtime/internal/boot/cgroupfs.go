package boot

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// mountCgroups fulfils a mount of type "cgroup": the one hierarchy where the
// host has only version 2, else a tmpfs with a mount for each controller of
// version 1, as programs expect below /sys/fs/cgroup.
func mountCgroups(root *os.File, p mountPlan, namespaced bool) error {
	lines, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	var v1 []cgroupLine
	for l := range strings.Lines(string(lines)) {
		if c := parseCgroupLine(strings.TrimSpace(l)); c.controllers != "" {
			v1 = append(v1, c)
		}
	}
	if len(v1) == 0 {
		p.kind, p.source, p.data = "cgroup2", "cgroup", nil
		return p.mount(root)
	}
	t := mountPlan{kind: "tmpfs", source: "cgroup", dest: p.dest, set: p.set &^ unix.MOUNT_ATTR_RDONLY, data: [][2]string{{"mode", "755"}}}
	if err := t.mount(root); err != nil {
		return err
	}
	for _, c := range v1 {
		if err := mountController(root, p, c, namespaced); err != nil {
			return err
		}
	}
	return p.seal(root)
}

// A cgroupLine is a hierarchy and the process's place in it.
type cgroupLine struct{ controllers, path string }

func parseCgroupLine(l string) cgroupLine {
	f := strings.SplitN(l, ":", 3)
	if len(f) != 3 {
		return cgroupLine{}
	}
	return cgroupLine{f[1], f[2]}
}

func mountController(root *os.File, p mountPlan, c cgroupLine, namespaced bool) error {
	dir := strings.TrimPrefix(c.controllers, "name=")
	m := mountPlan{kind: "cgroup", source: "cgroup", dest: path.Join(p.dest, dir), set: p.set}
	if namespaced {
		m.data = controllerOptions(c.controllers)
	} else {
		m.kind, m.source = "bind", path.Join("/sys/fs/cgroup", dir, c.path)
	}
	if err := m.mount(root); err != nil {
		return err
	}
	if !strings.Contains(dir, ",") {
		return nil
	}
	at, err := openIn(root, p.dest)
	if err != nil {
		return err
	}
	defer at.Close()
	for _, name := range strings.Split(dir, ",") {
		if err := unix.Symlinkat(dir, int(at.Fd()), name); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

func controllerOptions(controllers string) [][2]string {
	if name, ok := strings.CutPrefix(controllers, "name="); ok {
		return [][2]string{{"none", ""}, {"name", name}}
	}
	var o [][2]string
	for _, c := range strings.Split(controllers, ",") {
		o = append(o, [2]string{c, ""})
	}
	return o
}

// seal makes the tmpfs read-only now that its directories exist.
func (p mountPlan) seal(root *os.File) error {
	if p.set&unix.MOUNT_ATTR_RDONLY == 0 {
		return nil
	}
	at, err := openIn(root, p.dest)
	if err != nil {
		return err
	}
	defer at.Close()
	return setattr(int(at.Fd()), 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
