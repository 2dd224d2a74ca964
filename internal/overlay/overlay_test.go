package overlay

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/internal/userns"
)

func TestDataOnlyLayersWork(t *testing.T) {
	testenv.NeedRoot(t)
	if err := ProbeData(testenv.DiskDir(t)); err != nil {
		t.Skipf("this kernel or file system has no data-only layers (Linux 6.5 or newer): %v", err)
	}
}

func TestWritesGoToUpperOnly(t *testing.T) {
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := filepath.Join(dir, "lower", "file")
	if err := os.WriteFile(lower, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := Mount{Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	f, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := os.OpenRoot(Path(f))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.WriteFile("file", []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(lower); string(got) != "old" {
		t.Errorf("lower file = %q after a write through the mount, want it unchanged", got)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "upper", "file")); string(got) != "new" {
		t.Errorf("upper file = %q, want %q", got, "new")
	}
}

func TestMappedLayers(t *testing.T) {
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	for _, d := range []string{"lower", "c/upper", "c/work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 65536}}
	mapping := userns.Mapping{UIDs: ids, GIDs: ids}
	ns, err := userns.New(mapping)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if !userns.CanMap(dir, ns) {
		t.Skip("the file system here cannot be mounted with mapped IDs")
	}
	m := Mount{Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "c/upper"), Work: filepath.Join(dir, "c/work")}
	f, err := m.OpenMapped(ns, mapping)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	owner := func(path string) (st syscall.Stat_t) {
		if err := syscall.Stat(path, &st); err != nil {
			t.Error(err)
		}
		return st
	}
	if st := owner(Path(f) + "/file"); st.Uid != 300000 || st.Gid != 300000 {
		t.Errorf("root's file belongs to %d:%d through the mount, want 300000:300000", st.Uid, st.Gid)
	}
	if err := os.Chown(Path(f)+"/file", 300007, 300008); err != nil {
		t.Fatal(err)
	}
	if st := owner(filepath.Join(dir, "c/upper/file")); st.Uid != 7 || st.Gid != 8 {
		t.Errorf("given to 300007:300008 through the mount, the file is %d:%d's on disk, want 7:8", st.Uid, st.Gid)
	}
	if got := Parse(m.Options()); !reflect.DeepEqual(got, m) {
		t.Errorf("Parse(Options()) = %+v, want %+v", got, m)
	}
}

func TestManyLayersWithLongNames(t *testing.T) {
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	m := Mount{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for i := range 120 {
		layer := filepath.Join(dir, strings.Repeat("long-", 20)+strconv.Itoa(i))
		if err := os.MkdirAll(layer, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(layer, strconv.Itoa(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		m.Lower = append(m.Lower, layer)
	}
	for _, d := range []string{m.Upper, m.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mount := range map[string]func() (*os.File, error){"as-this-kernel-likes": m.Open, "as-before-linux-6.7": m.mountAsString} {
		t.Run(name, func(t *testing.T) {
			f, err := mount()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files, err := os.ReadDir(Path(f))
			if err != nil || len(files) != 120 {
				t.Errorf("%d files, %v; want one of each of 120 layers", len(files), err)
			}
		})
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), dir) {
		t.Error("a mount is left in the host's table")
	}
}
