//go:build linux

package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Loop is a block device over a file. It goes when closed and unmounted.
type Loop struct {
	Path string // a node in the directory given, for /dev may not have it
	f    *os.File
}

// Attach makes a block device of a file.
func Attach(dir string, file *os.File) (*Loop, error) { return attach(dir, int(file.Fd()), 0) }

func attach(dir string, fd int, flags uint32) (*Loop, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		l, err := openLoop(dir, n)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(l.f.Fd()), &unix.LoopConfig{Fd: uint32(fd), Size: 512, Info: unix.LoopInfo64{Flags: flags | unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return l, nil
		}
		l.Close()
		if !errors.Is(err, unix.EBUSY) { // else another was faster
			return nil, os.NewSyscallError("LOOP_CONFIGURE", err)
		}
	}
	return nil, errors.New("no free loop device")
}

func openLoop(dir string, n int) (*Loop, error) {
	var major, minor uint32
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscanf(strings.TrimSpace(string(b)), "%d:%d", &major, &minor); err != nil {
		return nil, err
	}
	l := &Loop{Path: filepath.Join(dir, fmt.Sprintf("loop%d", n))}
	if err := unix.Mknod(l.Path, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: l.Path, Err: err}
	}
	l.f, err = os.OpenFile(l.Path, os.O_RDWR, 0)
	return l, err
}

func (l *Loop) direct() bool {
	info, err := unix.IoctlLoopGetStatus64(int(l.f.Fd()))
	return err == nil && info.Flags&unix.LO_FLAGS_DIRECT_IO != 0
}

// Close gives the device up; a file system on it keeps it until unmounted.
func (l *Loop) Close() error { return errors.Join(l.f.Close(), os.Remove(l.Path)) }

// Fresh makes a file system of the given size on an ordinary file in dir and
// mounts it: mkfs is a command like mkfs.ext4 with its options. Closing the
// root unmounts it.
func Fresh(dir string, size int64, mkfs ...string) (root *os.File, err error) {
	image, err := os.CreateTemp(dir, "disk")
	if err != nil {
		return nil, err
	}
	defer image.Close()
	if err := image.Truncate(size); err != nil {
		return nil, err
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image.Name())...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w: %s", mkfs, err, out)
	}
	loop, err := Attach(dir, image)
	if err != nil {
		return nil, err
	}
	defer loop.Close() // the mount keeps it
	fd, err := Mount(strings.TrimPrefix(filepath.Base(mkfs[0]), "mkfs."), map[string]string{"source": loop.Path}, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "disk"), nil
}

// Mount mounts a file system where no path leads to and returns a descriptor
// of its root; closing the last one unmounts it. Options without a value are
// flags.
func Mount(fstype string, options map[string]string, attr int) (int, error) {
	fsfd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fstype, err)
	}
	defer unix.Close(fsfd)
	for k, v := range options {
		if v == "" {
			err = unix.FsconfigSetFlag(fsfd, k)
		} else {
			err = unix.FsconfigSetString(fsfd, k, v)
		}
		if err != nil {
			return -1, fmt.Errorf("mount %s: %s=%s: %w", fstype, k, v, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("mount %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fstype, err)
	}
	return fd, nil
}
