package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/thread"
)

const (
	cgroups = "/sys/fs/cgroup"
	cpuacct = cgroups + "/cpuacct"
)

// A place is where processes run: a cgroup that counts their processor time,
// and a network namespace.
type place struct {
	group string // in each hierarchy
	netns *os.File
}

func newPlace(group string) (p place, err error) {
	p.group = group
	for _, part := range []string{daemonGroup, clientGroup, containerGroup} {
		if err := os.MkdirAll(filepath.Join(cpuacct, group, part), 0o755); err != nil {
			return p, fmt.Errorf("cgroup version 1 with cpuacct is needed: %w", err)
		}
	}
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		p.netns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return p, err
}

// The parts of an engine's cgroup.
const (
	daemonGroup    = "daemon"
	clientGroup    = "client"
	containerGroup = "containers"
)

// start starts cmd in a part of the place: a child inherits what the thread
// that clones it has.
func (p place) start(part string, cmd *exec.Cmd) error {
	return thread.Run(func() error {
		tasks := filepath.Join(cpuacct, p.group, part, "tasks")
		if err := os.WriteFile(tasks, []byte(strconv.Itoa(unix.Gettid())), 0); err != nil {
			return err
		}
		if err := unix.Setns(int(p.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return cmd.Start()
	})
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// used is the processor time that a part of the place has had; "" is all.
func (p place) used(part string) (time.Duration, error) {
	data, err := os.ReadFile(filepath.Join(cpuacct, p.group, part, "cpuacct.usage"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return time.Duration(n), err
}

// settle waits until nobody works any more, for what a client does not wait
// for is to be counted too.
func (p place) settle() error {
	const look, idle = 50 * time.Millisecond, 300 * time.Microsecond
	for last, deadline := time.Duration(0), time.Now().Add(3*time.Second); ; {
		now, err := p.used("")
		if err != nil || now-last < idle || time.Now().After(deadline) {
			return err
		}
		last = now
		time.Sleep(look) // other programs: there is nothing to wait on
	}
}

// pids are the processes of the place whose program is not a container's.
func (p place) pids() (out []int, err error) {
	err = filepath.WalkDir(filepath.Join(cpuacct, p.group), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(data)) {
			pid, _ := strconv.Atoi(field)
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) != "sleep" {
				out = append(out, pid)
			}
		}
		return err
	})
	return out, err
}

// pss is the memory of these processes in kB, what they share divided up, and
// their names.
func pss(pids []int) (kB int, names []string) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				kB += n
			}
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		names = append(names, strings.TrimSpace(string(comm)))
	}
	slices.Sort(names)
	return kB, names
}

// removeGroups removes a cgroup and what is below it from all hierarchies.
func removeGroups(name string) error {
	roots, err := filepath.Glob(filepath.Join(cgroups, "*", name))
	errs := []error{err}
	for _, root := range roots {
		var dirs []string
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil {
				errs = append(errs, fmt.Errorf("remove %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// unmountBelow removes what a killed engine may have left mounted.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	lines := strings.Split(string(data), "\n")
	for _, line := range slices.Backward(lines) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			errs = append(errs, unix.Unmount(f[1], unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// writeImage makes a root file system of busybox alone.
func writeImage(path string) error {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; install busybox-static", err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	file := func(name string, mode int64, data []byte) {
		w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg})
		w.Write(data)
	}
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/"} {
		w.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir})
	}
	file("bin/busybox", 0o755, data)
	for _, name := range []string{"echo", "sh", "sleep"} {
		w.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink})
	}
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	file("etc/group", 0o644, []byte("root:x:0:\n"))
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
