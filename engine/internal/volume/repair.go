package volume

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// checkers are the programs that mend a file system without asking. All exit
// with 0 or 1 when it is, or was made, right; see fsck(8).
var checkers = map[string][]string{
	"ext2": {"fsck.ext2", "-p"}, "ext3": {"fsck.ext3", "-p"}, "ext4": {"fsck.ext4", "-p"},
	"vfat": {"fsck.vfat", "-a", "-w"}, "exfat": {"fsck.exfat", "-p"},
}

// repairLimit is enough for a large stick on a slow port.
const repairLimit = 30 * time.Minute

// repair runs the file system's own checker. A host without it does without:
// file systems with a journal mend themselves at the mount.
func repair(kind, device string) error {
	words, ok := checkers[kind]
	if !ok {
		return nil
	}
	program, err := exec.LookPath(words[0])
	if err != nil {
		return fmt.Errorf("%s is not installed, so %s was not checked", words[0], device)
	}
	ctx, cancel := context.WithTimeout(context.Background(), repairLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, append(words[1:], device)...).CombinedOutput()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok && ee.ExitCode() == 1 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", words[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

func deviceNumber(path string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}
