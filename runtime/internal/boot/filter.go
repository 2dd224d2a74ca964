package boot

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loadFilter puts a filter that package seccomp compiled on this thread: eight
// bytes of header with the flags, then an array of the kernel's sock_filter.
func loadFilter(filter []byte) error {
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	if len(filter) < 2*size {
		return nil
	}
	flags := binary.NativeEndian.Uint32(filter[4:])
	code := filter[size:]
	prog := unix.SockFprog{Len: uint16(len(code) / size), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(code)))}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("load the seccomp filter: %w", e)
	}
	return nil
}
