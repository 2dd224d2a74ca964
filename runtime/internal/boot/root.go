package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// buildRoot makes the container's file system and enters it. It returns the
// terminal's master if the process has a terminal, else -1.
func buildRoot(cfg *Config) (tty int, err error) {
	if err := isolate(cfg.RootfsPropagation); err != nil {
		return -1, err
	}
	root, err := attachRoot(cfg)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	if err := mountAll(root, cfg); err != nil {
		return -1, err
	}
	if err := populateDev(root, cfg); err != nil {
		return -1, err
	}
	tty, err = openTerminal(root, cfg.Process)
	if err != nil {
		return -1, err
	}
	if err := cfg.built(); err != nil {
		return -1, err
	}
	enter := pivot
	if cfg.NoPivot {
		enter = move
	}
	if err := enter(root); err != nil {
		return -1, fmt.Errorf("enter the root: %w", err)
	}
	return tty, finishRoot(cfg)
}

// isolate keeps mounts made here from the host.
func isolate(propagation string) error {
	flags := uintptr(unix.MS_SLAVE | unix.MS_REC)
	if propagation != "" {
		a, ok := propagations[propagation]
		if !ok {
			return fmt.Errorf("unknown rootfs propagation %q", propagation)
		}
		flags = uintptr(a.set)
		if a.recursive {
			flags |= unix.MS_REC
		}
	}
	if err := unix.Mount("", "/", "", flags, ""); err != nil {
		return fmt.Errorf("separate the mounts from the host's: %w", err)
	}
	return nil
}

// attachRoot puts the root file system into this mount namespace as a mount of
// its own, which pivot_root wants.
func attachRoot(cfg *Config) (*os.File, error) {
	place := cfg.Root
	if cfg.Given.Root { // it was where we started: the way there may be closed to us
		place = "."
	}
	at, err := os.OpenFile(place, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root: %w", err)
	}
	defer at.Close()
	root, err := detachedRoot(cfg)
	if err != nil {
		return nil, err
	}
	// A shared parent would carry the mount to the host, and pivot_root
	// refuses it. There is one only if the configuration wants it.
	if cfg.RootfsPropagation != "" {
		if err := makeParentPrivate(place); err != nil {
			root.Close()
			return nil, err
		}
	}
	if err := moveMount(int(root.Fd()), at); err != nil {
		root.Close()
		return nil, fmt.Errorf("attach the root: %w", err)
	}
	return root, nil
}

func detachedRoot(cfg *Config) (*os.File, error) {
	if cfg.Given.Root {
		return os.NewFile(firstFD, cfg.Root), nil
	}
	if cfg.Rootfs != nil {
		return cfg.Rootfs.Open()
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, cfg.Root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, &os.PathError{Op: "bind the root", Path: cfg.Root, Err: err}
	}
	return os.NewFile(uintptr(fd), cfg.Root), nil
}

func makeParentPrivate(dir string) error {
	for p := dir; ; p += "/.." {
		err := unix.Mount("", p, "", unix.MS_PRIVATE, "")
		if err != unix.EINVAL { // EINVAL: not a mount point
			return os.NewSyscallError("make the root's parent mount private", err)
		}
	}
}

// pivot makes root the process's root and drops the host's file systems.
func pivot(root *os.File) error {
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	// The old root is now stacked upon the new one. As a slave its unmounting
	// does not reach the host.
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("unmount the old root", err)
	}
	return unix.Chdir("/")
}

// move is pivot where the old root is the kernel's first, which cannot be
// taken away: the host's mounts stay below ours, out of reach of a process that
// may not mount.
func move(root *os.File) error {
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return os.NewSyscallError("move the root", err)
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return unix.Chdir("/")
}

// finishRoot does what is easier from inside: the process's own view can no
// longer reach anything of the host.
func finishRoot(cfg *Config) error {
	for _, p := range cfg.ReadonlyPaths {
		if err := makeReadonly(p); err != nil {
			return fmt.Errorf("read-only path %s: %w", p, err)
		}
	}
	if err := maskAll(cfg.MaskedPaths); err != nil {
		return err
	}
	if !cfg.ReadOnly {
		return nil
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setattr(fd, 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
