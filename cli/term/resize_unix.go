//go:build unix

package term

import (
	"os"
	"os/signal"
	"syscall"
)

// OnResize calls f whenever the terminal changes its size, until stop is
// called.
func OnResize(f func()) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range ch {
			f()
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
		<-done
	}
}
