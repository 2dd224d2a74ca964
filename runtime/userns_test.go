package runtime

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/userns"
)

// firstUser is who user 0 of the containers here is on the host.
const firstUser = 400000

// needMappedMounts skips where the disk cannot be mounted mapped.
func needMappedMounts(b *box) {
	b.t.Helper()
	ids := []specs.LinuxIDMapping{{HostID: firstUser, Size: 65536}}
	ns, err := userns.New(userns.Mapping{UIDs: ids, GIDs: ids})
	if err != nil {
		b.t.Skipf("no user namespaces here: %v", err)
	}
	defer ns.Close()
	if !userns.CanMap(b.dir, ns) {
		b.t.Skip("the file system here cannot be mounted with mapped IDs")
	}
}

// mapped is a container with a user namespace.
func (b *box) mapped(args ...string) Container {
	c := b.container(args...)
	inUserNamespace(c.Spec)
	return c
}

func inUserNamespace(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: firstUser, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
}

// ownerOf is the owner on disk.
func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(st.Uid)) + ":" + strconv.Itoa(int(st.Gid))
}

func TestUserNamespace(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	secret := filepath.Join(b.dir, "secret") // below directories that only root may enter
	if err := os.MkdirAll(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"root": 0o600, "all": 0o666} {
		if err := os.WriteFile(filepath.Join(secret, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
		os.Chmod(filepath.Join(secret, name), mode)
	}
	if err := os.Chmod(secret, 0o755); err != nil {
		t.Fatal(err)
	}
	volume := filepath.Join(b.dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	zero := uint32(0)
	dialout := uint32(20)
	mode := os.FileMode(0o660)
	c := b.mapped("sh", "-c", `
		cat /proc/self/uid_map
		id -u; stat -c '%u:%g' /bin/busybox
		touch /new /volume/new; chown 33:44 /volume/new; chown 5:6 /bin/busybox
		stat -c '%u:%g' /host/root; cat /host/all; cat /host/root; echo x > /host/root; chown 0 /host/all; echo
		echo 1 > /dev/null; stat -c '%t:%T %u:%g %a' /dev/null /dev/board; mknod /dev/x c 1 3
		cat /proc/sys/net/ipv4/ip_unprivileged_port_start; mount | grep -c ' /dev/mqueue \| /sys \| /dev/pts '
		ulimit -c; echo again > /dev/stdout`)
	c.Spec.Mounts = append(c.Spec.Mounts,
		specs.Mount{Destination: "/host", Type: "bind", Source: secret, Options: []string{"rbind", "rprivate"}},
		specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"bind", "idmap"}})
	c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/board", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &zero, GID: &dialout}}
	c.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	c.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
	_, out := b.run(c)
	for _, want := range []string{
		"         0     400000      65536", "0\n0:0", "65534:65534", "all\n",
		"1:3 0:0 666", "1:5 0:20 660", "\n0\n3\n0\nagain\n",
		"can't open '/host/root': Permission denied", "can't create /host/root: Permission denied",
		"chown: /host/all: Operation not permitted", "mknod: /dev/x: Operation not permitted",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the container's words lack %q", want)
		}
	}
	t.Log(out)
	for path, want := range map[string]string{
		filepath.Join(c.Rootfs.Upper, "new"): "0:0", filepath.Join(c.Rootfs.Upper, "bin/busybox"): "5:6",
		filepath.Join(volume, "new"): "33:44", filepath.Join(b.image, "bin/busybox"): "0:0",
	} {
		if got := ownerOf(t, path); got != want {
			t.Errorf("%s belongs to %s on disk, want %s", path, got, want)
		}
	}
}

func TestUserNamespaceExec(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	c := b.mapped("sleep", "1000")
	c.Spec.Hostname = ""
	for _, shared := range []specs.LinuxNamespaceType{specs.CgroupNamespace, specs.UTSNamespace} {
		c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == shared })
	}
	b.start(c)
	exec := func(p *specs.Process, terminal bool) string {
		t.Helper()
		p.Cwd, p.Env, p.Terminal = "/", []string{"PATH=/bin"}, terminal
		p.Capabilities = &specs.LinuxCapabilities{Bounding: dockerCaps, Permitted: dockerCaps, Effective: dockerCaps}
		b.n++
		id := strconv.Itoa(b.n)
		_, s, err := b.Exec(b.ctx, c.ID, Exec{ID: id, Process: p, Stdout: true, Stderr: !terminal})
		if err != nil {
			t.Fatalf("Exec(%v): %v", p.Args, err)
		}
		defer s.Close()
		out := b.read(s)
		if e, err := b.WaitExec(b.ctx, c.ID, id); err != nil || e.Code != 0 {
			t.Errorf("WaitExec: code %d, %v", e.Code, err)
		}
		return out
	}
	ours, err := os.Readlink("/proc/" + strconv.Itoa(b.pidOf(c.ID)) + "/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	script := "readlink /proc/self/ns/user; id -u; echo hello > /dev/stdout; ls /proc | grep -c '^1$'; touch /x"
	if out, want := exec(&specs.Process{Args: []string{"sh", "-c", script}}, false), ours+"\n0\nhello\n1\n"; out != want {
		t.Errorf("exec says %q, want %q", out, want)
	}
	user := specs.User{UID: 1000, GID: 1000}
	if out := exec(&specs.Process{Args: []string{"sh", "-c", "id -u; tty"}, User: user}, true); !strings.Contains(out, "1000") || !strings.Contains(out, "/dev/pts/") {
		t.Errorf("exec with a terminal says %q, want user 1000 and a terminal", out)
	}
}

func (b *box) pidOf(id string) int {
	b.t.Helper()
	states, err := b.List(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range states {
		if s.ID == id {
			return s.Pid
		}
	}
	b.t.Fatalf("no container %s", id)
	return 0
}

// A program that got out of its root, here by help from outside, has no rights
// there.
func TestUserNamespaceHoldsOutsideOfTheRoot(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	c := b.mapped("sleep", "1000")
	b.start(c)
	pid := b.pidOf(c.ID)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "Uid:\t400000\t400000\t400000\t400000") {
		t.Errorf("the container's root is not user 400000 on the host:\n%s", status)
	}
	target := filepath.Join(b.dir, "hostfile")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		t.Skip("no nsenter")
	}
	// In the host's mount namespace, with all that root of the container has.
	try := func(args ...string) string {
		cmd := exec.Command(nsenter, append([]string{"--user", "--target", strconv.Itoa(pid), "--setuid", "0", "--setgid", "0"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("%v worked: %s", args, out)
		}
		return string(out)
	}
	for _, args := range [][]string{
		{"cat", target}, {"chown", "0", target}, {"mount", "-t", "tmpfs", "none", "/tmp"}, {"hostname", "mine"}, {"kill", "-0", strconv.Itoa(os.Getpid())},
	} {
		if out := try(args...); !strings.Contains(out, "ermi") && !strings.Contains(out, "superuser") && !strings.Contains(out, "must be root") {
			t.Errorf("%v: %q, want a lack of permission", args, out)
		}
	}
}

func TestUserNamespaceIsJoined(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	first := b.mapped("sleep", "1000")
	b.start(first)
	proc := "/proc/" + strconv.Itoa(b.pidOf(first.ID)) + "/ns/"
	for name, own := range map[string]bool{"own-pid-namespace": true, "pid-namespace-of-another": false} {
		t.Run(name, func(t *testing.T) {
			c := b.mapped("sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net; echo $$")
			for i, ns := range c.Spec.Linux.Namespaces {
				if ns.Type == specs.UserNamespace || ns.Type == specs.NetworkNamespace || !own && ns.Type == specs.PIDNamespace {
					c.Spec.Linux.Namespaces[i].Path = proc + map[specs.LinuxNamespaceType]string{
						specs.UserNamespace: "user", specs.NetworkNamespace: "net", specs.PIDNamespace: "pid"}[ns.Type]
				}
			}
			_, out := b.run(c)
			user, _ := os.Readlink(proc + "user")
			net, _ := os.Readlink(proc + "net")
			if !strings.HasPrefix(out, user+"\n"+net+"\n") || strings.HasSuffix(out, "\n1\n") != own {
				t.Errorf("output %q, want namespaces %s and %s", out, user, net)
			}
		})
	}
}

func TestUserNamespaceOutlivesTheMonitor(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	c := b.mapped("sh", "-c", "read x; echo got $x; exit 7")
	c.Stdin = true
	b.start(c)
	b.killMonitor()
	if _, err := b.List(b.ctx); err != nil { // until there is another
		t.Fatal(err)
	}
	s, err := b.Attach(b.ctx, c.ID, true, true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Stdin.Write([]byte("word\n"))
	if e, err := b.Wait(b.ctx, c.ID); err != nil || e.Code != 7 {
		t.Errorf("Wait: code %d, %v; want 7", e.Code, err)
	}
	if log, _ := os.ReadFile(c.Log.Path); !bytes.Contains(log, []byte("got word")) {
		t.Errorf("the log is %q", log)
	}
}

func TestMountMapsIDsWithoutUserNamespace(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	dir := filepath.Join(b.dir, "mapped")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := b.container("sh", "-c", "stat -c %u /mapped")
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{
		Destination: "/mapped", Type: "bind", Source: dir, Options: []string{"bind"},
		UIDMappings: []specs.LinuxIDMapping{{HostID: 1234, Size: 10}}, GIDMappings: []specs.LinuxIDMapping{{HostID: 1234, Size: 10}},
	})
	if _, out := b.run(c); out != "1234\n" {
		t.Errorf("owner in the container %q, want 1234", out)
	}
}

func TestUserNamespaceGetsOnlyThePartOfAnOverlay(t *testing.T) {
	b := newBox(t)
	needMappedMounts(b)
	upper, lower := filepath.Join(b.dir, "upper"), filepath.Join(b.dir, "lower")
	for _, dir := range []string{upper + "/part", lower + "/other"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(upper+"/part/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	layers := overlay.Mount{Lower: []string{upper, lower}}
	c := b.mapped("ls", "/m")
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/m", Type: "overlay", Source: "o", Options: append(layers.Options(), "ro", "x-subpath=/part")})
	if code, out := b.run(c); out != "file\n" {
		t.Errorf("= %d, %q; want the file of the part", code, out)
	}
}

func TestUserNamespaceWithoutRootIsRefused(t *testing.T) {
	b := newBox(t)
	c := b.mapped("true")
	c.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 1, HostID: 1, Size: unix.PathMax}}
	if _, _, err := b.Create(b.ctx, c); err == nil || !strings.Contains(err.Error(), "no user 0") {
		t.Errorf("Create: %v, want a refusal that says what is missing", err)
	}
}
