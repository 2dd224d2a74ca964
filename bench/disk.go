package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A disk is an ext4 file system of its own on a loop device, whose writes the
// kernel counts.
type disk struct {
	dir, loop string
	image     string
}

const diskSize = 6 << 30

// newDisk mounts a new, empty file system on a directory.
func newDisk(dir string) (_ *disk, err error) {
	d := &disk{dir: dir, image: dir + ".img"}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	err = errors.Join(f.Truncate(diskSize), f.Close())
	if err != nil {
		return nil, err
	}
	// Tables are written at once, not by the kernel while we measure.
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.image).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", d.image).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("losetup: %w: %s", err, out)
	}
	d.loop = strings.TrimSpace(string(out))
	if err := unix.Mount(d.loop, dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", d.loop, err)
	}
	return d, nil
}

func (d *disk) close() error {
	var errs []error
	if d.loop != "" {
		if err := unix.Unmount(d.dir, 0); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmount %s: %w", d.dir, err), unix.Unmount(d.dir, unix.MNT_DETACH))
		}
		errs = append(errs, exec.Command("losetup", "--detach", d.loop).Run())
	}
	return errors.Join(append(errs, os.Remove(d.image))...)
}

// written is how many bytes the device has been sent.
func (d *disk) written() (int64, error) {
	data, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.loop), "stat"))
	if err != nil {
		return 0, err
	}
	const sectorsWritten = 6 // Documentation/block/stat.rst
	fields := strings.Fields(string(data))
	if len(fields) <= sectorsWritten {
		return 0, fmt.Errorf("%s: cannot read its statistics", d.loop)
	}
	n, err := strconv.ParseInt(fields[sectorsWritten], 10, 64)
	return n * 512, err
}

type diskState struct{ written, used int64 }

// settle writes everything out and looks.
func (d *disk) settle() (s diskState, err error) {
	f, err := os.Open(d.dir)
	if err != nil {
		return s, err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return s, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return s, err
	}
	s.used = int64(st.Blocks-st.Bfree) * st.Bsize
	s.written, err = d.written()
	return s, err
}
