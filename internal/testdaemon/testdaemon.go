//go:build linux

// Package testdaemon runs a real minked for tests, in a network namespace of
// its own, so that neither the host's networks nor another daemon's rules
// matter and nothing is left behind.
package testdaemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/internal/thread"
)

// Image is the name of the busybox image that every daemon has.
const Image = "busybox:latest"

// A Daemon is a running minked.
type Daemon struct {
	*client.Client
	Dir    string // data-root and exec-root are in it
	Socket string

	// Prepare, if set, changes the command of the next Up: its environment, its
	// files.
	Prepare func(*exec.Cmd)

	t     testing.TB
	args  []string
	cmd   *exec.Cmd
	netns *os.File // kept over restarts
}

// Start starts a daemon with a busybox image, to be stopped after the test,
// which then fails if something was left behind. It skips without root.
func Start(t testing.TB, args ...string) *Daemon {
	t.Helper()
	testenv.NeedRoot(t)
	d := &Daemon{t: t, Dir: testenv.DiskDir(t), args: args}
	d.Socket = filepath.Join(d.Dir, "engine.sock")
	var err error
	if d.netns, err = newNetNS(); err != nil {
		t.Fatal(err)
	}
	if d.Client, err = client.New(client.WithHost("unix://" + d.Socket)); err != nil {
		t.Fatal(err)
	}
	d.Up()
	t.Cleanup(d.finish)
	d.importImage()
	return d
}

// Up starts the process, after Kill or Stop, with more arguments for this once.
func (d *Daemon) Up(more ...string) {
	d.t.Helper()
	bin := Build(d.t)
	args := append([]string{
		"--data-root", filepath.Join(d.Dir, "data"), "--exec-root", filepath.Join(d.Dir, "run"), "-H", "unix://" + d.Socket,
		"--pidfile", filepath.Join(d.Dir, "pid"), "--bridge", "mt0", "--supervisor=false",
	}, append(slices.Clone(d.args), more...)...)
	d.cmd = exec.Command(filepath.Join(bin, "minked"), args...)
	// A file, for the monitor inherits it and outlives minked.
	log, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if d.Prepare != nil {
		d.Prepare(d.cmd)
	}
	if err := inNetNS(d.netns, d.cmd.Start); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := d.Ping(d.t.Context(), client.PingOptions{}); err == nil {
			return
		}
		if time.Now().After(deadline) || d.cmd.Process.Signal(syscall.Signal(0)) != nil {
			d.t.Fatalf("minked does not answer; its log:\n%s", d.Log())
		}
		time.Sleep(5 * time.Millisecond) // another process: there is nothing to wait on
	}
}

// WaitSupervisor waits until the Supervisor API answers, which comes after the
// engine's.
func (d *Daemon) WaitSupervisor() {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if out, err := d.Get("http://127.0.0.1:48484/ping"); err == nil && out == "OK" {
			return
		} else if time.Now().After(deadline) {
			d.t.Fatalf("the supervisor does not answer: %v; log of minked:\n%s", err, d.Log())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Pid is minked's process ID.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Monitor is the process ID of its runtime monitor.
func (d *Daemon) Monitor() int {
	d.t.Helper()
	for _, p := range d.processes() {
		if strings.Contains(p.args, "monitor") {
			return p.pid
		}
	}
	d.t.Fatal("no monitor runs")
	return 0
}

// Kill is kill -9 of minked alone.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

// KillAll is kill -9 of minked and its monitor in one instant.
func (d *Daemon) KillAll() {
	d.t.Helper()
	monitor := d.Monitor()
	syscall.Kill(d.Pid(), syscall.SIGSTOP) // so that it cannot start another
	syscall.Kill(monitor, syscall.SIGKILL)
	d.Kill()
	WaitDead(d.t, monitor)
}

// Reboot is a power cut: every process ends, and what lives in memory is gone.
// Call Up afterwards.
func (d *Daemon) Reboot() {
	d.t.Helper()
	pids := map[string]int{}
	list, err := d.ContainerList(d.t.Context(), client.ContainerListOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, c := range list.Items {
		pids[c.ID] = d.Inspect(c.ID).State.Pid
	}
	d.KillAll()
	for id, pid := range pids {
		syscall.Kill(pid, syscall.SIGKILL)
		WaitDead(d.t, pid)
		// Control groups live in memory, too.
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/minke/" + id)
		for _, g := range groups {
			err := os.Remove(g)
			for deadline := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(deadline); err = os.Remove(g) {
				time.Sleep(time.Millisecond) // somebody else has to collect the dead
			}
			if err != nil {
				d.t.Error(err)
			}
		}
	}
	if err := os.RemoveAll(filepath.Join(d.Dir, "run")); err != nil {
		d.t.Fatal(err)
	}
	d.netns.Close()
	if d.netns, err = newNetNS(); err != nil {
		d.t.Fatal(err)
	}
}

// Stop ends minked as a service manager does.
func (d *Daemon) Stop() {
	d.t.Helper()
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("minked ended with %v; its log:\n%s", err, d.Log())
	}
}

// Log is what minked wrote so far.
func (d *Daemon) Log() string {
	data, err := os.ReadFile(d.logPath())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (d *Daemon) logPath() string { return filepath.Join(d.Dir, "minked.log") }

// finish removes all containers, stops the daemon, and looks for leftovers.
func (d *Daemon) finish() {
	defer d.netns.Close()
	defer d.Client.Close()
	ctx := context.Background()
	if list, err := d.ContainerList(ctx, client.ContainerListOptions{All: true}); err == nil {
		for _, c := range list.Items {
			d.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		}
	}
	d.Stop()
	defer func() {
		if d.t.Failed() {
			d.t.Logf("log of minked:\n%s", d.Log())
		}
	}()
	// The kernel takes namespaces apart, and cables with them, in its own time,
	// and the monitor closes its connections a moment before it is gone.
	gone := func() bool { return len(d.Links()) == 1 && len(d.processes()) == 0 }
	for deadline := time.Now().Add(5 * time.Second); !gone() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	for _, p := range d.processes() {
		d.t.Errorf("left behind: process %d %s", p.pid, p.args)
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); bytes.Contains(mounts, []byte(d.Dir)) {
		d.t.Errorf("left behind: mounts below %s", d.Dir)
	}
	if links := d.Links(); len(links) > 1 {
		d.t.Errorf("left behind: network interfaces %v", links)
	}
}

// Links are the network interfaces in the daemon's namespace, loopback too.
func (d *Daemon) Links() (names []string) {
	d.t.Helper()
	err := inNetNS(d.netns, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names = append(names, l.Name)
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return names
}

// Dial connects from the daemon's host, that is, its network namespace.
func (d *Daemon) Dial(_ context.Context, network, addr string) (c net.Conn, err error) {
	err = inNetNS(d.netns, func() error {
		c, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	})
	return c, err
}

// Get fetches a URL from the daemon's host.
func (d *Daemon) Get(url string) (string, error) {
	c := http.Client{Transport: &http.Transport{DialContext: d.Dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// Command runs one of the built programs, or one on the PATH, on the daemon's
// host network with the daemon as its engine, and returns what it printed.
func (d *Daemon) Command(ctx context.Context, program string, args ...string) (string, error) {
	d.t.Helper()
	if path := filepath.Join(Build(d.t), program); !filepath.IsAbs(program) {
		if _, err := os.Stat(path); err == nil {
			program = path
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.Socket, "HOME="+d.Dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := inNetNS(d.netns, cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// InNetNS runs f on the daemon's host network.
func (d *Daemon) InNetNS(f func() error) error { return inNetNS(d.netns, f) }

func (d *Daemon) importImage() {
	d.t.Helper()
	r, err := d.ImageImport(d.t.Context(), client.ImageImportSource{Source: bytes.NewReader(testenv.BusyboxTar(d.t)), SourceName: "-"}, Image,
		client.ImageImportOptions{Changes: []string{`CMD ["sh"]`, "ENV PATH=/bin"}})
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		d.t.Fatal(err)
	}
}

// Spec describes a container in short.
type Spec struct {
	Name   string
	Config container.Config
	Host   container.HostConfig
}

// Create creates a container of the busybox image unless another is named.
func (d *Daemon) Create(s Spec) string {
	d.t.Helper()
	if s.Config.Image == "" {
		s.Config.Image = Image
	}
	c, err := d.ContainerCreate(d.t.Context(), client.ContainerCreateOptions{Name: s.Name, Config: &s.Config, HostConfig: &s.Host})
	if err != nil {
		d.t.Fatalf("create %s: %v", s.Name, err)
	}
	return c.ID
}

// RunDetached creates and starts.
func (d *Daemon) RunDetached(s Spec) string {
	d.t.Helper()
	id := d.Create(s)
	if _, err := d.ContainerStart(d.t.Context(), id, client.ContainerStartOptions{}); err != nil {
		d.t.Fatalf("start %s: %v", s.Name, err)
	}
	return id
}

// Run is docker run --rm: it returns output and exit code.
func (d *Daemon) Run(s Spec) (stdout, stderr string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	s.Host.AutoRemove = true
	id := d.Create(s)
	a, err := d.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		d.t.Fatal(err)
	}
	defer a.Close()
	w := d.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
	if _, err := d.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		d.t.Fatalf("run %v: %v", s.Config.Cmd, err)
	}
	var out, errOut bytes.Buffer
	if s.Config.Tty {
		_, err = io.Copy(&out, a.Reader)
	} else {
		_, err = stdcopy.StdCopy(&out, &errOut, a.Reader)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	select {
	case r := <-w.Result:
		return out.String(), errOut.String(), int(r.StatusCode)
	case err := <-w.Error:
		d.t.Fatal(err)
		return "", "", 0
	}
}

// Sh runs a shell command in a fresh container of the given host settings and
// returns what it printed.
func (d *Daemon) Sh(command string, host container.HostConfig) string {
	d.t.Helper()
	out, errOut, code := d.Run(Spec{Config: container.Config{Cmd: []string{"sh", "-c", command}}, Host: host})
	if code != 0 {
		d.t.Errorf("sh -c %q: exit code %d, %s%s", command, code, out, errOut)
	}
	return out
}

// Exec runs a command in a running container.
func (d *Daemon) Exec(id string, cmd ...string) (string, int) {
	d.t.Helper()
	ctx := d.t.Context()
	x, err := d.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: cmd, AttachStdout: true, AttachStderr: true})
	if err != nil {
		d.t.Fatal(err)
	}
	a, err := d.ExecAttach(ctx, x.ID, client.ExecAttachOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	defer a.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, a.Reader); err != nil {
		d.t.Fatal(err)
	}
	i, err := d.ExecInspect(ctx, x.ID, client.ExecInspectOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	return out.String(), i.ExitCode
}

// Inspect is the state of a container.
func (d *Daemon) Inspect(id string) container.InspectResponse {
	d.t.Helper()
	c, err := d.ContainerInspect(d.t.Context(), id, client.ContainerInspectOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	return c.Container
}

// WaitFor waits until a container is as asked, woken by the engine's events.
func (d *Daemon) WaitFor(id, what string, ok func(container.InspectResponse) bool) container.InspectResponse {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	events := d.Events(ctx, client.EventsListOptions{})
	for {
		c := d.Inspect(id)
		if ok(c) {
			return c
		}
		select {
		case <-events.Messages:
		case err := <-events.Err:
			d.t.Fatalf("container %s is not %s: %v; state %+v", id, what, err, c.State)
		}
	}
}

// WaitExit waits for a container's end and returns its exit code.
func (d *Daemon) WaitExit(id string) int {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	w := d.ContainerWait(ctx, id, client.ContainerWaitOptions{})
	select {
	case r := <-w.Result:
		return int(r.StatusCode)
	case err := <-w.Error:
		d.t.Fatal(err)
		return 0
	}
}

// Logs is all that a container wrote, both streams.
func (d *Daemon) Logs(id string) string {
	d.t.Helper()
	r, err := d.ContainerLogs(d.t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, r); err != nil {
		d.t.Fatal(err)
	}
	return out.String()
}

// WaitDead waits for the end of a process that need not be a child.
func WaitDead(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			t.Fatalf("process %d does not end: %v", pid, err)
		}
		return
	}
}

type process struct {
	pid  int
	args string
}

// processes are those with this daemon's directory in their arguments.
func (d *Daemon) processes() (out []process) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(data, []byte(d.Dir)) {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		out = append(out, process{pid, strings.ReplaceAll(string(data), "\x00", " ")})
	}
	return out
}

var (
	buildOnce sync.Once
	buildDir  string
	buildErr  error
)

// Main is for TestMain: it runs the tests and removes what Build made.
func Main(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// Build compiles the three programs once and returns their directory: where
// there is no Go, that which $MINKE_TEST_PROGRAMS names.
func Build(t testing.TB) string {
	t.Helper()
	if built := os.Getenv("MINKE_TEST_PROGRAMS"); built != "" {
		return built
	}
	buildOnce.Do(func() {
		root, err := moduleRoot()
		if err != nil {
			buildErr = err
			return
		}
		if buildDir, buildErr = os.MkdirTemp("", "minke-test-bin-"); buildErr != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", buildDir+"/", "./cmd/...")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return buildDir
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}

// newNetNS makes a network namespace with loopback up.
func newNetNS() (*os.File, error) {
	var f *os.File
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		var err error
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return f, err
}

func inNetNS(ns *os.File, f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
