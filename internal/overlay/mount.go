package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/thread"
	"github.com/minke-os/minke/internal/userns"
)

// mountAsString serves Linux before 6.7, where the layers are one string: too
// long for fsconfig, which takes 255 bytes, so mount(2) takes it, which takes a
// page. The mount point is in a mount namespace that lives as long as the
// thread which made it, and the mount is taken away from there.
func (m Mount) mountAsString() (mount *os.File, err error) {
	err = thread.Run(func() error {
		if err := separate(); err != nil {
			return err
		}
		mount, err = m.mountHere()
		return err
	})
	return mount, err
}

// OpenMapped is Open with every layer mounted so that IDs on disk are mapped as
// the user namespace maps them: what user 0 of it writes is user 0's on disk.
// The overlay itself cannot be mounted like that; its layers can since Linux
// 5.19. The kernel makes the overlay's own files as whoever mounts it, who must be in
// the mapping, too: its user 0.
func (m Mount) OpenMapped(ns *os.File, ids userns.Mapping) (mount *os.File, err error) {
	if len(m.Lower) == 0 {
		return nil, errors.New("overlay mount: no lower directory")
	}
	err = ids.AsRoot(func() error {
		if err := separate(); err != nil {
			return err
		}
		for _, dir := range m.mountable() {
			if err := mapOver(dir, ns); err != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
		}
		if mount, err = m.open(); errors.Is(err, unix.EINVAL) {
			mount, err = m.mountHere()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("overlay mount with mapped IDs: %w", err)
	}
	return mount, nil
}

// mountable are directories that have all there is below them. The kernel wants
// the upper and the work directory on one mount.
func (m Mount) mountable() []string {
	all := append(append([]string{}, m.Lower...), m.Data...)
	if m.Upper != "" {
		all = append(all, filepath.Dir(m.Upper))
	}
	return all
}

// mapOver mounts dir over itself, mapped, in this thread's mount namespace.
func mapOver(dir string, ns *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	if err := userns.MapMount(fd, ns, false); err != nil {
		return err
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// separate gives the thread mounts of its own.
func separate() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return os.NewSyscallError("separate mounts", unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
}

// mountHere mounts over the first layer. Directories are named by descriptors,
// to make 128 of them fit into a page.
func (m Mount) mountHere() (*os.File, error) {
	var words []string
	for _, o := range m.settings() {
		words = append(words, o[0]+"="+o[1])
	}
	if m.Volatile {
		words = append(words, "volatile")
	}
	names := map[string]string{}
	for _, dir := range append(append([]string{m.Upper, m.Work}, m.Lower...), m.Data...) {
		if dir == "" {
			continue
		}
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		names[dir] = Path(f)
	}
	var lower []string
	for _, l := range m.Lower {
		lower = append(lower, names[l])
	}
	layers := "lowerdir=" + strings.Join(lower, ":")
	for _, d := range m.Data {
		layers += "::" + names[d]
	}
	words = append(words, layers)
	if m.Upper != "" {
		words = append(words, "upperdir="+names[m.Upper], "workdir="+names[m.Work])
	}
	over := m.Lower[0]
	if err := unix.Mount("overlay", over, "overlay", 0, strings.Join(words, ",")); err != nil {
		return nil, fmt.Errorf("%d layers over %s: %w", len(m.Lower), over, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, over, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}
