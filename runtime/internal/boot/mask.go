package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// makeReadonly binds path over itself, read-only. A path that does not exist
// needs no protection.
func makeReadonly(path string) error {
	at, err := openRooted(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer at.Close()
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH | unix.AT_RECURSIVE
	fd, err := unix.OpenTree(int(at.Fd()), "", flags)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setattr(fd, 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	return moveMount(fd, at)
}

func openRooted(path string) (*os.File, error) {
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return openIn(root, path)
}

// maskAll hides files under /dev/null and directories under an empty
// read-only tmpfs.
func maskAll(paths []string) error {
	m := masker{empty: -1}
	defer m.close()
	for _, p := range paths {
		if err := m.mask(p); err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	return nil
}

// A masker makes its two covers when it first needs them.
type masker struct {
	null  *os.File
	empty int // one tmpfs serves all directories
}

func (m *masker) mask(path string) error {
	at, err := openRooted(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return m.coverDir(at)
	}
	null, err := m.nullFD()
	if err != nil {
		return err
	}
	return cloneOnto(null, at)
}

func (m *masker) coverDir(at *os.File) error {
	if m.empty >= 0 {
		return cloneOnto(m.empty, at)
	}
	p := mountPlan{kind: "tmpfs", dest: "a masked directory", set: unix.MOUNT_ATTR_RDONLY, data: [][2]string{{"nr_inodes", "1"}}}
	fd, err := p.openFS()
	if err != nil {
		return err
	}
	m.empty = fd
	// The first takes the mount itself: before Linux 6.15 only an attached
	// mount can be cloned.
	return moveMount(fd, at)
}

func cloneOnto(fd int, at *os.File) error {
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(clone)
	return moveMount(clone, at)
}

// nullFD is the container's /dev/null after a look at what it really is: a
// link or a file in its place would be bound over the secrets instead of
// nothing (CVE-2025-31133).
func (m *masker) nullFD() (int, error) {
	if m.null != nil {
		return int(m.null.Fd()), nil
	}
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	f := os.NewFile(uintptr(fd), "/dev/null")
	if err := checkDevice(f, unix.Mkdev(1, 3)); err != nil {
		f.Close()
		return -1, err
	}
	m.null = f
	return fd, nil
}

// checkDevice fails unless f is the character device dev.
func checkDevice(f *os.File, dev uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || uint64(st.Rdev) != dev {
		return fmt.Errorf("%s is not the character device %d:%d", f.Name(), unix.Major(dev), unix.Minor(dev))
	}
	return nil
}

func (m *masker) close() {
	if m.null != nil {
		m.null.Close()
	}
	if m.empty >= 0 {
		unix.Close(m.empty)
	}
}
