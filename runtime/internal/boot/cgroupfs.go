package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountCgroups fulfils a mount of type "cgroup": the one hierarchy where the
// host has only version 2, else a tmpfs with a mount for each controller of
// version 1, as programs expect below /sys/fs/cgroup.
func mountCgroups(root *os.File, p mountPlan, cfg *Config) error {
	all, err := cgroupLines()
	if err != nil {
		return err
	}
	var v1 []cgroupLine
	var v2 cgroupLine
	for _, c := range all {
		if c.controllers != "" {
			v1 = append(v1, c)
		} else {
			v2 = c
		}
	}
	if len(v1) == 0 {
		p.kind, p.source, p.data = "cgroup2", "cgroup", nil
		err := p.mount(root)
		if errors.Is(err, unix.EPERM) && !cfg.NewCgroup { // the cgroup namespace is not our user namespace's
			p.kind, p.source = "bind", path.Join("/sys/fs/cgroup", v2.path)
			err = p.mount(root)
		}
		return err
	}
	dir, err := openTmpfs(root, p)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for _, c := range v1 {
		namespaced := cfg.NewCgroup
		if cfg.LimitsPIDs && c.has("pids") {
			c.path, namespaced = cfg.place, false
		}
		if err := mountController(dir, p, c, namespaced); err != nil {
			return err
		}
	}
	// Now that its directories exist.
	return setattr(dir, 0, unix.MountAttr{Attr_set: p.set & unix.MOUNT_ATTR_RDONLY})
}

// openTmpfs mounts the directory of the hierarchies. Nobody but this process
// has seen it yet, so names in it are what they are made to be.
func openTmpfs(root *os.File, p mountPlan) (int, error) {
	t := mountPlan{kind: "tmpfs", source: "cgroup", dest: p.dest, set: p.set &^ unix.MOUNT_ATTR_RDONLY, data: [][2]string{{"mode", "755"}}}
	fd, err := t.open()
	if err != nil {
		return -1, err
	}
	if err := t.attachIn(root, fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// A cgroupLine is a hierarchy and the process's place in it.
type cgroupLine struct{ controllers, path string }

// cgroupLines are this process's places.
func cgroupLines() (all []cgroupLine, err error) {
	text, err := os.ReadFile("/proc/thread-self/cgroup")
	for l := range strings.Lines(string(text)) {
		all = append(all, parseCgroupLine(strings.TrimSpace(l)))
	}
	return all, err
}

func parseCgroupLine(l string) cgroupLine {
	f := strings.SplitN(l, ":", 3)
	if len(f) != 3 {
		return cgroupLine{}
	}
	return cgroupLine{f[1], f[2]}
}

func (c cgroupLine) has(controller string) bool {
	return slices.Contains(strings.Split(c.controllers, ","), controller)
}

// placeOf is the container's place, which is the same in every hierarchy; in
// that of a limit on processes we are not there yet.
func placeOf(all []cgroupLine) string {
	for _, c := range all {
		if !c.has("pids") {
			return c.path
		}
	}
	return "/"
}

func mountController(at int, p mountPlan, c cgroupLine, namespaced bool) error {
	name := strings.TrimPrefix(c.controllers, "name=")
	m := mountPlan{kind: "cgroup", source: "cgroup", dest: path.Join(p.dest, name), set: p.set}
	if namespaced {
		m.data = controllerOptions(c.controllers)
	} else {
		m.kind, m.source = "bind", path.Join("/sys/fs/cgroup", name, c.path)
	}
	fd, err := m.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mkdirat(at, name, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", m.dest, err)
	}
	if err := unix.MoveMount(fd, "", at, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.kind, m.dest, err)
	}
	if !strings.Contains(name, ",") {
		return nil
	}
	for _, link := range strings.Split(name, ",") {
		if err := unix.Symlinkat(name, at, link); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
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
