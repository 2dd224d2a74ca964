package boot

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loadFilter puts the compiled seccomp filter, an array of the kernel's
// sock_filter, on this thread.
func loadFilter(filter []byte) error {
	if len(filter) == 0 {
		return nil
	}
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	prog := unix.SockFprog{Len: uint16(len(filter) / size), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(filter)))}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("load the seccomp filter: %w", e)
	}
	return nil
}
