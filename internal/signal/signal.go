// Package signal reads the names of signals as Docker's clients write them.
package signal

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// The first and the last real-time signal that programs have: the C library
// keeps 32 and 33 for itself.
const (
	rtMin = 34
	rtMax = 64
)

// Parse reads a number or a name: "9", "KILL", "SIGKILL", "SIGRTMIN+3",
// "rtmax-1". Anything else is errdef.Invalid.
func Parse(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > rtMax {
			return 0, invalid(name)
		}
		return syscall.Signal(n), nil
	}
	upper := "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if n := unix.SignalNum(upper); n != 0 {
		return n, nil
	}
	for base, from := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		rest, ok := strings.CutPrefix(upper, base)
		if !ok {
			continue
		}
		offset, err := strconv.Atoi(rest)
		if n := from + offset; (rest == "" || err == nil && (rest[0] == '+' || rest[0] == '-')) && n >= rtMin && n <= rtMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, invalid(name)
}

func invalid(name string) error { return errdef.Invalid.Errorf("invalid signal: %s", name) }
