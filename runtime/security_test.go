package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/runtime/internal/boot"
)

func TestSeccomp(t *testing.T) {
	b := newBox(t)
	for _, nnp := range []bool{false, true} {
		name := "loaded-before-the-capabilities-go"
		if nnp {
			name = "loaded-last-with-no-new-privileges"
		}
		t.Run(name, func(t *testing.T) {
			c := b.container("sh", "-c", "grep -e ^Seccomp: -e NoNew /proc/self/status; unshare -n true || echo refused; touch /x && chown 1000 /x && echo works")
			c.Spec.Process.NoNewPrivileges = nnp
			c.Spec.Linux.Seccomp = dockerSeccomp(t, c.Spec)
			code, out := b.run(c)
			want := []string{"Seccomp:\t2", "refused", "works", "NoNewPrivs:\t0"}
			if nnp {
				want[3] = "NoNewPrivs:\t1"
			}
			for _, w := range want {
				if code != 0 || !strings.Contains(out, w) {
					t.Errorf("= %d, %q; want %q in it", code, out, w)
				}
			}
		})
	}
	c := b.container("sleep", "1000")
	c.Spec.Linux.Seccomp = dockerSeccomp(t, c.Spec)
	b.start(c)
	if out := b.exec(c, "grep", "^Seccomp:", "/proc/self/status"); out != "Seccomp:\t2\n" {
		t.Errorf("an exec's filter: %q, want the container's", out)
	}
}

func dockerSeccomp(t testing.TB, s *specs.Spec) *specs.LinuxSeccomp {
	t.Helper()
	p, err := profile.GetDefaultProfile(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// exec runs a command in a running container and returns its output.
func (b *box) exec(c Container, args ...string) string {
	b.t.Helper()
	p := *c.Spec.Process
	p.Args = args
	b.n++
	id := "e" + strings.Repeat("x", b.n)
	_, s, err := b.Exec(b.ctx, c.ID, Exec{ID: id, Process: &p, Stdout: true, Stderr: true})
	if err != nil {
		b.t.Fatalf("Exec(%q): %v", args, err)
	}
	defer s.Close()
	out := b.read(s)
	if _, err := b.WaitExec(b.ctx, c.ID, id); err != nil {
		b.t.Fatalf("WaitExec(%q): %v", args, err)
	}
	return out
}

// CVE-2024-21626: a descriptor of the host that leaks, or a working directory
// that is reached through one.
func TestNoDescriptorLeaks(t *testing.T) {
	b := newBox(t)
	const list = "cd /proc/self/fd && for f in *; do [ -e $f ] && readlink $f; done; true"
	check := func(what, out string) {
		for l := range strings.Lines(out) {
			if l = strings.TrimSpace(l); !strings.HasPrefix(l, "pipe:") && l != "/dev/null" && !strings.HasPrefix(l, "/proc/") {
				t.Errorf("%s has %q open", what, l)
			}
		}
	}
	_, out := b.sh(list)
	check("the first process", out)
	c := b.container("sleep", "1000")
	b.start(c)
	check("an exec", b.exec(c, "sh", "-c", list))
}

func TestWorkingDirectoryIsInside(t *testing.T) {
	b := newBox(t)
	for fd := 3; fd < 16; fd++ {
		c := b.container("true")
		c.Spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
		if _, _, err := b.Create(b.ctx, c); err != nil {
			t.Fatal(err)
		}
		if err := b.Start(b.ctx, c.ID); err == nil {
			t.Errorf("Start with the working directory %s: want an error", c.Spec.Process.Cwd)
		}
	}
}

// CVE-2019-5736: the runtime's program, written to through /proc/<pid>/exe.
func TestProgramFileCannotBeWritten(t *testing.T) {
	b := newBox(t)
	c := b.container("true")
	pid, _, err := b.Create(b.ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", pid), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	if err := b.Start(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	// The monitor executes the same file; busy is what a caller without the
	// mount would see, or nothing once it had ended.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), os.O_WRONLY, 0)
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("open init's program for writing: %v, want that it is refused", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(exe.Fd()), &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("the program's mount has flags %#x, %v; want it read-only", st.Flags, err)
	}
}

// CVE-2019-19921, CVE-2023-27561: mount points that are links.
func TestLinksInTheImageLeadNowhere(t *testing.T) {
	b := newBox(t)
	victim := testenv.DiskDir(t)
	for name, to := range map[string]string{"evil": victim, "up": "../../../../../../../.." + victim} {
		if err := os.Symlink(to, filepath.Join(b.image, name)); err != nil {
			t.Fatal(err)
		}
	}
	// In the container the links lead to a directory of its own.
	if err := os.MkdirAll(filepath.Join(b.image, victim), 0o755); err != nil {
		t.Fatal(err)
	}
	c := b.container("sh", "-c", "grep -c ^here /evil/new/*/file /up/more/file")
	source := testenv.DiskDir(t)
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dest := range []string{"/evil/new/dir", "/up/more"} {
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: dest, Source: source, Options: []string{"bind", "ro"}})
	}
	if code, out := b.run(c); code != 0 {
		t.Errorf("= %d, %q; want the mounts inside, where the links lead there", code, out)
	}
	if names, _ := os.ReadDir(victim); len(names) != 0 {
		t.Errorf("the host's directory has %v, want it empty", names)
	}

	if err := os.Remove(filepath.Join(b.image, "proc")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", filepath.Join(b.image, "proc")); err != nil {
		t.Fatal(err)
	}
	c = b.container("true")
	if _, _, err := b.Create(b.ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(b.ctx, c.ID); err == nil {
		t.Error("Start with /proc a link: want an error")
	}
}

// CVE-2025-31133: something else than /dev/null bound over what is masked.
func TestFakeDevNullIsNoMask(t *testing.T) {
	b := newBox(t)
	if err := os.WriteFile(filepath.Join(b.image, "dev/null"), []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	c := b.container("true")
	c.Spec.Mounts = c.Spec.Mounts[:1] // only /proc
	if _, _, err := b.Create(b.ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(b.ctx, c.ID); err == nil || !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("Start = %v, want an error about /dev/null", err)
	}
}

// CVE-2025-52881: writes to /proc that end somewhere else.
func TestSysctlsGoToTheKernel(t *testing.T) {
	b := newBox(t)
	fake := testenv.DiskDir(t)
	file := filepath.Join(fake, "shm_rmid_forced")
	if err := os.WriteFile(file, []byte("fake"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := b.container("cat", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_forward")
	c.Spec.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_forward": "1"}
	if code, out := b.run(c); code != 0 || out != "1\n1\n" {
		t.Errorf("= %d, %q; want both set", code, out)
	}
	c = b.container("true")
	c.Spec.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "1"}
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/proc/sys/kernel", Source: fake, Options: []string{"bind"}})
	b.run(c)
	if got, _ := os.ReadFile(file); string(got) != "fake" {
		t.Errorf("the sysctl was written to a file mounted over it: %q", got)
	}
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "wc -c </proc/version; ls /sys/firmware | wc -l; echo x 2>&1 >/proc/sys/kernel/hostname || true; touch /y")
	c.Spec.Root.Readonly = true
	c.Spec.Linux.MaskedPaths = append(c.Spec.Linux.MaskedPaths, "/proc/version")
	code, out := b.run(c)
	if code == 0 || !strings.HasPrefix(out, "0\n0\n") || strings.Count(out, "Read-only file system") != 2 {
		t.Errorf("= %d, %q; want empty masks and two read-only errors", code, out)
	}
}

func TestPrivilegesAreDropped(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "grep -e CapEff -e CapBnd -e CapAmb /proc/self/status; id; umask; pwd; ulimit -n; ulimit -Hn; echo $HOME; cat /proc/self/oom_score_adj")
	umask := uint32(0o27)
	p := c.Spec.Process
	p.User = specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{5, 6}, Umask: &umask}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_NET_BIND_SERVICE"}, Permitted: []string{"CAP_NET_BIND_SERVICE"},
		Effective: []string{"CAP_NET_BIND_SERVICE"}, Inheritable: []string{"CAP_NET_BIND_SERVICE"}, Ambient: []string{"CAP_NET_BIND_SERVICE"}}
	p.Cwd = "/made/for/me"
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	p.OOMScoreAdj = ptr(300)
	code, out := b.run(c)
	want := "CapEff:\t0000000000000400\nCapBnd:\t0000000000000401\nCapAmb:\t0000000000000400\n" +
		"uid=1000(user) gid=100(users) groups=5,6\n0027\n/made/for/me\n100\n200\n/home\n300\n"
	if code != 0 || out != want {
		t.Errorf("= %d, %q; want %q", code, out, want)
	}
}

func TestCapabilitiesTheHostLacksAreWarnedOf(t *testing.T) {
	b := newBox(t)
	c := b.container("true")
	caps := append(dockerCaps[:len(dockerCaps):len(dockerCaps)], "CAP_FROM_THE_FUTURE")
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	_, warnings, err := b.Create(b.ctx, c)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "CAP_FROM_THE_FUTURE") {
		t.Errorf("Create = %q, %v; want one warning about the capability", warnings, err)
	}
	if err := b.Start(b.ctx, c.ID); err != nil {
		t.Errorf("Start: %v", err)
	}
}

func TestAppArmorProfileThatIsNotThereIsNamed(t *testing.T) {
	b := newBox(t)
	c := b.container("true")
	c.Spec.Process.ApparmorProfile = "minke-no-such-profile"
	_, _, err := b.Create(b.ctx, c)
	if !boot.HasAppArmor() {
		if !errdef.Is(err, errdef.Unsupported) || !strings.Contains(err.Error(), "AppArmor") {
			t.Errorf("Create = %v, want a refusal, for the kernel has no AppArmor", err)
		}
		return
	}
	if err == nil {
		err = b.Start(b.ctx, c.ID)
	}
	if err == nil || !strings.Contains(err.Error(), "minke-no-such-profile") {
		t.Errorf("Start = %v, want an error that names the profile", err)
	}
}
