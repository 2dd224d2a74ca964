package command

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	ocifeatures "github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
	"github.com/minke-os/minke/runtime/internal/boot"
)

func open(ctx context.Context, g global) (*runtime.Monitor, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return runtime.Open(ctx, runtime.Options{Dir: g.root, Binary: self, Logger: slog.New(slog.DiscardHandler)})
}

// with calls f with the one container that the command line names.
func with(ctx context.Context, g global, fs *flag.FlagSet, args []string, f func(m *runtime.Monitor, id string, rest []string) error) error {
	if err := fs.Parse(args); err != nil {
		return exitError(2)
	}
	if fs.NArg() == 0 {
		return fmt.Errorf("%s: which container? give its ID", fs.Name())
	}
	m, err := open(ctx, g)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m, fs.Arg(0), fs.Args()[1:])
}

func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), usage) }
	return fs
}

// creation are the options of create and run.
type creation struct{ bundle, pidFile, consoleSocket string }

func (c *creation) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.bundle, "bundle", ".", "")
	fs.StringVar(&c.bundle, "b", ".", "")
	fs.StringVar(&c.pidFile, "pid-file", "", "")
	fs.StringVar(&c.consoleSocket, "console-socket", "", "")
	fs.Bool("no-pivot", false, "")
}

func create(ctx context.Context, g global, args []string) error {
	var c creation
	fs := newFlags("create")
	c.flags(fs)
	return with(ctx, g, fs, args, func(m *runtime.Monitor, id string, _ []string) error { return c.create(ctx, m, id) })
}

func (c creation) create(ctx context.Context, m *runtime.Monitor, id string) error {
	bundle, err := filepath.Abs(c.bundle)
	if err != nil {
		return err
	}
	spec, err := readSpec(bundle)
	if err != nil {
		return err
	}
	container := runtime.Container{ID: id, Bundle: bundle, Spec: spec}
	if spec.Process == nil || !spec.Process.Terminal {
		container.Inherit = []*os.File{os.Stdin, os.Stdout, os.Stderr}
	}
	pid, warnings, err := m.Create(ctx, container)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "minke-runtime: warning:", w)
	}
	if err := c.finish(ctx, m, id, pid); err != nil {
		m.Delete(ctx, id)
		return err
	}
	return nil
}

func (c creation) finish(ctx context.Context, m *runtime.Monitor, id string, pid int) error {
	if c.consoleSocket != "" {
		if err := sendTerminal(ctx, m, id, c.consoleSocket); err != nil {
			return fmt.Errorf("send the terminal to %s: %w", c.consoleSocket, err)
		}
	}
	return writePid(c.pidFile, pid)
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
func sendTerminal(ctx context.Context, m *runtime.Monitor, id, path string) error {
	s, err := m.Attach(ctx, id, true, false, false)
	if err != nil {
		return err
	}
	defer s.Close()
	tty, ok := s.Stdin.(interface{ Fd() uintptr })
	if !ok {
		return errdef.Invalid.Errorf("the process has no terminal")
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	if err := unix.Connect(sock, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	return unix.Sendmsg(sock, []byte("/dev/ptmx"), unix.UnixRights(int(tty.Fd())), nil, 0)
}

func start(ctx context.Context, g global, args []string) error {
	return with(ctx, g, newFlags("start"), args, func(m *runtime.Monitor, id string, _ []string) error { return m.Start(ctx, id) })
}

func run(ctx context.Context, g global, args []string) error {
	var c creation
	fs := newFlags("run")
	c.flags(fs)
	detach := fs.Bool("detach", false, "")
	return with(ctx, g, fs, args, func(m *runtime.Monitor, id string, _ []string) error {
		if err := c.create(ctx, m, id); err != nil {
			return err
		}
		if *detach {
			return m.Start(ctx, id)
		}
		defer tidy(ctx, m)
		defer m.Delete(ctx, id)
		return foreground(ctx, m, id)
	})
}

// foreground starts the container and waits for it, passing on signals and,
// if it has one, the terminal's bytes.
func foreground(ctx context.Context, m *runtime.Monitor, id string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			m.Kill(ctx, id, s.(syscall.Signal), false)
		}
	}()
	if s, err := m.Attach(ctx, id, true, true, true); err == nil {
		defer s.Close()
		go io.Copy(s.Stdin, os.Stdin)
		go io.Copy(os.Stdout, s.Stdout)
	}
	if err := m.Start(ctx, id); err != nil {
		return err
	}
	e, err := m.Wait(ctx, id)
	return exitOf(e.Code, err)
}

func exitOf(code int, err error) error {
	if err != nil || code == 0 {
		return err
	}
	return exitError(code)
}

func kill(ctx context.Context, g global, args []string) error {
	fs := newFlags("kill")
	all := fs.Bool("all", false, "")
	fs.BoolVar(all, "a", false, "")
	return with(ctx, g, fs, args, func(m *runtime.Monitor, id string, rest []string) error {
		name := "SIGTERM"
		if len(rest) > 0 {
			name = rest[0]
		}
		sig, err := parseSignal(name)
		if err != nil {
			return err
		}
		return m.Kill(ctx, id, sig, *all)
	})
}

func parseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	if sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")); sig != 0 {
		return sig, nil
	}
	return 0, errdef.Invalid.Errorf("unknown signal %q", name)
}

func remove(ctx context.Context, g global, args []string) error {
	fs := newFlags("delete")
	force := fs.Bool("force", false, "")
	fs.BoolVar(force, "f", false, "")
	return with(ctx, g, fs, args, func(m *runtime.Monitor, id string, _ []string) error {
		defer tidy(ctx, m)
		if *force {
			if err := m.Kill(ctx, id, syscall.SIGKILL, true); errdef.Is(err, errdef.NotFound) {
				return nil
			}
			m.Wait(ctx, id)
		}
		return m.Delete(ctx, id)
	})
}

// tidy ends a monitor that has nothing left to watch.
func tidy(ctx context.Context, m *runtime.Monitor) { m.Shutdown(ctx) }

func state(ctx context.Context, g global, args []string) error {
	return with(ctx, g, newFlags("state"), args, func(m *runtime.Monitor, id string, _ []string) error {
		s, err := find(ctx, m, id)
		if err != nil {
			return err
		}
		return printJSON(ociState(s))
	})
}

func find(ctx context.Context, m *runtime.Monitor, id string) (runtime.State, error) {
	states, err := m.List(ctx)
	for _, s := range states {
		if s.ID == id {
			return s, nil
		}
	}
	if err != nil {
		return runtime.State{}, err
	}
	return runtime.State{}, errdef.NotFound.Errorf("container %s does not exist", id)
}

func ociState(s runtime.State) specs.State {
	o := specs.State{Version: specs.Version, ID: s.ID, Status: specs.ContainerState(s.Status), Bundle: s.Bundle}
	if s.Status != runtime.Stopped {
		o.Pid = s.Pid
	}
	return o
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func list(ctx context.Context, g global, args []string) error {
	fs := newFlags("list")
	format := fs.String("format", "table", "")
	quiet := fs.Bool("quiet", false, "")
	fs.BoolVar(quiet, "q", false, "")
	if err := fs.Parse(args); err != nil {
		return exitError(2)
	}
	m, err := open(ctx, g)
	if err != nil {
		return err
	}
	defer m.Close()
	defer tidy(ctx, m)
	states, err := m.List(ctx)
	if err != nil {
		return err
	}
	if *format == "json" {
		out := []specs.State{}
		for _, s := range states {
			out = append(out, ociState(s))
		}
		return printJSON(out)
	}
	for _, s := range states {
		if *quiet {
			fmt.Println(s.ID)
		} else {
			fmt.Printf("%-24s %8d  %-8s %s\n", s.ID, ociState(s).Pid, s.Status, s.Bundle)
		}
	}
	return nil
}

func ps(ctx context.Context, g global, args []string) error {
	return with(ctx, g, newFlags("ps"), args, func(m *runtime.Monitor, id string, _ []string) error {
		s, err := find(ctx, m, id)
		if err != nil {
			return err
		}
		for _, dir := range s.Cgroups {
			pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err == nil {
				_, err = os.Stdout.Write(pids)
				return err
			}
		}
		return nil
	})
}

func features(context.Context, global, []string) error {
	yes := true
	return printJSON(ocifeatures.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		MountOptions: boot.MountOptions(),
		Linux: &ocifeatures.Linux{
			Namespaces:   []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			Capabilities: boot.Capabilities(),
			Cgroup:       &ocifeatures.Cgroup{V1: &yes, V2: &yes},
			Seccomp:      &ocifeatures.Seccomp{Enabled: &yes},
		},
	})
}
