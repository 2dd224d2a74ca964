package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

func createVolume(t *testing.T, d *testdaemon.Daemon, name, driver string, options ...string) {
	t.Helper()
	o := map[string]string{}
	for _, kv := range options {
		k, v, _ := strings.Cut(kv, "=")
		o[k] = v
	}
	if _, err := d.VolumeCreate(t.Context(), client.VolumeCreateOptions{Name: name, Driver: driver, DriverOpts: o}); err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, d *testdaemon.Daemon, name string) (state, device, problem string) {
	t.Helper()
	v, err := d.VolumeInspect(t.Context(), name, client.VolumeInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	text := func(key string) string { s, _ := v.Volume.Status[key].(string); return s }
	return text("state"), text("device"), text("error")
}

// eventually calls ok until it holds; there is no other way to hear of what
// happens in a container.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func binds(b ...string) container.HostConfig { return container.HostConfig{Binds: b} }

func TestVolumesThatAreMounted(t *testing.T) {
	d := testdaemon.Start(t)

	t.Run("a-tmpfs-is-shared-while-it-is-used-over-a-restart-of-the-daemon", func(t *testing.T) {
		createVolume(t, d, "fast", "", "type=tmpfs", "device=tmpfs", "o=size=1m,mode=1777")
		first := d.RunDetached(testdaemon.Spec{Config: sh("echo hello > /v/f; sleep 1000"), Host: binds("fast:/v")})
		eventually(t, "the file is there", func() bool { _, code := d.Exec(first, "test", "-s", "/v/f"); return code == 0 })
		d.Kill()
		d.Up()
		if out := d.Sh("cat /v/f; df -k /v | tail -1 | awk '{print $1, $2}'", binds("fast:/v")); out != "hello\ntmpfs 1024\n" {
			t.Errorf("the second container sees %q, want the first one's file on a tmpfs of 1 MiB", out)
		}
		if state, device, _ := status(t, d, "fast"); state != "mounted" || device != "tmpfs" {
			t.Errorf("inspect says %q, %q; want mounted, tmpfs", state, device)
		}
		d.ContainerRemove(t.Context(), first, client.ContainerRemoveOptions{Force: true})
		eventually(t, "it is unmounted after its last user", func() bool { state, _, _ := status(t, d, "fast"); return state == "unused" })
		if out := d.Sh("ls /v", binds("fast:/v")); out != "" {
			t.Errorf("a new user sees %q, want an empty tmpfs", out)
		}
	})

	t.Run("a-share-that-this-kernel-cannot-mount-fails-with-the-reason", func(t *testing.T) {
		if data, _ := os.ReadFile("/proc/filesystems"); strings.Contains(string(data), "cifs") {
			t.Skip("this kernel has cifs")
		}
		createVolume(t, d, "share", "", "type=cifs", "device=//127.0.0.1/iot-data", "o=username=iot,password=x")
		id := d.Create(testdaemon.Spec{Config: sh("true"), Host: binds("share:/v")})
		_, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{})
		if err == nil || !strings.Contains(err.Error(), "this kernel has no file system cifs") {
			t.Errorf("start = %v, want a word about cifs", err)
		}
		if out := d.Sh("echo fine", container.HostConfig{}); out != "fine\n" {
			t.Errorf("another container says %q", out)
		}
	})
}

// A stick is an ext4 image behind a loop device.
type stick struct {
	t      *testing.T
	image  string
	device string
}

func newStick(t *testing.T, d *testdaemon.Daemon, label string) *stick {
	testenv.Need(t, "mkfs.ext4")
	testenv.Need(t, "losetup")
	s := &stick{t: t, image: filepath.Join(d.Dir, label+".img")}
	if err := os.WriteFile(s.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.image, 16<<20); err != nil {
		t.Fatal(err)
	}
	s.run("mkfs.ext4", "-q", "-L", label, s.image)
	t.Cleanup(func() {
		if s.device != "" {
			s.pullOut()
		}
	})
	return s
}

func (s *stick) run(words ...string) string {
	s.t.Helper()
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %v: %s", words, err, out)
	}
	return strings.TrimSpace(string(out))
}

// plugIn attaches the loop device and says so as the kernel does for a stick.
func (s *stick) plugIn() {
	s.t.Helper()
	s.device = s.run("losetup", "-f", "--show", s.image)
	s.tell("add")
}

// pullOut says that the device is gone. Nobody unmounted it before.
func (s *stick) pullOut() {
	s.t.Helper()
	s.tell("remove")
	s.run("losetup", "-d", s.device) // at once, or when nobody uses it any more
	s.device = ""
}

func (s *stick) tell(action string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join("/sys/class/block", filepath.Base(s.device), "uevent"), []byte(action), 0); err != nil {
		s.t.Fatal(err)
	}
}

func TestSticksComeAndGo(t *testing.T) {
	d := testdaemon.Start(t)
	s := newStick(t, d, "BACKUP")
	createVolume(t, d, "backup", "usb", "label=BACKUP")
	wait := sh("sleep 1000")
	writer := d.RunDetached(testdaemon.Spec{Config: wait, Host: binds("backup:/mnt/backup")})
	reader := d.RunDetached(testdaemon.Spec{Config: wait, Host: binds("backup:/b:ro")})
	sees := func(id, path string) func() bool {
		return func() bool { _, code := d.Exec(id, "test", "-e", path); return code == 0 }
	}
	if out, code := d.Exec(writer, "sh", "-c", "echo lost > /mnt/backup/f"); code == 0 || !strings.Contains(out, "Read-only") {
		t.Errorf("writing without the stick: %q, code %d; want it refused", out, code)
	}
	if state, _, problem := status(t, d, "backup"); state != "waiting" || !strings.Contains(problem, "BACKUP") {
		t.Errorf("inspect says %q, %q; want that it waits for BACKUP", state, problem)
	}

	s.plugIn()
	eventually(t, "the stick appears", sees(writer, "/mnt/backup/lost+found"))
	if out, code := d.Exec(writer, "sh", "-c", "echo kept > /mnt/backup/f"); code != 0 {
		t.Fatalf("writing to the stick: %s", out)
	}
	eventually(t, "the other container sees the file", sees(reader, "/b/f"))
	if _, code := d.Exec(reader, "touch", "/b/g"); code == 0 {
		t.Error("the container that mounts it read-only can write")
	}

	s.pullOut()
	eventually(t, "it disappears", func() bool { return !sees(writer, "/mnt/backup/f")() && !sees(reader, "/b/f")() })
	s.plugIn()
	eventually(t, "it comes back after an unclean removal", func() bool { return sees(writer, "/mnt/backup/f")() && sees(reader, "/b/f")() })

	d.Kill()
	d.Up()
	if !sees(writer, "/mnt/backup/f")() {
		t.Error("it is gone after a restart of the daemon")
	}
	eventually(t, "the daemon takes it up", func() bool { state, _, _ := status(t, d, "backup"); return state == "mounted" })
	s.pullOut()
	eventually(t, "it disappears after the restart, too", func() bool { return !sees(writer, "/mnt/backup/f")() })
	s.plugIn()
	eventually(t, "and comes back", sees(writer, "/mnt/backup/f"))
	if out := d.Sh("cat /x/f", binds("backup:/x")); out != "kept\n" {
		t.Errorf("a third container reads %q", out)
	}
}

func TestDevicesComeAndGo(t *testing.T) {
	d := testdaemon.Start(t)
	dir, err := os.MkdirTemp("/dev", "minke-test-")
	if err != nil {
		t.Skipf("needs a /dev that can be written to: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	links := filepath.Join(dir, "by-id")
	if err := os.Mkdir(links, 0o755); err != nil {
		t.Fatal(err)
	}
	// The loop control device stands for a board; no container has it by itself.
	node, link := filepath.Join(dir, "board0"), filepath.Join(links, "board")
	plug := func() {
		if err := unix.Mknod(node, unix.S_IFCHR|0o660, int(unix.Mkdev(10, 237))); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(node, link); err != nil {
			t.Fatal(err)
		}
	}
	tell := func() {
		if err := os.WriteFile("/sys/class/mem/null/uevent", []byte("change"), 0); err != nil {
			t.Fatal(err)
		}
	}
	host := container.HostConfig{Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: link, PathInContainer: "/dev/board", CgroupPermissions: "rw"}}}}
	id := d.RunDetached(testdaemon.Spec{Config: sh("sleep 1000"), Host: host})
	opens := func() bool { _, code := d.Exec(id, "sh", "-c", ": < /dev/board"); return code == 0 }
	if opens() {
		t.Fatal("the board is there before it is plugged in")
	}
	plug()
	tell()
	eventually(t, "the board can be opened", opens)
	// A node that the container keeps gives no access once the board is gone.
	if out, code := d.Exec(id, "mknod", "/tmp/kept", "c", "10", "237"); code != 0 {
		t.Fatal(out)
	}
	os.Remove(link)
	os.Remove(node)
	tell()
	eventually(t, "the board is gone", func() bool { _, code := d.Exec(id, "test", "-e", "/dev/board"); return code != 0 })
	if out, code := d.Exec(id, "sh", "-c", ": < /tmp/kept"); code == 0 || !strings.Contains(out, "not permitted") {
		t.Errorf("a node that was kept: %q, code %d; want no access", out, code)
	}
	d.Kill()
	plug()
	d.Up()
	eventually(t, "the board came while the daemon was dead", opens)
}

func TestMountsInAllForms(t *testing.T) {
	d := testdaemon.Start(t)
	below := filepath.Join(d.Dir, "tree", "below")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("below", below, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(below, 0) })
	if err := os.WriteFile(filepath.Join(below, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(d.Dir, "tree")
	tests := []struct {
		name, script, want string
		mount              mount.Mount
	}{
		{"bind-is-recursive", "ls /m/below; touch /m/below/g; rm /m/below/g", "f\n", mount.Mount{Type: mount.TypeBind, Source: tree}},
		{"read-only-is-recursive-too", "touch /m/below/g 2>/dev/null || echo no", "no\n", mount.Mount{Type: mount.TypeBind, Source: tree, ReadOnly: true}},
		{"read-only-at-the-top", "touch /m/g 2>/dev/null || echo no; touch /m/below/h && rm /m/below/h", "no\n", mount.Mount{Type: mount.TypeBind, Source: tree, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyNonRecursive: true}}},
		{"bind-without-what-is-mounted-below", "ls /m/below", "", mount.Mount{Type: mount.TypeBind, Source: tree, BindOptions: &mount.BindOptions{NonRecursive: true}}},
		{"tmpfs-options", "stat -c %a.%u /m; df -k /m | tail -1 | awk '{print $2}'", "1750.7\n1024\n", mount.Mount{Type: mount.TypeTmpfs, TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1750, Options: [][]string{{"uid", "7"}, {"exec"}}}}},
		{"image", "ls /m/bin/busybox; touch /m/x 2>/dev/null || echo no", "/m/bin/busybox\nno\n", mount.Mount{Type: mount.TypeImage, Source: "busybox"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.mount.Target = "/m"
			out, errs, code := d.Run(testdaemon.Spec{Config: sh(tt.script), Host: container.HostConfig{Mounts: []mount.Mount{tt.mount}}})
			if out != tt.want || code != 0 {
				t.Errorf("stdout %q, stderr %q, code %d; want %q", out, errs, code, tt.want)
			}
		})
	}
}
