// Package boot is what a container's first process does before it becomes the
// image's program: it builds the root file system, restricts itself and execs.
//
// The monitor clones it into the container's namespaces and cgroup with five
// descriptors: 0–2 are the program's, SocketFD leads to the monitor, ConfigFD
// holds a Config. It reports on the socket when everything is ready (with the
// terminal, if there is one), waits to be started, and execs. The socket
// closes by the exec, which tells the monitor that it worked; everything that
// goes wrong, before or after the start, is sent as an error instead.
//
// Join does the same for further processes of a running container.
//
// The image is the enemy here. Paths in it are opened with pathrs-lite below
// the root and used by descriptor; mounts are made detached and moved onto
// descriptors; what is written to /proc goes through a handle of a private
// procfs. The process is not dumpable, its program file is on a read-only
// mount, and every descriptor but 0–2 is closed by the exec.
//
// A crash leaves nothing: mounts live in the container's mount namespace,
// which ends with its last process.
package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Descriptors of a process that Main or Join runs in.
const (
	SocketFD = 3
	ConfigFD = 4
	firstFD  = 5 // further ones
)

// A Config is the part of an OCI configuration that happens inside the
// container.
type Config struct {
	Process *specs.Process `json:"process"`

	Rootfs     *overlay.Mount `json:"rootfs,omitempty"` // mounted at Root, which is then any directory
	Root       string         `json:"root"`
	ReadOnly   bool           `json:"readonly,omitempty"`
	Mounts     []specs.Mount  `json:"mounts,omitempty"`
	Hostname   string         `json:"hostname,omitempty"`
	Domainname string         `json:"domainname,omitempty"`

	Join              []specs.LinuxNamespace `json:"join,omitempty"` // by path, but for pid
	NewMount          bool                   `json:"newMount,omitempty"`
	NewCgroup         bool                   `json:"newCgroup,omitempty"`  // after it was put into its cgroup
	LimitsPIDs        bool                   `json:"limitsPIDs,omitempty"` // so a version 1 pids cgroup is entered last, see cgroup.Group.Enter
	Devices           []specs.LinuxDevice    `json:"devices,omitempty"`
	Sysctl            map[string]string      `json:"sysctl,omitempty"`
	MaskedPaths       []string               `json:"masked,omitempty"`
	ReadonlyPaths     []string               `json:"readonlyPaths,omitempty"`
	RootfsPropagation string                 `json:"propagation,omitempty"`

	Personality *specs.LinuxPersonality `json:"personality,omitempty"`
	NoPivot     bool                    `json:"noPivot,omitempty"`     // where pivot_root cannot work: the root is moved over the old one
	PreserveFDs int                     `json:"preserveFDs,omitempty"` // so many descriptors after ours become the program's from 3 on

	// Given are mounts that were made for the init, which cannot make them in
	// a user namespace of its own; see Prepare.
	Given Given `json:"given,omitzero"`

	// Hooks are those that run in the container. With BeforePivot the process
	// says when the root is built, and waits for a word, so that others can
	// run then.
	Hooks       Hooks `json:"hooks,omitzero"`
	BeforePivot bool  `json:"beforePivot,omitempty"`

	filter []byte       // seccomp
	place  string       // in cgroup hierarchies, if LimitsPIDs
	enter  int          // flags of the container's namespaces
	built  func() error // what happens between building the root and entering it
}

// A Word lets the process go on: the first one when it is in its cgroup, the
// second one to start the program.
type Word struct {
	Seccomp bool         `json:"seccomp,omitempty"` // with the first: a compiled filter is sent along
	Join    int          `json:"join,omitempty"`    // with the first, to a further process: flags of the namespaces to enter
	Report  bool         `json:"report,omitempty"`  // instead of starting: say again that you are ready, to a new monitor
	Listen  bool         `json:"listen,omitempty"`  // instead of starting: further words come on connections to the socket sent along
	State   *specs.State `json:"state,omitempty"`   // for hooks
}

// A Report is what the process sends: ready, or an error at any time.
type Report struct {
	Err   *wire.Error `json:"err,omitempty"`
	Built bool        `json:"built,omitempty"` // not ready yet: the root is built and not entered
}

// Main is the life of a container's init. It returns only by exiting.
func Main() { live(initialize) }

// Join is the life of a further process of a container.
func Join() { live(join) }

func live(prepare func(*Config) (*program, error)) {
	// Namespaces, credentials and filters belong to threads; the one that
	// execs takes its own along.
	runtime.LockOSThread()
	// Above everything that was inherited: the program may get descriptor 3.
	fd, err := unix.FcntlInt(SocketFD, unix.F_DUPFD_CLOEXEC, firstFD)
	if err != nil {
		os.Exit(1)
	}
	conn, err := wire.NewConn(fd)
	if err != nil {
		os.Exit(1)
	}
	l := life{conn: conn}
	err = l.run(prepare)
	l.conn.Send(Report{Err: wire.ErrorOf(err)})
	os.Exit(1)
}

// life is a process on its way to its program.
type life struct {
	conn  *wire.Conn
	state *specs.State
}

func (l *life) run(prepare func(*Config) (*program, error)) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make init not dumpable: %w", err)
	}
	// Nothing but 0–2 may reach the program, whoever opened it.
	if err := unix.CloseRange(SocketFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close-on-exec all descriptors: %w", err)
	}
	cfg, err := readConfig()
	if err != nil {
		return fmt.Errorf("read the boot configuration: %w", err)
	}
	word, files, err := awaitWord(l.conn)
	if err != nil {
		return err
	}
	l.state, cfg.enter = word.State, word.Join
	if word.Seccomp && len(files) == 1 {
		if cfg.filter, err = readAll(files[0]); err != nil {
			return fmt.Errorf("read the seccomp filter: %w", err)
		}
	}
	cfg.built = func() error { return l.built(cfg) }
	p, err := prepare(cfg)
	if err != nil {
		return err
	}
	if err := l.awaitStart(p); err != nil {
		return err
	}
	if err := cfg.Hooks.StartContainer.run(l.state, specs.StateCreated); err != nil {
		return err
	}
	return p.exec(l.conn.FD())
}

// built lets others run hooks while the host's files can still be seen, and
// runs those of the container.
func (l *life) built(cfg *Config) error {
	if cfg.BeforePivot {
		if err := l.conn.Send(Report{Built: true}); err != nil {
			return err
		}
		word, _, err := awaitWord(l.conn)
		if err != nil {
			return err
		}
		if word.Report { // it does not know
			return errors.New("the monitor died while hooks ran")
		}
	}
	return cfg.Hooks.CreateContainer.run(l.state, specs.StateCreating)
}

// awaitStart says that the process is ready, to whoever asks, and returns when
// it shall start.
func (l *life) awaitStart(p *program) error {
	for word := (Word{Report: true}); ; {
		if word.Report {
			if err := report(l.conn, p.tty); err != nil {
				return err
			}
		}
		var files []*os.File
		var err error
		word, files, err = awaitWord(l.conn)
		switch {
		case err != nil:
			return err
		case word.Listen && len(files) == 1:
			return l.accept(files[0])
		case !word.Report:
			return nil
		}
	}
}

// accept takes words from now on from who connects to the socket; who does,
// and goes away without one, is not heard.
func (l *life) accept(socket *os.File) error {
	l.conn.Close()
	for {
		fd, _, err := unix.Accept4(int(socket.Fd()), unix.SOCK_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("accept", err)
		}
		if l.conn, err = wire.NewConn(fd); err != nil {
			return err
		}
		if word, _, err := awaitWord(l.conn); err == nil {
			l.state = word.State
			socket.Close()
			return nil
		}
		l.conn.Close()
	}
}

// report says that the process is ready, and brings its terminal.
func report(conn *wire.Conn, tty int) error {
	if tty < 0 {
		return conn.Send(Report{})
	}
	return conn.Send(Report{}, tty)
}

// awaitWord waits until the monitor lets this process go on.
func awaitWord(conn *wire.Conn) (w Word, files []*os.File, err error) {
	if files, err = conn.Recv(&w); err != nil {
		return w, nil, fmt.Errorf("the container was given up: %w", err)
	}
	return w, files, nil
}

// SendFirst sends the first word to a process of the container that l describes,
// with the compiled filter.
func SendFirst(conn *wire.Conn, l *wire.Launch, state *specs.State) error {
	word := Word{State: state}
	for _, ns := range l.Namespaces {
		if flag, err := NamespaceFlag(ns.Type); err == nil {
			word.Join |= int(flag)
		}
	}
	filter := l.Seccomp
	if filter == "" {
		return conn.Send(word)
	}
	f, err := os.Open(filter)
	if err != nil {
		return fmt.Errorf("open the seccomp filter: %w", err)
	}
	defer f.Close()
	word.Seccomp = true
	return conn.Send(word, int(f.Fd()))
}

// readAll reads from the beginning and closes the file, whose offset is shared
// with others.
func readAll(f *os.File) ([]byte, error) {
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, fi.Size())
	_, err = f.ReadAt(data, 0)
	return data, err
}

func readConfig() (*Config, error) {
	data, err := readAll(os.NewFile(ConfigFD, "config"))
	if err != nil {
		return nil, err
	}
	var cfg Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// initialize does everything up to the moment before the program's exec.
func initialize(cfg *Config) (*program, error) {
	if err := enterNamespaces(cfg); err != nil {
		return nil, err
	}
	tty := -1
	if cfg.NewMount {
		var err error
		if tty, err = buildRoot(cfg); err != nil {
			return nil, err
		}
	}
	if err := setNames(cfg); err != nil {
		return nil, err
	}
	if err := writeSysctls(cfg.Sysctl); err != nil {
		return nil, err
	}
	return restrict(cfg, tty)
}

func enterNamespaces(cfg *Config) error {
	for _, ns := range cfg.Join {
		if err := joinPath(ns); err != nil {
			return err
		}
	}
	if cfg.LimitsPIDs {
		all, err := cgroupLines()
		if err != nil {
			return err
		}
		cfg.place = placeOf(all)
	}
	if cfg.NewCgroup {
		// At clone it would have had the monitor's cgroup as its root.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("new cgroup namespace: %w", err)
		}
	}
	return nil
}

func joinPath(ns specs.LinuxNamespace) error {
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s namespace %s: %w", ns.Type, ns.Path, err)
	}
	defer unix.Close(fd)
	flag, err := NamespaceFlag(ns.Type)
	if err != nil {
		return err
	}
	if flag == unix.CLONE_NEWNS {
		// The kernel refuses while other threads share the working directory.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the working directory: %w", err)
		}
	}
	if err := unix.Setns(fd, int(flag)); err != nil {
		return fmt.Errorf("join %s namespace %s: %w", ns.Type, ns.Path, err)
	}
	return nil
}

// NamespaceFlag is the clone flag of an OCI namespace type.
func NamespaceFlag(t specs.LinuxNamespaceType) (uintptr, error) {
	switch t {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID, nil
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET, nil
	case specs.MountNamespace:
		return unix.CLONE_NEWNS, nil
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC, nil
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS, nil
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER, nil
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP, nil
	case specs.TimeNamespace:
		return unix.CLONE_NEWTIME, nil
	}
	return 0, fmt.Errorf("unknown namespace type %q", t)
}

func setNames(cfg *Config) error {
	if cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", cfg.Hostname, err)
		}
	}
	if cfg.Domainname != "" {
		if err := unix.Setdomainname([]byte(cfg.Domainname)); err != nil {
			return fmt.Errorf("set domainname %q: %w", cfg.Domainname, err)
		}
	}
	return nil
}
