package command

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/solo"
)

func run(g global, args []string) error {
	var c creation
	fs := newFlags("run")
	c.flags(fs)
	detach := fs.Bool("detach", false, "")
	fs.BoolVar(detach, "d", false, "")
	keep := fs.Bool("keep", false, "")
	id, _, err := parse(fs, args)
	if err != nil {
		return err
	}
	container, tty, err := c.create(g, id)
	if err != nil {
		return err
	}
	if tty != nil {
		defer tty.Close()
	}
	if err := container.Start(); err != nil {
		return errors.Join(err, g.delete(container, true))
	}
	if *detach {
		return nil
	}
	code, err := foreground(container.Pid, tty, c.consoleSocket != "")
	if !*keep {
		err = errors.Join(err, g.delete(container, true))
	}
	return exitOf(code, err)
}

// foreground waits for our child, passing on signals and, unless somebody else
// has it, the terminal's bytes.
func foreground(pid int, tty *os.File, elsewhere bool) (code int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			switch n := s.(syscall.Signal); {
			case n == syscall.SIGWINCH && tty != nil:
				copySize(tty)
			case forwarded(n):
				syscall.Kill(pid, n)
			}
		}
	}()
	copied := make(chan struct{})
	if tty == nil || elsewhere {
		close(copied)
	} else {
		defer rawInput()()
		copySize(tty)
		go io.Copy(tty, os.Stdin)
		go func() {
			io.Copy(os.Stdout, tty) // until EIO
			close(copied)
		}()
	}
	var ws syscall.WaitStatus
	for _, err = syscall.Wait4(pid, &ws, 0, nil); err == syscall.EINTR; {
		_, err = syscall.Wait4(pid, &ws, 0, nil)
	}
	<-copied
	if ws.Signaled() {
		return 128 + int(ws.Signal()), err
	}
	return ws.ExitStatus(), err
}

func copySize(tty *os.File) {
	if size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, size)
	}
}

// rawInput hands every key on, if our input is a terminal, and returns what
// undoes that.
func rawInput() (undo func()) {
	old, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	unix.IoctlSetTermios(0, unix.TCSETS, &raw)
	return func() { unix.IoctlSetTermios(0, unix.TCSETS, old) }
}

func exitOf(code int, err error) error {
	if err != nil || code == 0 {
		return err
	}
	return exitError(code)
}

func pause(g global, args []string) error {
	return with(g, newFlags("pause"), args, func(c *solo.Container, _ []string) error { return c.Pause() })
}

func resume(g global, args []string) error {
	return with(g, newFlags("resume"), args, func(c *solo.Container, _ []string) error { return c.Resume() })
}

func refused(global, []string) error {
	return errors.New("this runtime does not checkpoint containers")
}
