//go:build !386 && !arm

package boot

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sysSetresuid = unix.SYS_SETRESUID
	sysSetresgid = unix.SYS_SETRESGID
	sysSetgroups = unix.SYS_SETGROUPS
)

func setgroups(gids []uint32) error {
	return rawSetgroups(sysSetgroups, len(gids), unsafe.Pointer(unsafe.SliceData(gids)))
}
