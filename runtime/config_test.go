package runtime

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
)

func TestMounts(t *testing.T) {
	b := newBox(t)
	host := testenv.DiskDir(t)
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	layer := overlay.Mount{Lower: []string{host, testenv.DiskDir(t)}}
	tests := []struct {
		name, script, want string
		mount              specs.Mount
	}{
		{"bind-of-a-directory", "cat /m/file; touch /m/new && echo writable", "content\nwritable\n", specs.Mount{Destination: "/m", Source: host, Options: []string{"rbind", "rprivate"}}},
		{"read-only", "touch /m/new2 2>&1 | grep -o Read-only", "Read-only\n", specs.Mount{Destination: "/m", Source: host, Options: []string{"bind", "ro"}}},
		{"recursively-read-only", "touch /m/new2 2>&1 | grep -o Read-only", "Read-only\n", specs.Mount{Destination: "/m", Source: host, Options: []string{"rbind", "rro"}}},
		{"file-on-a-file-that-is-missing", "cat /etc/a/b", "content\n", specs.Mount{Destination: "/etc/a/b", Source: host + "/file", Options: []string{"bind"}}},
		{"file-of-another-file-system", "cat /etc/a/c; touch /etc/a/c 2>&1 | grep -o Read-only; ls /", "content\nRead-only\nbin\ndev\netc\nhome\nproc\nroot\nsys\ntmp\nvar\n", specs.Mount{Destination: "/etc/a/c", Type: "overlay", Source: "o", Options: append(layer.Options(), "ro", "x-subpath=/../file")}},
		{"tmpfs-with-size-and-mode", "stat -c %a /m; df -k /m | tail -1 | awk '{print $2}'", "1700\n64\n", specs.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k", "mode=1700", "noexec"}}},
		{"noexec", "cp /bin/busybox /m/x; /m/x 2>&1 | grep -o denied", "denied\n", specs.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := b.container("sh", "-c", tt.script)
			c.Spec.Mounts = append(c.Spec.Mounts, tt.mount)
			if code, out := b.run(c); out != tt.want {
				t.Errorf("= %d, %q; want %q", code, out, tt.want)
			}
		})
	}
}

func TestDevices(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "stat -c '%a %u %t,%T' /dev/fuse; ls -l /dev/ptmx /dev/fd | awk '{print $NF}'; echo x >/dev/null; head -c 2 /dev/zero | wc -c")
	c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: ptr(os.FileMode(0o640)), UID: ptr[uint32](7)}}
	if code, out := b.run(c); out != "640 7 a,e5\n/proc/self/fd\npts/ptmx\n2\n" {
		t.Errorf("= %d, %q", code, out)
	}
}

func TestNamespacesAreShared(t *testing.T) {
	b := newBox(t)
	first := b.container("sleep", "1000")
	b.start(first)
	pid := b.state(first.ID).Pid
	c := b.container("sh", "-c", "readlink /proc/self/ns/net; ps | grep -c '[s]leep 1000'")
	for i, ns := range c.Spec.Linux.Namespaces {
		if name, ok := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.PIDNamespace: "pid", specs.IPCNamespace: "ipc"}[ns.Type]; ok {
			c.Spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, name)
		}
	}
	net, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	if code, out := b.run(c); out != net+"\n1\n" {
		t.Errorf("= %d, %q; want the first container's network %s and its process", code, out, net)
	}
}

func TestStandardInput(t *testing.T) {
	b := newBox(t)
	once := b.container("cat")
	once.Stdin, once.StdinOnce = true, true
	if _, _, err := b.Create(b.ctx, once); err != nil {
		t.Fatal(err)
	}
	s, err := b.Attach(b.ctx, once.ID, true, true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := b.Start(b.ctx, once.ID); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(s.Stdin, "typed")
	s.Stdin.Close()
	if out := b.read(s); out != "typed" {
		t.Errorf("cat = %q, want what was typed, and an end", out)
	}

	kept := b.container("sh", "-c", "read a; read b; echo $a $b")
	kept.Stdin = true
	b.start(kept)
	for _, word := range []string{"one", "two"} {
		s, err := b.Attach(b.ctx, kept.ID, true, true, false)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(s.Stdin, word)
		s.Stdin.Close()
		if word == "two" {
			if out, err := io.ReadAll(s.Stdout); err != nil || string(out) != "one two\n" {
				t.Errorf("input by two attachments = %q, %v; want %q", out, err, "one two\n")
			}
		}
		s.Close()
	}

	none := b.container("cat")
	b.start(none)
	if _, err := b.Attach(b.ctx, none.ID, true, false, false); err == nil && b.state(none.ID).Status == Running {
		t.Error("Attach to the input of a container without: want an error")
	}
}

func TestUnknownAndRefused(t *testing.T) {
	b := newBox(t)
	calls := map[string]error{
		"Start":  b.Start(b.ctx, "x"),
		"Kill":   b.Kill(b.ctx, "x", unix.SIGTERM, false),
		"Delete": b.Delete(b.ctx, "x"),
		"Pause":  b.Pause(b.ctx, "x"),
		"Resize": b.Resize(b.ctx, "x", "", WindowSize{1, 1}),
	}
	_, calls["Wait"] = b.Wait(b.ctx, "x")
	_, calls["Attach"] = b.Attach(b.ctx, "x", false, true, true)
	for name, err := range calls {
		if !errdef.Is(err, errdef.NotFound) {
			t.Errorf("%s of an unknown container = %v (%s), want %s", name, err, errdef.Of(err), errdef.NotFound)
		}
	}
	c := b.container("true")
	c.Spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/bin/true"}}}
	if _, _, err := b.Create(b.ctx, c); !errdef.Is(err, errdef.Unsupported) || !strings.Contains(err.Error(), "take them out") {
		t.Errorf("Create with hooks = %v, want a refusal that says what to do", err)
	}
	c = b.container("sleep", "1000")
	b.start(c)
	if _, _, err := b.Create(b.ctx, c); !errdef.Is(err, errdef.Conflict) {
		t.Errorf("Create of a container that exists = %v, want a conflict", err)
	}
	if err := b.Delete(b.ctx, c.ID); !errdef.Is(err, errdef.Conflict) {
		t.Errorf("Delete of a running container = %v, want a conflict", err)
	}
	if err := b.Shutdown(b.ctx); !errdef.Is(err, errdef.Conflict) {
		t.Errorf("Shutdown with a container = %v, want a conflict", err)
	}
}
