//go:build 386 || arm

package boot

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The plain calls of these architectures know 16 bit IDs.
const (
	SysSetresuid = unix.SYS_SETRESUID32
	SysSetresgid = unix.SYS_SETRESGID32
	SysSetgroups = unix.SYS_SETGROUPS32
)

func setgroups(gids []uint32) error {
	return rawSetgroups(SysSetgroups, len(gids), unsafe.Pointer(unsafe.SliceData(gids)))
}
