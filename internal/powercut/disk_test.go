//go:build linux

package powercut

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
)

func TestDiskRecordsWritesAndFlushes(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4")
	d, err := NewDisk(t.TempDir(), 32<<20)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		t.Skipf("needs FUSE and loop devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if out, err := exec.Command("mkfs.ext4", "-q", d.Path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	l := d.Log()
	if l.Written(0, l.Len()) == 0 || l.Flushes(0, l.Len()) == 0 {
		t.Errorf("%d bytes and %d flushes were recorded, want both", l.Written(0, l.Len()), l.Flushes(0, l.Len()))
	}
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(32 << 20)
	if err := l.Write(f, Cut{At: l.Len(), Fate: Kept}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, d.file.data) {
		t.Errorf("replayed, the disk differs from what it was: %v", err)
	}
}
