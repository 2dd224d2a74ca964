package overlay

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
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
