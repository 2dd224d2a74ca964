package runtime

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
)

// binary is the program under test, built once. $MINKE_TEST_PROGRAMS is a
// directory that has it, where there is no Go.
var binary string

// cgroupParent is this run's: another at the same time would kill what is in
// ours.
var cgroupParent = fmt.Sprintf("/minke-test-%d", os.Getpid())

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "minke-runtime-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "minke-runtime")
	if built := os.Getenv("MINKE_TEST_PROGRAMS"); built != "" {
		binary = filepath.Join(built, "minke-runtime")
	} else {
		buildProgram()
	}
	code := m.Run()
	os.RemoveAll(dir)
	left, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent)
	for _, d := range append(left, "/sys/fs/cgroup"+cgroupParent) {
		groups, _ := filepath.Glob(d + "/*") // a create that was killed leaves its own
		for _, g := range groups {
			syscall.Rmdir(g)
		}
		os.Remove(d)
	}
	os.Exit(code)
}

func buildProgram() {
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "github.com/minke-os/minke/cmd/minke-runtime")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build minke-runtime:", err)
		os.Exit(1)
	}
}

// box is a monitor with a small image.
type box struct {
	*Monitor
	t        testing.TB
	ctx      context.Context
	dir      string // on disk
	execRoot string // for sockets and state, in memory as on a device
	image    string
	n        int
}

func newBox(t testing.TB) *box {
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	b := &box{t: t, dir: dir, execRoot: memoryDir(t), image: filepath.Join(dir, "image")}
	testenv.BusyboxRoot(t, b.image)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	b.ctx = ctx
	b.Monitor = b.open()
	t.Cleanup(func() {
		b.cleanup()
		cancel()
	})
	return b
}

func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "minke-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (b *box) options() Options {
	return Options{Dir: b.execRoot, Binary: binary, Logger: slog.New(slog.NewTextHandler(b.t.Output(), nil))}
}

func (b *box) open() *Monitor {
	b.t.Helper()
	m, err := Open(b.ctx, b.options())
	if err != nil {
		b.t.Fatalf("Open: %v", err)
	}
	return m
}

func (b *box) cleanup() {
	states, err := b.List(b.ctx)
	if err != nil {
		b.t.Errorf("List at the end: %v", err)
	}
	for _, s := range states {
		b.Kill(b.ctx, s.ID, 9, true)
		b.Wait(b.ctx, s.ID)
		if err := b.Delete(b.ctx, s.ID); err != nil {
			b.t.Errorf("Delete(%s) at the end: %v", s.ID, err)
		}
	}
	if err := b.Shutdown(b.ctx); err != nil {
		b.t.Errorf("Shutdown: %v", err)
	}
}

// container is a specification much like Docker's, around a command.
func (b *box) container(args ...string) Container {
	b.n++
	id := fmt.Sprintf("c%d", b.n)
	layer := filepath.Join(b.dir, id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(layer, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	return Container{
		ID: id, Bundle: layer, Spec: dockerSpec(id, args),
		Rootfs: &overlay.Mount{Lower: []string{b.image}, Upper: filepath.Join(layer, "upper"), Work: filepath.Join(layer, "work")},
		Log:    Log{Path: filepath.Join(layer, "log")},
	}
}

// dockerCaps are the capabilities Docker gives by default.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func dockerSpec(id string, args []string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version, Hostname: id, Root: &specs.Root{},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Permitted: dockerCaps, Effective: dockerCaps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupParent + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware", "/nowhere"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// start creates and starts c.
func (b *box) start(c Container) {
	b.t.Helper()
	if _, _, err := b.Create(b.ctx, c); err != nil {
		b.t.Fatalf("Create(%s): %v", c.ID, err)
	}
	if err := b.Start(b.ctx, c.ID); err != nil {
		b.t.Fatalf("Start(%s): %v", c.ID, err)
	}
}

// run runs c to its end and returns its code and its output, both streams in
// one.
func (b *box) run(c Container) (int, string) {
	b.t.Helper()
	if _, _, err := b.Create(b.ctx, c); err != nil {
		b.t.Fatalf("Create(%s): %v", c.ID, err)
	}
	s, err := b.Attach(b.ctx, c.ID, false, true, !c.Spec.Process.Terminal)
	if err != nil {
		b.t.Fatalf("Attach(%s): %v", c.ID, err)
	}
	defer s.Close()
	if err := b.Start(b.ctx, c.ID); err != nil {
		b.t.Fatalf("Start(%s): %v", c.ID, err)
	}
	out := b.read(s)
	e, err := b.Wait(b.ctx, c.ID)
	if err != nil {
		b.t.Fatalf("Wait(%s): %v", c.ID, err)
	}
	return e.Code, out
}

func (b *box) read(s *Streams) string {
	b.t.Helper()
	out, err := io.ReadAll(s.Stdout)
	if err != nil {
		b.t.Fatalf("read output: %v", err)
	}
	if s.Stderr == nil {
		return string(out)
	}
	more, err := io.ReadAll(s.Stderr)
	if err != nil {
		b.t.Fatalf("read errors: %v", err)
	}
	return string(out) + string(more)
}

func (b *box) sh(script string) (int, string) {
	b.t.Helper()
	return b.run(b.container("sh", "-c", script))
}
