package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const image = "busybox:bench"

// An engine is something that runs containers, and how to drive it.
type engine struct {
	name, dir string
	version   string
	cli       []string // what people type, up to the subcommand
	own       []string // the engine's own CLI, if that is another
	daemon    []string // empty: it has none
	socket    string   // of the API, if it has one
	env       []string
	runFlags  []string
	rmFlags   []string
	programs  []string // that an installation has, for their size

	place   place
	process *exec.Cmd
	api     *client
}

// minke is the engine alone, without supervisor, as its rivals are.
func minke(r *runner, bin, dir string) (*engine, error) {
	socket := filepath.Join(dir, "engine.sock")
	prog := func(name string) string { return filepath.Join(bin, name) }
	cli, err := exec.LookPath(r.cli)
	if err != nil {
		return nil, err
	}
	return &engine{
		version: versionOf(prog("minked")), cli: []string{cli, "-H", "unix://" + socket}, own: []string{prog("minke"), "-H", "unix://" + socket}, socket: socket,
		daemon: []string{
			prog("minked"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "-H", "unix://" + socket,
			"--pidfile", filepath.Join(dir, "pid"), "--supervisor=false", "--log-level", "error",
		},
		programs: []string{prog("minked"), prog("minke-runtime"), prog("minke")},
	}, nil
}

// docker starts a containerd of its own.
func docker(r *runner, dir string) (*engine, error) {
	if _, err := os.Stat("/run/containerd/containerd.sock"); err == nil {
		return nil, errors.New("a containerd runs already, which dockerd would use; stop it first")
	}
	paths, err := lookUp("dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker-proxy", "/usr/bin/docker")
	if err != nil {
		return nil, err
	}
	cli, err := exec.LookPath(r.cli)
	if err != nil {
		return nil, err
	}
	config, socket := filepath.Join(dir, "daemon.json"), filepath.Join(dir, "engine.sock")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		return nil, err
	}
	return &engine{
		version: versionOf(paths[0]), cli: []string{cli, "-H", "unix://" + socket}, socket: socket,
		daemon: []string{
			paths[0], "--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"),
			"-H", "unix://" + socket, "--pidfile", filepath.Join(dir, "pid"), "--log-level", "error",
		},
		programs: paths,
	}, nil
}

// podman is run with runc, for crun refuses machines that have controllers both
// in cgroup version 1 and in version 2.
func podman(r *runner, dir string) (*engine, error) {
	paths, err := lookUp("podman", "conmon", "runc")
	if err != nil {
		return nil, err
	}
	below := func(name string) string { return filepath.Join(dir, name) }
	return &engine{
		version: versionOf(paths[0]), programs: paths,
		// By itself it asks for more than it may on some machines.
		runFlags: []string{"--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"},
		rmFlags:  []string{"-t", "0"}, // it is polite even with -f
		cli: []string{
			paths[0], "--root", below("data"), "--runroot", below("run"), "--tmpdir", below("tmp"), "--network-config-dir", below("networks"),
			"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", paths[2],
		},
	}, nil
}

func lookUp(names ...string) (paths []string, err error) {
	for _, n := range names {
		path, err := exec.LookPath(n)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func versionOf(program string) string {
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// open makes the engine's place and starts the daemon, if there is one.
func (e *engine) open(ctx context.Context, group string) (err error) {
	if e.place, err = newPlace(group); err != nil {
		return err
	}
	// Nobody's settings or credentials matter here.
	e.env = append(os.Environ(), "DOCKER_CONFIG="+e.dir)
	if err := os.WriteFile(filepath.Join(e.dir, "config.json"), []byte("{}"), 0o600); err != nil {
		return err
	}
	if e.daemon == nil {
		return nil
	}
	return e.launch(ctx)
}

// restart ends the daemon and starts it anew.
func (e *engine) restart(ctx context.Context) error {
	e.end()
	return e.launch(ctx)
}

func (e *engine) end() {
	e.process.Process.Signal(syscall.SIGTERM)
	e.process.Wait()
}

// afresh starts the daemon anew with an empty data root. The old one stays below
// dir until all is measured: ext4 passes over the inodes of files that were
// removed a moment ago one by one, so that whoever makes files after a removal
// pays ten times as much for each.
func (e *engine) afresh(ctx context.Context) error {
	e.end()
	old, err := os.MkdirTemp(e.dir, "before-")
	if err != nil {
		return err
	}
	if err := os.Rename(e.dataRoot(), filepath.Join(old, "data")); err != nil {
		return err
	}
	return e.launch(ctx)
}

func (e *engine) dataRoot() string { return filepath.Join(e.dir, "data") }

// launch starts the daemon and waits until it answers.
func (e *engine) launch(ctx context.Context) error {
	log, err := os.OpenFile(e.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	e.process = exec.Command(e.daemon[0], e.daemon[1:]...)
	e.process.Stdout, e.process.Stderr, e.process.Env = log, log, e.env
	if err := e.place.start(daemonGroup, e.process); err != nil {
		return err
	}
	e.api = newClient(e.socket)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", e.socket); err == nil {
			c.Close()
			return e.api.do(ctx, "GET", "/_ping", nil, nil)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			text, _ := os.ReadFile(e.logPath())
			return fmt.Errorf("%s does not answer; its log:\n%s", e.daemon[0], text)
		}
	}
}

func (e *engine) logPath() string { return filepath.Join(e.dir, "log") }

// close removes all containers and ends what was started.
func (e *engine) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	errs := []error{e.removeAll(ctx)}
	if e.process != nil {
		e.process.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { e.process.Process.Kill() })
		e.process.Wait()
		kill.Stop()
	}
	if err := e.place.settle(); err != nil {
		errs = append(errs, err)
	}
	left, err := e.place.pids()
	errs = append(errs, err)
	for _, pid := range left {
		errs = append(errs, fmt.Errorf("process %d of %s was left and is killed", pid, e.name), syscall.Kill(pid, syscall.SIGKILL))
	}
	if e.place.netns != nil {
		e.place.netns.Close()
	}
	return errors.Join(append(errs, unmountBelow(e.dir))...)
}

func (e *engine) removeAll(ctx context.Context) error {
	out, err := e.command(ctx, "ps", "-aq", "--no-trunc")
	if ids := strings.Fields(out); err == nil && len(ids) > 0 {
		_, err = e.command(ctx, slices.Concat([]string{"rm", "-f"}, e.rmFlags, ids)...)
	}
	return err
}

// command is what a person types, with what is printed.
func (e *engine) command(ctx context.Context, args ...string) (string, error) {
	return e.execute(ctx, e.cli, args)
}

func (e *engine) execute(ctx context.Context, cli, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, cli[0], append(cli[1:len(cli):len(cli)], args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errOut, e.env
	if err := e.place.start(clientGroup, cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(cli[0]), strings.Join(args, " "), err, errOut.Bytes())
	}
	return out.String(), nil
}

// parent is where the engine is told to put its containers' cgroups.
func (e *engine) parent() string { return "/" + filepath.Join(e.place.group, containerGroup) }
