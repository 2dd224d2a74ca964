package volume

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/thread"
	"github.com/minke-os/minke/internal/userns"
)

// mount makes the file system appear at path. It may take as long as a server
// keeps us waiting.
func (s source) mount(path string) error {
	err := unix.Mount(s.device, path, s.kind, s.flags, strings.Join(s.data, ","))
	switch {
	case errors.Is(err, unix.ENODEV):
		return errdef.Unsupported.Errorf("this kernel has no file system %s; load its module (modprobe %s)", s.kind, s.kind)
	case err != nil:
		return fmt.Errorf("mount %s from %s: %w", s.kind, s.device, err)
	}
	return nil
}

// unmount takes away whatever is mounted at path, at once: processes that have
// files open there keep them until they close them.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not, or no longer, a mount point
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// mountsBelow lists the mount points below root.
func mountsBelow(root string) ([]*mountinfo.Info, error) {
	return mountinfo.GetMounts(mountinfo.PrefixFilter(root))
}

// A Place is where a running container has a volume.
type Place struct {
	Pid      int    // a process of the container
	Target   string // path in the container
	Subpath  string // of the volume
	ReadOnly bool
}

// baseMounts is how many mounts a container has at the target of a volume that
// is away: the engine gives it an empty read-only directory there, so that
// nothing is written where a later mount would hide it.
const baseMounts = 1

// Show makes the volume appear in a running container above the empty
// directory it started with. It does nothing if it is there already.
func (s *Store) Show(name string, p Place) error {
	tree, err := openTree(s.Path(name), p)
	if err == nil {
		if err = mapLike(p.Pid, tree); err != nil {
			unix.Close(tree)
		}
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	defer unix.Close(tree)
	return inContainer(p, func(target *os.File, _ string, mounts int) error {
		if mounts != baseMounts {
			return nil
		}
		return unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
}

// Hide takes the volume away from a running container. Files that are open
// there stay so until their processes close them.
func (s *Store) Hide(p Place) error {
	return inContainer(p, func(_ *os.File, path string, mounts int) error {
		if mounts <= baseMounts {
			return nil
		}
		return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	})
}

// openTree is a copy of the mount, or of a directory in it, for a container.
func openTree(path string, p Place) (int, error) {
	dir, err := os.OpenRoot(path)
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	sub := p.Subpath
	if sub == "" {
		sub = "."
	}
	f, err := dir.Open(sub)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if p.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

// mapLike makes a mount belong to the users of the process's user namespace,
// unless that is ours or the file system cannot.
func mapLike(pid, mount int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	theirs, err := ns.Stat()
	if err != nil {
		return err
	}
	if ours, err := os.Stat("/proc/self/ns/user"); err != nil || os.SameFile(ours, theirs) {
		return err
	}
	if err := userns.MapMount(mount, ns, false); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// inContainer runs f on a thread in the container's mount namespace, with the
// target, its path without links, and how many mounts lie upon each other
// there.
func inContainer(p Place, f func(target *os.File, path string, mounts int) error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", p.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	if theirs, err := ns.Stat(); err != nil {
		return err
	} else if ours, err := os.Stat("/proc/self/ns/mnt"); err != nil || os.SameFile(ours, theirs) {
		return errdef.NotFound.Errorf("process %d is in no container (any more)", p.Pid)
	}
	proc, err := os.Open("/proc") // the host's: the container's may be anything
	if err != nil {
		return err
	}
	defer proc.Close()
	return thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		target, path, err := openTarget(proc, p.Target)
		if err != nil {
			return err
		}
		defer target.Close()
		mounts, err := mountsAt(proc, path)
		if err != nil {
			return err
		}
		return f(target, path, mounts)
	})
}

// openTarget opens a path of this thread's mount namespace and tells what it
// is called there.
func openTarget(proc *os.File, path string) (*os.File, string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(proc.Fd()), fmt.Sprintf("thread-self/fd/%d", fd), buf)
	if err != nil {
		f.Close()
		return nil, "", err
	}
	return f, string(buf[:n]), nil
}

// mountsAt counts the mounts at path in this thread's mount namespace.
func mountsAt(proc *os.File, path string) (int, error) {
	fd, err := unix.Openat(int(proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer f.Close()
	all, err := mountinfo.GetMountsFromReader(f, func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	return len(all), err
}
