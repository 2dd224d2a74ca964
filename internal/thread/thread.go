//go:build linux

// Package thread runs functions on threads that are thrown away, because the
// functions change what belongs to a thread: namespaces, cgroups.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that ends with it. It is never the main thread, which
// Go does not end but only puts aside, and which stands for the process in
// /proc.
func Run(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- Run(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f() // and never unlocked
	}()
	return <-result
}
