package volume

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// Quotas are project quotas: every file below the volume's directory inherits
// its project, and the file system counts the project's blocks. ext4 and xfs
// have them when mounted with prjquota.

// firstProject is where our projects begin, out of the way of those that
// administrators number from 1: "mk" and two bytes.
const firstProject = 0x6d6b0000

// freeProject is one that no volume has. Called with mu held.
func (s *Store) freeProject() (uint32, error) {
	all, err := s.List()
	if err != nil {
		return 0, err
	}
	taken := map[uint32]bool{}
	for _, v := range all {
		taken[v.Project] = true
	}
	for p := uint32(firstProject); p < firstProject+1<<16; p++ {
		if !taken[p] {
			return p, nil
		}
	}
	return 0, errdef.Conflict.Errorf("there are too many volumes with a size; remove some")
}

// setQuota gives the directory a project and limits it to size bytes; 0 is no
// limit.
func setQuota(path string, project uint32, size int64) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := setProject(dir, project); err != nil {
		return quotaError(path, err)
	}
	return quotaError(path, limitProject(dir, project, size))
}

func quotaError(path string, err error) error {
	for _, lacking := range []error{unix.ENOTTY, unix.EOPNOTSUPP, unix.ESRCH, unix.ENOSYS, unix.EINVAL} {
		if errors.Is(err, lacking) {
			return errdef.Invalid.Errorf("quota size requested but no quota support: %s must be on ext4 or xfs, mounted with the option prjquota (%w)", path, err)
		}
	}
	return err
}

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

const (
	fsGetXattr     = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit = 0x00000200 // FS_XFLAG_PROJINHERIT
)

func setProject(dir *os.File, project uint32) error {
	var x fsxattr
	if err := ioctl(dir, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("read project: %w", err)
	}
	x.project, x.flags = project, x.flags|projectInherit
	if err := ioctl(dir, fsSetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("set project: %w", err)
	}
	return nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	if e != 0 {
		return e
	}
	return nil
}

// dqblk is struct if_dqblk of linux/quota.h; limits are in blocks of 1 KiB.
type dqblk struct {
	hard, soft, space              uint64
	inodeHard, inodeSoft, inodes   uint64
	blockGraceTime, inodeGraceTime uint64
	valid                          uint32
	_                              uint32
}

const (
	setQuotaCommand = 0x800008 << 8 // Q_SETQUOTA
	projectQuota    = 2             // PRJQUOTA
	blockLimits     = 1             // QIF_BLIMITS
)

// limitProject needs Linux 5.14 (quotactl_fd).
func limitProject(dir *os.File, project uint32, size int64) error {
	blocks := uint64(size+1023) / 1024
	q := dqblk{hard: blocks, soft: blocks, valid: blockLimits}
	_, _, e := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), setQuotaCommand|projectQuota, uintptr(project), uintptr(unsafe.Pointer(&q)), 0, 0)
	if e != 0 {
		return fmt.Errorf("limit project: %w", e)
	}
	return nil
}
