//go:build unix

package container

import (
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

func signalName(s os.Signal) string {
	n, ok := s.(syscall.Signal)
	if !ok {
		return "TERM"
	}
	return strings.TrimPrefix(unix.SignalName(n), "SIG")
}
