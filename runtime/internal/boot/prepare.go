package boot

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/thread"
	"github.com/minke-os/minke/internal/userns"
)

// Given says which descriptors after ours are mounts, detached.
type Given struct {
	Root   bool        `json:"root,omitempty"`   // the first
	Mounts map[int]int `json:"mounts,omitempty"` // index in Config.Mounts to descriptor
}

func (g Given) count() int {
	n := len(g.Mounts)
	if g.Root {
		n++
	}
	return n
}

// User is the user namespace of a container.
type User struct {
	NS      *os.File
	Mapping userns.Mapping
}

// Prepare makes those of cfg's mounts that the init will not be able to make:
// in a user namespace it has no rights to the host's directories, to overlays'
// attributes, device nodes and mappings of IDs. It happens in a process that
// has them and sees the host's mounts, with what this thread may do, before the
// container's process exists. The files are for the init, after its own.
//
// Without a user namespace (nil) these are the mounts that map IDs, overlays
// with a long list of layers, and what another container has mounted.
func Prepare(cfg *Config, user *User) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	if user != nil {
		root, err := user.openRoot(cfg)
		if err != nil {
			return nil, err
		}
		files, cfg.Given.Root = append(files, root), true
	}
	for i, m := range cfg.Mounts {
		p, err := planMount(m)
		if err != nil {
			return files, err
		}
		fd, err := user.open(cfg, m, p)
		if err != nil {
			return files, err
		}
		if fd < 0 {
			continue
		}
		if cfg.Given.Mounts == nil {
			cfg.Given.Mounts = map[int]int{}
		}
		cfg.Given.Mounts[i] = len(files)
		files = append(files, os.NewFile(uintptr(fd), m.Destination))
	}
	return files, nil
}

func (u *User) openRoot(cfg *Config) (*os.File, error) {
	if cfg.Rootfs != nil {
		return cfg.Rootfs.OpenMapped(u.NS, u.Mapping)
	}
	f, err := detachedRoot(cfg)
	if err != nil {
		return nil, err
	}
	if err := makeSlave(int(f.Fd())); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeSlave keeps what is mounted in a container from the host, for a copy of
// one of its mounts.
func makeSlave(fd int) error {
	return setattr(fd, unix.AT_RECURSIVE, unix.MountAttr{Propagation: unix.MS_SLAVE})
}

// openBindOutside is openBind where no mount namespace separates the copy from
// the host yet.
func (p mountPlan) openBindOutside() (int, error) {
	fd, err := p.openBind()
	if err != nil || slices.ContainsFunc(p.propagation, func(a attr) bool { return a.set == unix.MS_SHARED }) {
		return fd, err
	}
	if err := makeSlave(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// open makes a mount, or returns -1 where the init can.
func (u *User) open(cfg *Config, m specs.Mount, p mountPlan) (int, error) {
	maps := p.idmap || len(m.UIDMappings)+len(m.GIDMappings) > 0
	if maps && p.kind != "bind" {
		return -1, errdef.Unsupported.Errorf("mount %s: only binds can map IDs", m.Destination)
	}
	switch pid, rest, other := elsewhere(p.source); {
	case p.kind == "bind" && other && !maps:
		return p.openElsewhere(pid, rest)
	case p.kind == "bind" && maps:
		return u.openMapped(m, p)
	case p.kind == "overlay" && (u != nil || p.tooLong()):
		return u.openOverlay(m, p)
	case u == nil:
		return -1, nil
	case p.kind == "bind":
		return p.openBindOutside()
	case p.kind == "tmpfs" && path.Clean(p.dest) == "/dev":
		return u.openDev(cfg, p)
	}
	return -1, nil
}

// elsewhere takes "/proc/1234/root/dev/shm" apart: what process 1234 has there,
// perhaps in a mount namespace of its own.
func elsewhere(source string) (pid int, rest string, ok bool) {
	after, _ := strings.CutPrefix(source, "/proc/")
	number, rest, ok := strings.Cut(after, "/root/")
	pid, err := strconv.Atoi(number)
	return pid, "/" + rest, ok && err == nil
}

// openElsewhere copies a mount out of another process's namespace, which the
// kernel allows only there.
func (p mountPlan) openElsewhere(pid int, source string) (fd int, err error) {
	err = thread.Run(func() error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		p.source = source
		fd, err = p.openBindOutside()
		return err
	})
	return fd, err
}

// tooLong reports whether fsconfig(2) does not take an option: 255 bytes is the
// most. Before Linux 6.7 all layers of an overlay are one.
func (p mountPlan) tooLong() bool {
	return slices.ContainsFunc(p.data, func(kv [2]string) bool { return len(kv[1]) > 255 })
}

func (u *User) openMapped(m specs.Mount, p mountPlan) (int, error) {
	ns := (*os.File)(nil)
	if u != nil {
		ns = u.NS
	}
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		var err error
		if ns, err = userns.New(userns.Mapping{UIDs: m.UIDMappings, GIDs: m.GIDMappings}); err != nil {
			return -1, err
		}
		defer ns.Close()
	}
	if ns == nil {
		return -1, errdef.Invalid.Errorf("mount %s shall map IDs, but there is neither a mapping nor a user namespace", m.Destination)
	}
	fd, err := p.openBindOutside()
	if err != nil {
		return -1, err
	}
	if err := userns.MapMount(fd, ns, p.idmapBelow); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount %s, which the file system of %s may not be able to do: %w", m.Destination, m.Source, err)
	}
	return fd, nil
}

// openOverlay makes a mount whose options are those of an overlay.Mount.
func (u *User) openOverlay(m specs.Mount, p mountPlan) (int, error) {
	var f *os.File
	var err error
	o := overlay.Parse(m.Options)
	if u == nil {
		f, err = o.Open()
	} else {
		f, err = o.OpenMapped(u.NS, u.Mapping)
	}
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", m.Destination, err)
	}
	defer f.Close()
	if err := p.setAttributes(int(f.Fd())); err != nil {
		return -1, err
	}
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// openDev makes /dev with its nodes, which nobody can make in a user namespace.
// They get the owners that they are asked to have, in the container's words.
func (u *User) openDev(cfg *Config, p mountPlan) (int, error) {
	rootUID, rootGID, _ := u.Mapping.Host(0, 0) // the plan has looked
	p.data = append(p.data, [2]string{"uid", fmt.Sprint(rootUID)}, [2]string{"gid", fmt.Sprint(rootGID)})
	fd, err := p.openFS()
	if err != nil {
		return -1, err
	}
	dev := os.NewFile(uintptr(fd), "/dev")
	defer dev.Close()
	for _, d := range cfg.devices() {
		name, inDev := strings.CutPrefix(d.Path, "/dev/")
		if !inDev {
			continue
		}
		uid, gid, ok := u.Mapping.Host(uint32(owner(d.UID)), uint32(owner(d.GID)))
		if !ok { // as good as nobody's
			uid, gid = rootUID, rootGID
		}
		d.UID, d.GID = &uid, &gid
		if err := makeDevice(dev, "/"+name, d); err != nil {
			return -1, fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
