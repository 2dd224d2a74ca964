package command

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	ocifeatures "github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/signal"
	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/solo"
)

// parse reads the flags and returns the ID and what follows it.
func parse(fs *flag.FlagSet, args []string) (id string, rest []string, err error) {
	if err := fs.Parse(args); err != nil {
		return "", nil, exitError(2)
	}
	if fs.NArg() == 0 {
		return "", nil, fmt.Errorf("%s: which container? give its ID", fs.Name())
	}
	return fs.Arg(0), fs.Args()[1:], nil
}

// with calls f with the one container that the command line names.
func with(g global, fs *flag.FlagSet, args []string, f func(c *solo.Container, rest []string) error) error {
	id, rest, err := parse(fs, args)
	if err != nil {
		return err
	}
	c, err := g.root.Find(id)
	if err != nil {
		return err
	}
	return f(c, rest)
}

func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), usage) }
	return fs
}

// creation are the options of create and run.
type creation struct {
	bundle, pidFile, consoleSocket string
	solo.Options
}

func (c *creation) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.bundle, "bundle", ".", "")
	fs.StringVar(&c.bundle, "b", ".", "")
	fs.StringVar(&c.pidFile, "pid-file", "", "")
	fs.StringVar(&c.consoleSocket, "console-socket", "", "")
	fs.BoolVar(&c.NoPivot, "no-pivot", false, "")
	fs.Bool("no-new-keyring", false, "") // none is made
	fs.IntVar(&c.PreserveFDs, "preserve-fds", 0, "")
}

func create(g global, args []string) error {
	var c creation
	fs := newFlags("create")
	c.flags(fs)
	id, _, err := parse(fs, args)
	if err != nil {
		return err
	}
	_, tty, err := c.create(g, id)
	if tty != nil {
		tty.Close()
	}
	return err
}

// create also gives the terminal to whoever the console socket belongs to; it
// is returned too.
func (c creation) create(g global, id string) (*solo.Container, *os.File, error) {
	bundle, err := filepath.Abs(c.bundle)
	if err != nil {
		return nil, nil, err
	}
	spec, err := readSpec(bundle)
	if err != nil {
		return nil, nil, err
	}
	if n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS")); n > 0 && spec.Process != nil { // sockets that systemd opened
		c.PreserveFDs += n
		spec.Process.Env = append(spec.Process.Env, "LISTEN_FDS="+strconv.Itoa(n), "LISTEN_PID=1")
	}
	container, tty, warnings, err := g.root.Create(id, bundle, spec, c.Options)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range warnings {
		g.warn(w)
	}
	if err = sendTerminal(tty, c.consoleSocket); err == nil {
		err = writePid(c.pidFile, container.Pid)
	}
	if err != nil {
		container.Delete(true)
		return nil, nil, err
	}
	return container, tty, nil
}

func writePid(path string, pid int) error {
	if path == "" {
		return nil
	}
	return os.WriteFile(path, []byte(strconv.Itoa(pid)), 0o644)
}

func readSpec(bundle string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, errdef.Invalid.Errorf("%s/config.json: %w", bundle, err)
	}
	return &s, nil
}

// sendTerminal gives the master to whoever listens at path, as callers of OCI
// runtimes expect it.
func sendTerminal(tty *os.File, path string) error {
	switch {
	case path == "":
		return nil
	case tty == nil:
		return errdef.Invalid.Errorf("--console-socket: the process has no terminal")
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(sock)
		err = unix.Connect(sock, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Sendmsg(sock, []byte("/dev/ptmx"), unix.UnixRights(int(tty.Fd())), nil, 0)
	}
	if err != nil {
		return fmt.Errorf("send the terminal to %s: %w", path, err)
	}
	return nil
}

func start(g global, args []string) error {
	return with(g, newFlags("start"), args, func(c *solo.Container, _ []string) error { return c.Start() })
}

func kill(g global, args []string) error {
	fs := newFlags("kill")
	all := fs.Bool("all", false, "")
	fs.BoolVar(all, "a", false, "")
	return with(g, fs, args, func(c *solo.Container, rest []string) error {
		name := "SIGTERM"
		if len(rest) > 0 {
			name = rest[0]
		}
		sig, err := signal.Parse(name)
		if err != nil {
			return err
		}
		return c.Kill(sig, *all)
	})
}

func remove(g global, args []string) error {
	fs := newFlags("delete")
	force := fs.Bool("force", false, "")
	fs.BoolVar(force, "f", false, "")
	id, _, err := parse(fs, args)
	if err != nil {
		return err
	}
	c, err := g.root.Find(id)
	if errdef.Is(err, errdef.NotFound) && *force {
		return g.root.RemoveBroken(id)
	}
	if err != nil {
		return err
	}
	return g.delete(c, *force)
}

func (g global) delete(c *solo.Container, force bool) error {
	warning, err := c.Delete(force)
	if warning != nil {
		g.warn(warning.Error())
	}
	return err
}

func state(g global, args []string) error {
	return with(g, newFlags("state"), args, func(c *solo.Container, _ []string) error { return printJSON(stateOf(c)) })
}

// fullState is the specification's, and what runc adds.
type fullState struct {
	specs.State
	Rootfs  string    `json:"rootfs"`
	Created time.Time `json:"created"`
	Owner   string    `json:"owner"`
}

func stateOf(c *solo.Container) fullState {
	return fullState{State: c.State(), Rootfs: c.Rootfs, Created: c.Created, Owner: "root"}
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func list(g global, args []string) error {
	fs := newFlags("list")
	format := fs.String("format", "table", "")
	fs.StringVar(format, "f", "table", "")
	quiet := fs.Bool("quiet", false, "")
	fs.BoolVar(quiet, "q", false, "")
	if err := fs.Parse(args); err != nil {
		return exitError(2)
	}
	all, err := g.root.List()
	if err != nil {
		return err
	}
	states := []fullState{}
	for _, c := range all {
		states = append(states, stateOf(c))
	}
	if *format == "json" && !*quiet {
		return printJSON(states)
	}
	for _, s := range states {
		if *quiet {
			fmt.Println(s.ID)
		} else {
			fmt.Printf("%-24s %8d  %-8s %s\n", s.ID, s.Pid, s.Status, s.Bundle)
		}
	}
	return nil
}

func features(global, []string) error {
	yes, no, apparmor := true, false, boot.HasAppArmor()
	return printJSON(ocifeatures.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: boot.MountOptions(),
		Linux: &ocifeatures.Linux{
			Namespaces:   []string{"cgroup", "ipc", "mount", "network", "pid", "time", "uts"},
			Capabilities: boot.Capabilities(),
			Cgroup:       &ocifeatures.Cgroup{V1: &yes, V2: &yes},
			Seccomp:      &ocifeatures.Seccomp{Enabled: &yes},
			Apparmor:     &ocifeatures.Apparmor{Enabled: &apparmor},
			Selinux:      &ocifeatures.Selinux{Enabled: &no},
			IntelRdt:     &ocifeatures.IntelRdt{Enabled: &no},
		},
	})
}
