package boot

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames are in the order of their numbers.
var capNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

func capNumber(name string) (int, bool) {
	short := strings.TrimPrefix(name, "CAP_")
	for i, n := range capNames {
		if n == short {
			return i, true
		}
	}
	return 0, false
}

// capSet is the bits of names; unknown ones, which the creator has warned
// about, count for nothing.
func capSet(names []string) uint64 {
	var set uint64
	for _, n := range names {
		if i, ok := capNumber(n); ok {
			set |= 1 << i
		}
	}
	return set
}

// MissingCaps is those of the wanted capabilities that this host cannot give.
func MissingCaps(c *specs.LinuxCapabilities) []string {
	if c == nil {
		return nil
	}
	have := boundingSet()
	var missing []string
	for _, n := range c.Bounding {
		if i, ok := capNumber(n); !ok || have&(1<<i) == 0 {
			missing = append(missing, n)
		}
	}
	return missing
}

// HasCap reports whether this process could have the capability.
func HasCap(name string) bool {
	i, ok := capNumber(name)
	return ok && boundingSet()&(1<<i) != 0
}

func boundingSet() uint64 {
	var set uint64
	for i := range capNames {
		if v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && v == 1 {
			set |= 1 << i
		}
	}
	return set
}

// dropBounding without capabilities in the configuration leaves the set alone,
// as the specification has it.
func dropBounding(c *specs.LinuxCapabilities) error {
	if c == nil {
		return nil
	}
	keep := capSet(c.Bounding)
	for i := 0; i < 64; i++ {
		if keep&(1<<i) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(i), 0, 0, 0)
		if err == unix.EINVAL { // beyond the kernel's last
			break
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", i, err)
		}
	}
	return nil
}

func setCaps(c *specs.LinuxCapabilities) error {
	if c == nil {
		return nil
	}
	bound := boundingSet()
	permitted := capSet(c.Permitted) & bound
	effective := capSet(c.Effective) & permitted
	inheritable := capSet(c.Inheritable) & bound
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return os.NewSyscallError("set capabilities", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("clear ambient capabilities", err)
	}
	for i, ambient := 0, capSet(c.Ambient)&permitted&inheritable; i < 64; i++ {
		if ambient&(1<<i) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i), 0, 0); err != nil {
			return fmt.Errorf("raise ambient capability %d: %w", i, err)
		}
	}
	return nil
}

func rawSetgroups(trap uintptr, n int, p unsafe.Pointer) error {
	if _, _, e := unix.RawSyscall(trap, uintptr(n), uintptr(p), 0); e != 0 {
		return e
	}
	return nil
}

// Capabilities lists all that are known.
func Capabilities() []string {
	var names []string
	for _, n := range capNames {
		names = append(names, "CAP_"+n)
	}
	return names
}
