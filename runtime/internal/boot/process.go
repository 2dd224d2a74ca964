package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/wire"
)

// A program is ready to be executed.
type program struct {
	path   string
	args   []string
	env    []string
	filter []byte // not loaded yet
	tty    int    // the terminal's master, -1 without

	apparmor  string // profile
	preserve  int    // descriptors that become 3 and following
	inherited int    // the first of them
}

// restrict takes away everything the program shall not have, and finds it. The order matters and is runc's: a seccomp filter needs
// CAP_SYS_ADMIN unless no_new_privs is set, so without it the filter comes
// before the capabilities go, and must allow what follows.
func restrict(cfg *Config, tty int) (*program, error) {
	p := cfg.Process
	prog := &program{args: p.Args, filter: cfg.filter, tty: tty, apparmor: p.ApparmorProfile, preserve: cfg.PreserveFDs, inherited: firstFD + cfg.Given.count()}
	if err := schedule(cfg); err != nil {
		return nil, err
	}
	if err := SetRlimits(0, p.Rlimits); err != nil {
		return nil, err
	}
	if cfg.NewMount { // not for a process that joins
		if err := makeCwd(p.Cwd); err != nil {
			return nil, err
		}
	}
	if p.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return nil, os.NewSyscallError("set no_new_privs", err)
		}
	} else if err := loadFilter(prog.filter); err != nil {
		return nil, err
	} else {
		prog.filter = nil
	}
	if err := becomeUser(p); err != nil {
		return nil, err
	}
	if err := chdir(p.Cwd); err != nil {
		return nil, err
	}
	prog.env = withHome(p.Env, p.User.UID)
	var err error
	if prog.path, err = lookPath(p.Args, prog.env); err != nil {
		return nil, err
	}
	return prog, nil
}

// exec returns only with an error.
func (p *program) exec(socket int) error {
	for i := range p.preserve { // upwards: none is overwritten before its turn
		if err := unix.Dup3(p.inherited+i, SocketFD+i, 0); err != nil {
			return fmt.Errorf("preserve descriptor %d: %w", SocketFD+i, err)
		}
	}
	heedSignals()
	if err := useAppArmor(p.apparmor); err != nil {
		return err
	}
	if err := loadFilter(p.filter); err != nil {
		return err
	}
	if isOurs(p.path) {
		// docker-init counts as started when it has handlers for signals, for
		// until then one would end it: it closes the socket itself.
		if err := unix.Dup3(socket, SocketFD, 0); err != nil {
			return os.NewSyscallError("dup", err)
		}
	}
	err := syscall.Exec(p.path, p.args, p.env)
	return &wire.ProgramError{Code: 126, Text: fmt.Sprintf("exec %s: %v", p.path, err)}
}

// heedSignals undoes what the daemon inherited: under nohup(1) every program
// below it would ignore SIGHUP. execve(2) makes a signal with a handler default.
func heedSignals() {
	c := make(chan os.Signal, 1)
	for s := syscall.Signal(1); s < 32; s++ {
		if signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// isOurs reports whether path is this program, mounted into the container.
func isOurs(path string) bool {
	var ours, its unix.Stat_t
	if unix.Stat("/proc/self/exe", &ours) != nil || unix.Stat(path, &its) != nil {
		return false
	}
	return ours.Dev == its.Dev && ours.Ino == its.Ino
}

// SetRlimits sets those of a process; 0 is this one. Without the right to it a
// hard limit is raised as far as is allowed.
func SetRlimits(pid int, limits []specs.POSIXRlimit) error {
	for _, l := range limits {
		which, ok := rlimits[l.Type]
		if !ok {
			return fmt.Errorf("unknown rlimit %q", l.Type)
		}
		want := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		err := unix.Prlimit(pid, which, &want, nil)
		if errors.Is(err, unix.EPERM) {
			err = clampRlimit(pid, which, want)
		}
		if err != nil {
			return fmt.Errorf("set %s to %d:%d: %w", l.Type, l.Soft, l.Hard, err)
		}
	}
	return nil
}

// clampRlimit sets as much as a process without CAP_SYS_RESOURCE may. The
// warning about it is the creator's.
func clampRlimit(pid, which int, want unix.Rlimit) error {
	var have unix.Rlimit
	if err := unix.Prlimit(pid, which, nil, &have); err != nil {
		return err
	}
	want.Max = min(want.Max, have.Max)
	want.Cur = min(want.Cur, want.Max)
	return unix.Prlimit(pid, which, &want, nil)
}

// HardLimit is how far this process may raise a limit.
func HardLimit(name string) (uint64, bool) {
	which, ok := rlimits[name]
	if !ok {
		return 0, false
	}
	var have unix.Rlimit
	err := unix.Prlimit(0, which, nil, &have)
	return have.Max, err == nil
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK": unix.RLIMIT_STACK,
}

// makeCwd makes the working directory if the image lacks it, while the
// process may still do so.
func makeCwd(cwd string) error {
	if err := os.MkdirAll(cwd, 0o755); err != nil {
		return fmt.Errorf("make the working directory: %w", err)
	}
	return nil
}

// chdir happens as the user, who may be denied it, and looks where it arrived:
// a path through a leaked descriptor would lead to the host (CVE-2024-21626).
func chdir(cwd string) error {
	if err := unix.Chdir(cwd); err != nil {
		return fmt.Errorf("enter the working directory %s: %w", cwd, err)
	}
	at, err := unix.Getwd()
	if err != nil || !strings.HasPrefix(at, "/") {
		return fmt.Errorf("the working directory %s is outside the container (%s)", cwd, at)
	}
	return nil
}

// becomeUser drops to the user and capabilities of p, on this thread alone.
func becomeUser(p *specs.Process) error {
	if err := dropBounding(p.Capabilities); err != nil {
		return err
	}
	if err := ownStdio(int(p.User.UID)); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("keep capabilities", err)
	}
	if err := setIDs(p.User); err != nil {
		return err
	}
	return setCaps(p.Capabilities)
}

// setIDs uses raw system calls: package syscall's versions would change all
// threads, which costs, and only this one goes on.
func setIDs(u specs.User) error {
	groups := make([]uint32, len(u.AdditionalGids))
	copy(groups, u.AdditionalGids)
	if err := setgroups(groups); err != nil && !errors.Is(err, unix.EPERM) { // EPERM: a user namespace that denies it
		return os.NewSyscallError("setgroups", err)
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	if _, _, e := unix.RawSyscall(SysSetresgid, gid, gid, gid); e != 0 {
		return fmt.Errorf("set group %d: %w", u.GID, e)
	}
	if _, _, e := unix.RawSyscall(SysSetresuid, uid, uid, uid); e != 0 {
		return fmt.Errorf("set user %d: %w", u.UID, e)
	}
	if u.Umask != nil {
		unix.Umask(int(*u.Umask))
	}
	return nil
}

// ownStdio lets a program that is not root open /dev/stdout and /dev/stderr
// again, as web servers do for their logs.
func ownStdio(uid int) error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue // not open: the caller wanted it so
		}
		if int(st.Uid) == uid || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue
		}
		err := unix.Fchown(fd, uid, -1)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("chown descriptor %d: %w", fd, err)
		}
	}
	return nil
}
