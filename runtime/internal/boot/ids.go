//go:build !386 && !arm

package boot

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that take IDs of 32 bits.
const (
	SysSetresuid = unix.SYS_SETRESUID
	SysSetresgid = unix.SYS_SETRESGID
	SysSetgroups = unix.SYS_SETGROUPS
)

func setgroups(gids []uint32) error {
	return rawSetgroups(SysSetgroups, len(gids), unsafe.Pointer(unsafe.SliceData(gids)))
}
