package overlay

import (
	"os"
	"path/filepath"
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
