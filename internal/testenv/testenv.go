// Package testenv gives tests the real things they need, or skips them with
// the reason: root, a disk directory that overlay can use, a small root file
// system.
package testenv

import (
	"archive/tar"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts and network interfaces")
	}
}

// Need skips the test unless the command is on the PATH, and returns its path.
func Need(t testing.TB, command string) string {
	t.Helper()
	path, err := exec.LookPath(command)
	if err != nil {
		t.Skipf("needs the command %q, which is not installed", command)
	}
	return path
}

// DiskDir is a temporary directory on a real file system, removed after the
// test. Overlay cannot have its upper directory on another overlay, and a
// tmpfs does not show what a disk does.
func DiskDir(t testing.TB) string {
	t.Helper()
	base := os.Getenv("MINKE_TEST_DIR")
	if base == "" {
		base = "/var/tmp"
	}
	dir, err := os.MkdirTemp(base, "minke-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove test directory: %v", err)
		}
	})
	return dir
}

// Busybox is the path of a static busybox, Debian's busybox-static.
func Busybox(t testing.TB) string {
	t.Helper()
	path := Need(t, "busybox")
	return path
}

// applets are the commands that a busybox root has links for.
const applets = "sh ash cat echo ls sleep true false mkdir rm cp mv ln touch chmod chown id env pwd grep sed awk head tail wc sort " +
	"ps kill mount umount ip ping nslookup wget nc httpd hostname uname date dd df du find stat sync tee tr seq test [ yes stty tty " +
	"readlink nproc free top ulimit printf vi tar gzip md5sum sha256sum mknod mkfifo setsid timeout telnet su chroot unshare nsenter"

// BusyboxRoot fills dir with a small root file system around a static busybox.
func BusyboxRoot(t testing.TB, dir string) {
	t.Helper()
	bin, err := os.ReadFile(Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "var", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(dir, "tmp"), 0o1777)
	write := func(name, text string, perm os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), perm); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", string(bin), 0o755)
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser:x:1000:1000::/home:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\nusers:x:100:user\nnogroup:x:65534:\nuser:x:1000:\n", 0o644)
	for _, a := range strings.Fields(applets) {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
}

// BusyboxTar is BusyboxRoot as an uncompressed tar.
func BusyboxTar(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	BusyboxRoot(t, dir)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// NoGoroutineLeft fails the test if goroutines outlive it. Call it first.
func NoGoroutineLeft(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		// One that has nothing left to do may still wait for a processor.
		for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
			if runtime.NumGoroutine() <= before {
				return
			}
			runtime.Gosched()
		}
		buf := make([]byte, 1<<16)
		t.Logf("goroutines before %d, after %d:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		t.Errorf("goroutines outlive the test")
	})
}

// UnixPair is the two ends of a connection by a unix socket.
func UnixPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}
