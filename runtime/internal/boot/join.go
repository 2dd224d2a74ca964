package boot

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// TargetFD is the pidfd of the container's first process, for Join. The pid
// namespace was joined by whoever cloned this process.
const TargetFD = firstFD

// join enters the container's namespaces and prepares the program there.
func join(cfg *Config) (*program, error) {
	// The kernel refuses a mount namespace while threads share the working
	// directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare the working directory: %w", err)
	}
	// Not those that it shares with the host, which from a user namespace may
	// not be joined.
	const ours = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if flags := cfg.enter & ours; flags != 0 {
		if err := unix.Setns(TargetFD, flags); err != nil {
			return nil, fmt.Errorf("join the container's namespaces: %w", err)
		}
	}
	unix.Close(TargetFD)
	tty := -1
	if cfg.Process.Terminal {
		var err error
		if tty, err = joinTerminal(cfg.Process); err != nil {
			return nil, err
		}
	}
	p, err := restrict(cfg, tty)
	if err == nil {
		p.inherited++ // after the target
	}
	return p, err
}
