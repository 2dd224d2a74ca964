package monitor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const cldExited = 1 // CLD_EXITED; the other codes of waitid mean a signal

// exitCode reads si_status, which package unix leaves in the unnamed part of
// the structure: after pid and uid, at the same place relative to the union's
// start on all architectures.
func exitCode(info *unix.Siginfo) int {
	union := unsafe.Offsetof(info.Code) + 4
	if unsafe.Sizeof(uintptr(0)) == 8 {
		union += 4 // the union is aligned for pointers
	}
	status := *(*int32)(unsafe.Add(unsafe.Pointer(info), union+8))
	if info.Code == cldExited {
		return int(status) & 0xff
	}
	return 128 + int(status)&0x7f
}
