package userns

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
)

func mapping(host, size uint32) Mapping {
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: host, Size: size}}
	return Mapping{UIDs: m, GIDs: m}
}

func TestTranslation(t *testing.T) {
	m := mapping(100000, 10)
	if u, g, ok := m.Host(3, 9); !ok || u != 100003 || g != 100009 {
		t.Errorf("Host(3, 9) = %d, %d, %v; want 100003, 100009", u, g, ok)
	}
	if _, _, ok := m.Host(0, 10); ok {
		t.Error("Host(0, 10) found a group beyond the mapping")
	}
	if u, g := m.Container(100004, 5); u != 4 || g != overflowID {
		t.Errorf("Container(100004, 5) = %d, %d; want 4, %d", u, g, overflowID)
	}
}

func TestOurOwnMapping(t *testing.T) {
	m, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if u, g, ok := m.Host(5, 6); !ok || u != 5 || g != 6 {
		t.Skip("these tests run in a user namespace")
	}
	if u, g := m.Container(7, 8); u != 7 || g != 8 {
		t.Errorf("Container(7, 8) = %d, %d; want them as they are", u, g)
	}
}

func TestNamespaceMapsAMount(t *testing.T) {
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	ns, err := New(mapping(200000, 1000))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if !CanMap(dir, ns) {
		t.Skip("the file system here cannot be mounted with mapped IDs")
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := MapMount(fd, ns, false); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "file", &st, 0); err != nil || st.Uid != 200000 {
		t.Errorf("a file of root belongs to %d through the mount (%v), want 200000", st.Uid, err)
	}
	// Nothing is left of the process that made the namespace.
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: wait = %d, %v", pid, err)
	}
}

func TestBadMappingIsAnError(t *testing.T) {
	testenv.NeedRoot(t)
	if ns, err := New(mapping(0, 0)); err == nil {
		ns.Close()
		t.Error("New with an empty range succeeded")
	}
}
