// Package cgroup keeps one cgroup per container: creates it, sets limits,
// freezes, kills, tells of out-of-memory kills and removes it.
//
// All three arrangements of hosts are served: version 2 alone, version 1 alone,
// and both (the controllers on version 1 and a bare version 2 tree, which then
// serves to kill and to freeze at once). A limit whose controller the host
// lacks gives a warning, never a failure: devices differ in their kernels, and
// an application that runs without its limit is better than one that does not.
//
// The directories are the truth; a Group has only their paths, can be made
// again from them after a crash, and may be used by many at once.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Unified is the key of the version 2 directory in Group.Paths.
const Unified = ""

// A Group is a container's place in each hierarchy.
type Group struct {
	Paths map[string]string // by controller; Unified
}

// hierarchies are the mounted ones: mount point by controller. Controllers
// that share a version 1 hierarchy have the same mount point.
var hierarchies = sync.OnceValues(func() (map[string]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(super) < 3 {
			continue
		}
		switch super[0] {
		case "cgroup2":
			found[Unified] = mount[4]
		case "cgroup":
			for _, c := range strings.Split(super[2], ",") {
				if isController(c) {
					found[c] = mount[4]
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup file system is mounted")
	}
	return found, nil
})

// isController tells a version 1 hierarchy's controllers from its options.
func isController(option string) bool {
	switch option {
	case "rw", "ro", "none", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods":
		return false
	}
	return !strings.HasPrefix(option, "release_agent=")
}

// Create makes the cgroup path, relative to every hierarchy's root, and sets
// the limits.
func Create(path string, r *specs.LinuxResources) (*Group, []string, error) {
	mounts, err := hierarchies()
	if err != nil {
		return nil, nil, err
	}
	g := &Group{Paths: map[string]string{}}
	for c, mount := range mounts {
		g.Paths[c] = filepath.Join(mount, filepath.Clean("/"+path))
		if err := makeGroup(c, mount, g.Paths[c]); err != nil {
			g.Remove()
			return nil, nil, fmt.Errorf("cgroup: %w", err)
		}
	}
	warnings, err := g.Set(r)
	if err == nil {
		err = g.setDevices(r)
	}
	if err != nil {
		g.Remove()
		return nil, nil, fmt.Errorf("cgroup: %w", err)
	}
	return g, warnings, nil
}

// Existing is the group at path that somebody else made.
func Existing(path string) (*Group, error) {
	mounts, err := hierarchies()
	if err != nil {
		return nil, err
	}
	g := &Group{Paths: map[string]string{}}
	for c, mount := range mounts {
		dir := filepath.Join(mount, filepath.Clean("/"+path))
		if _, err := os.Stat(dir); err == nil {
			g.Paths[c] = dir
		}
	}
	if len(g.Paths) == 0 {
		return nil, fmt.Errorf("cgroup %s is in no hierarchy", path)
	}
	return g, nil
}

func makeGroup(controller, mount, dir string) error {
	if controller == Unified {
		return makeUnified(mount, dir)
	}
	err := unix.Mkdir(dir, 0o755) // mostly the parent is there
	if err != nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil || controller != "cpuset" {
		return err
	}
	return inheritCpuset(mount, dir)
}

// makeUnified hands the controllers down to dir on the way.
func makeUnified(mount, dir string) error {
	available, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return err
	}
	rel, _ := filepath.Rel(mount, dir)
	at := mount
	for _, part := range strings.Split(rel, "/") {
		for _, c := range strings.Fields(string(available)) {
			// One by one: a single one that cannot be had would spoil all.
			write(at, "cgroup.subtree_control", "+"+c)
		}
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// inheritCpuset fills what version 1 leaves empty in new groups, without which
// no process can enter.
func inheritCpuset(mount, dir string) error {
	if dir == mount {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := inheritCpuset(mount, parent); err != nil {
		return err
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		if v, err := os.ReadFile(filepath.Join(dir, name)); err != nil || strings.TrimSpace(string(v)) != "" {
			continue
		}
		v, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := write(dir, name, strings.TrimSpace(string(v))); err != nil {
			return err
		}
	}
	return nil
}

func write(dir, name, value string) error {
	fd, err := openForWriting(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("set %s to %q: %w", name, value, err)
	}
	return nil
}

// openForWriting uses plain system calls: package os would try to poll the
// file.
func openForWriting(dir, name string) (int, error) {
	path := filepath.Join(dir, name)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// Dir opens the version 2 directory, for cloning a process into it; nil if the
// host has none.
func (g *Group) Dir() (*os.File, error) {
	dir, ok := g.Paths[Unified]
	if !ok {
		return nil, nil
	}
	return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// Enter puts the calling thread, and what it clones from then on, into the
// version 1 groups. Into version 2 a process is cloned by way of Dir. A group
// that limits the number of processes would refuse the birth, or the threads of
// our own program after it: that one is left for Add.
func (g *Group) Enter() error {
	var done []string
	if dir, limited := g.pidsLimit(); limited {
		done = append(done, dir)
	}
	for c, dir := range g.Paths {
		if c == Unified || slices.Contains(done, dir) {
			continue
		}
		done = append(done, dir)
		if err := write(dir, "tasks", "0"); err != nil {
			return fmt.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// Add moves a process, when it is about to become the image's program, where
// Enter did not go. A move is never refused.
func (g *Group) Add(pid int) error {
	dir, limited := g.pidsLimit()
	if !limited {
		return nil
	}
	if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("enter cgroup %s: %w", dir, err)
	}
	return nil
}

// pidsLimit finds the version 1 group that limits processes, if one does.
func (g *Group) pidsLimit() (dir string, limited bool) {
	dir, ok := g.Paths["pids"]
	if !ok {
		return "", false
	}
	limit, err := os.ReadFile(filepath.Join(dir, "pids.max"))
	return dir, err == nil && strings.TrimSpace(string(limit)) != "max"
}

// Pids lists the processes of the group and the groups below it.
func (g *Group) Pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(g.any(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return ignoreMissing(err)
		}
		data, err := os.ReadFile(path)
		for f := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return ignoreMissing(err)
	})
	return pids, err
}

// any is a directory in which all processes of the container are.
func (g *Group) any() string {
	for _, c := range []string{Unified, "freezer", "devices", "memory"} {
		if dir, ok := g.Paths[c]; ok {
			return dir
		}
	}
	for _, dir := range g.Paths {
		return dir
	}
	return ""
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Signal sends sig to every process.
func (g *Group) Signal(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return g.Kill()
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

// Kill ends every process, also while new ones are being born.
func (g *Group) Kill() error {
	if dir, ok := g.Paths[Unified]; ok {
		err := write(dir, "cgroup.kill", "1")
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := os.Stat(dir); err != nil {
			return ignoreMissing(err) // removed
		}
	}
	// Before Linux 5.14: what is frozen cannot fork away.
	g.Freeze()
	defer g.Thaw()
	pids, err := g.Pids()
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
	return err
}

// Remove removes the directories. Processes must be gone or going: it waits a
// little for their last traces.
func (g *Group) Remove() error {
	var errs []error
	for _, dir := range g.Paths {
		if err := removeTree(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		// The container may have made groups of its own below.
		below, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
		for _, b := range below {
			if err := removeTree(filepath.Dir(b)); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return &os.PathError{Op: "remove cgroup", Path: dir, Err: err}
		}
	}
}
